// Tests GpuChunkDecoder over a CUDA of our own: memory is the CPU's, and a launch runs the blocks one after the
// other. Decodes two batches of EXR files, the second one larger, and compares them with HostChunkDecoder.
#include "gpu_decoder.h"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "batch.h"
#include "chunk_kernel.h"

using namespace vologan::depth;

namespace {
int copies_to_gpu = 0, launches = 0;
}

extern "C" {
cudaError_t cudaMalloc(void** data, size_t bytes) { return *data = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaMallocHost(void** data, size_t bytes) { return *data = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
cudaError_t cudaFreeHost(void* data) { return std::free(data), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  copies_to_gpu += kind == cudaMemcpyHostToDevice;
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
}

namespace vologan::depth {
cudaError_t launch_chunks(const ChunkLaunch& launch, cudaStream_t) {
  ++launches;
  for (uint32_t block = 0; block < launch.job_count; ++block) {
    const ChunkJob& job = launch.jobs[block];
    InflateTables tables;
    std::vector<uint32_t> own(launch.team_bytes / 4);
    uint32_t* const room = job.scratch < 0 ? own.data() : reinterpret_cast<uint32_t*>(launch.scratch + job.scratch);
    launch.results[block] = decode_chunk(HostTeam{}, job, launch.images[job.image], launch.packed, room, tables);
  }
  return cudaSuccess;
}
}  // namespace vologan::depth

int main(int count, char** names) {
  std::vector<std::vector<uint8_t>> files(count);
  const std::vector<float> invalid = {1e10f, 0.1f, 65504.0f};
  GpuChunkDecoder decoder;
  int failures = 0;
  for (const int used : {2, count}) {
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
    for (int i = 1; i < used; ++i) {
      if (!gpu.check(i - 1, results.data())) failures += std::printf("%s: no valid depth\n", names[i]);
      if (found[i] != expected[i]) failures += std::printf("%s differs\n", names[i]);
    }
  }
  if (copies_to_gpu != 2 || launches != 2) failures += std::printf("%d copies, %d launches\n", copies_to_gpu, launches);
  return failures != 0;
}
