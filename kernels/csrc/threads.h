// Work that several threads share.

#pragma once

#include <cstdint>

namespace vologan {

// Call f(context, thread, begin, end) for ranges that cover [0, count), on at most `threads` threads. f must not throw.
void share(int64_t threads, int64_t count, void (*f)(void* context, int64_t thread, int64_t begin, int64_t end),
           void* context);

// Use the threads of an OpenMP runtime from now on (library.h says why).
void use_openmp(void* parallel, void* thread_num, void* num_threads);

}  // namespace vologan
