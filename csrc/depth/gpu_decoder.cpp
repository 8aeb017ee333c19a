#include "gpu_decoder.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <stdexcept>

#include "chunk_kernel.h"

namespace vologan::depth {

namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(text("GPU: ", what, ": ", cudaGetErrorString(status)));
}

// The offsets of parts that lie one behind the other in one buffer. Each part begins at a multiple of 16 bytes.
class Layout {
 public:
  template <class T>
  size_t add(size_t count) {
    const size_t at = size_;
    size_ += (count * sizeof(T) + 15) / 16 * 16;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

}  // namespace

GpuBuffer::~GpuBuffer() { kind_ == Kind::Pinned ? cudaFreeHost(data_) : cudaFree(data_); }

uint8_t* GpuBuffer::reserve(size_t bytes) {
  if (bytes <= bytes_) return data_;
  kind_ == Kind::Pinned ? cudaFreeHost(data_) : cudaFree(data_);
  data_ = nullptr;
  bytes_ = 0;
  void* data = nullptr;
  if (kind_ == Kind::Pinned) {
    check(cudaMallocHost(&data, bytes), "pinned memory");
  } else {
    check(cudaMalloc(&data, bytes), "memory");
  }
  data_ = static_cast<uint8_t*>(data);
  bytes_ = bytes;
  return data_;
}

void use_gpu(int index) { check(cudaSetDevice(index), "choosing it"); }

void copy_to_gpu(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copy to it");
}

void wait_for(Stream stream) { check(cudaStreamSynchronize(stream), "decoding"); }

WaitAtEnd::~WaitAtEnd() { cudaStreamSynchronize(stream_); }  // an error of CUDA has been thrown or will be found later

const std::vector<ChunkResult>& GpuChunkDecoder::decode(const ChunkBatch& batch, Stream stream) {
  const std::vector<ChunkJob>& jobs = batch.jobs();
  std::vector<ImageTarget> images = batch.images();
  results_.resize(jobs.size());
  if (jobs.empty()) return results_;

  Layout layout;
  const size_t packed_at = layout.add<uint8_t>(static_cast<size_t>(batch.packed_bytes()));
  const size_t jobs_at = layout.add<ChunkJob>(jobs.size());
  const size_t images_at = layout.add<ImageTarget>(images.size());
  std::vector<size_t> invalid_at;
  for (const ImageTarget& image : images) invalid_at.push_back(layout.add<float>(image.rule.invalid_count));
  uint8_t* const staged = staging_.reserve(layout.size());
  uint8_t* const input = input_.reserve(layout.size());

  batch.pack(staged + packed_at);
  std::memcpy(staged + jobs_at, jobs.data(), jobs.size() * sizeof(ChunkJob));
  for (size_t i = 0; i < images.size(); ++i) {
    data::DepthRule& rule = images[i].rule;
    std::copy(rule.invalid, rule.invalid + rule.invalid_count, reinterpret_cast<float*>(staged + invalid_at[i]));
    rule.invalid = reinterpret_cast<const float*>(input + invalid_at[i]);
  }
  std::memcpy(staged + images_at, images.data(), images.size() * sizeof(ImageTarget));
  const WaitAtEnd wait(stream);
  copy_to_gpu(input, staged, layout.size(), stream);

  ChunkLaunch launch;
  launch.jobs = reinterpret_cast<const ChunkJob*>(input + jobs_at);
  launch.job_count = static_cast<uint32_t>(jobs.size());
  launch.images = reinterpret_cast<const ImageTarget*>(input + images_at);
  launch.packed = input + packed_at;
  launch.scratch = scratch_.reserve(static_cast<size_t>(batch.scratch_bytes()));
  launch.team_bytes = batch.team_bytes();
  launch.results = reinterpret_cast<ChunkResult*>(output_.reserve(jobs.size() * sizeof(ChunkResult)));
  check(launch_chunks(launch, stream), "launch");
  check(cudaMemcpyAsync(results_.data(), launch.results, jobs.size() * sizeof(ChunkResult), cudaMemcpyDeviceToHost,
                        stream),
        "copy from it");
  wait_for(stream);
  return results_;
}

}  // namespace vologan::depth
