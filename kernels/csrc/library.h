// Types and functions that all operations of the package's library for CPUs share.
//
// It knows pointers, sizes and strides, and nothing of torch, so one build serves all versions of torch.
// `vologan_kernels/native_library.py` loads it.

#pragma once

#include <cstdint>

#pragma GCC visibility push(default)

extern "C" {

enum VologanType : int64_t { kFloat32, kBfloat16, kFloat64 };

// The instruction sets that this processor can run, separated by spaces, the fastest first: "avx512_bf16 avx2 plain".
const char* vologan_levels();
// Use another level than the fastest one. Returns 0, or 1 if this processor cannot run it.
int vologan_use_level(const char* name);

// Use the threads of an OpenMP runtime: its functions GOMP_parallel, omp_get_thread_num and omp_get_num_threads.
// Without them, the library starts threads of its own in each call. Two pools of threads that spin would take each
// other's cores.
void vologan_use_openmp(void* parallel, void* thread_num, void* num_threads);
}

#pragma GCC visibility pop
