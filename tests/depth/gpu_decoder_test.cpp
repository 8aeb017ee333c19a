// Tests GpuChunkDecoder over a CUDA of our own: memory is the CPU's, and a launch runs the blocks one after the
// other. Copies and launches run when the host waits. Decodes two batches of EXR files, the second one larger, and
// compares them with HostChunkDecoder. Then lets each call of CUDA fail in turn.
#include "gpu_decoder.h"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <stdexcept>

#include "batch.h"
#include "chunk_kernel.h"

using namespace vologan::depth;

namespace {

int copies_to_gpu = 0, launches = 0;
int calls_before_error = -1;  // a negative number: no call fails
std::deque<std::function<void()>> stream;

void finish() {
  for (; !stream.empty(); stream.pop_front()) stream.front()();
}

// Does the work later, as a GPU does. Every call that can fail asks here.
cudaError_t later(const std::function<void()>& work) {
  if (calls_before_error-- == 0) return cudaErrorMemoryAllocation;
  stream.push_back(work);
  return cudaSuccess;
}

}  // namespace

extern "C" {
cudaError_t cudaMalloc(void** data, size_t bytes) {
  const cudaError_t status = later([] {});
  if (status == cudaSuccess) *data = std::malloc(bytes);
  return status;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaMalloc(data, bytes); }
cudaError_t cudaFree(void* data) { return finish(), std::free(data), cudaSuccess; }
cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  copies_to_gpu += kind == cudaMemcpyHostToDevice;
  return later([=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return finish(), cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
}

namespace vologan::depth {
cudaError_t launch_chunks(const ChunkLaunch& launch, cudaStream_t) {
  ++launches;
  return later([launch] {
    for (uint32_t block = 0; block < launch.job_count; ++block) {
      const ChunkJob& job = launch.jobs[block];
      InflateTables tables;
      std::vector<uint32_t> own(launch.team_bytes / 4);
      uint32_t* const room = job.scratch < 0 ? own.data() : reinterpret_cast<uint32_t*>(launch.scratch + job.scratch);
      launch.results[block] = decode_chunk(HostTeam{}, job, launch.images[job.image], launch.packed, room, tables);
    }
  });
}
}  // namespace vologan::depth

namespace {

// Decodes the files by `decoder`, and compares the images with those of HostChunkDecoder. Returns the failures. If a
// call of CUDA fails, it throws, and the images are freed.
int compare(GpuChunkDecoder& decoder, int used, char** names) {
  const std::vector<float> invalid = {1e10f, 0.1f, 65504.0f};
  std::vector<std::vector<uint8_t>> files(used);
  std::vector<std::vector<float>> expected(used), found(used);
  ChunkBatch host, gpu;
  for (int i = 1; i < used; ++i) {
    read_file(names[i], {}, files[i]);
    const Info info = probe(files[i], names[i]);
    expected[i].assign(info.width * info.height, 7.0f), found[i].assign(info.width * info.height, -7.0f);
    ImageTarget target{expected[i].data(), info.height, info.width, info.width, 1};
    target.normalize = true;
    target.rule = {0.5f, 0.5f, -1.0f, i % 2 ? 0.0f : std::nanf(""), invalid.data(), i % 4};
    host.add(files[i], names[i], std::nullopt, target);
    target.data = found[i].data();
    gpu.add(files[i], names[i], std::nullopt, target);
  }
  HostChunkDecoder().decode(host);
  const std::vector<ChunkResult>& results = decoder.decode(gpu, nullptr);
  int failures = 0;
  for (int i = 1; i < used; ++i) {
    if (!gpu.check(i - 1, results.data())) failures += std::printf("%s: no valid depth\n", names[i]);
    if (found[i] != expected[i]) failures += std::printf("%s differs\n", names[i]);
  }
  return failures;
}

// Decodes while the n-th call of CUDA fails, for each n. Afterwards no work may be left that uses the staging memory or
// the images, and the next batch must be right. Returns the failures.
int fail_everywhere(int count, char** names) {
  int failures = 0, errors = 0;
  for (bool failed = true; failed; errors += failed) {
    GpuChunkDecoder decoder;
    calls_before_error = errors;
    failed = false;
    try {
      compare(decoder, count, names);
    } catch (const std::runtime_error&) {
      failed = true;
    }
    calls_before_error = -1;
    if (!stream.empty()) failures += std::printf("error %d: %zu calls are not over\n", errors, stream.size());
    finish();  // a late read or write is an error of AddressSanitizer
    failures += compare(decoder, count, names);
  }
  if (errors < 7) failures += std::printf("only %d calls could fail\n", errors);
  return failures;
}

}  // namespace

int main(int count, char** names) {
  GpuChunkDecoder decoder;
  int failures = 0;
  for (const int used : {2, count}) failures += compare(decoder, used, names);
  if (copies_to_gpu != 2 || launches != 2) failures += std::printf("%d copies, %d launches\n", copies_to_gpu, launches);
  return failures + fail_everywhere(count, names) != 0;
}
