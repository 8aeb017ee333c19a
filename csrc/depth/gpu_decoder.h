// Decodes batches of EXR chunks on the current GPU. Built where there is a CUDA compiler.
//
// What CUDA refuses is a std::runtime_error that says what was asked for.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "chunk_batch.h"

struct CUstream_st;

namespace vologan::depth {

using Stream = CUstream_st*;  // a cudaStream_t

// Memory that grows to the largest size asked for; what it held is lost when it does. Pinned memory of the host, which
// copies to and from the GPU without a detour, or memory of the GPU.
class GpuBuffer {
 public:
  enum class Kind { Pinned, Device };
  explicit GpuBuffer(Kind kind) : kind_(kind) {}
  GpuBuffer(const GpuBuffer&) = delete;
  GpuBuffer& operator=(const GpuBuffer&) = delete;
  ~GpuBuffer();

  uint8_t* reserve(size_t bytes);
  uint8_t* data() const { return data_; }

 private:
  const Kind kind_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

void use_gpu(int index);  // for what this thread asks of CUDA from now on
void copy_to_gpu(void* to, const void* from, size_t bytes, Stream stream);
void wait_for(Stream stream);

// Keeps its memory from batch to batch. Not thread-safe.
class GpuChunkDecoder {
 public:
  // One copy to the GPU, one launch, one copy back; waits for them. The targets' data are memory of the GPU, the lists
  // `invalid` of their rules memory of the host.
  const std::vector<ChunkResult>& decode(const ChunkBatch& batch, Stream stream);

 private:
  GpuBuffer staging_{GpuBuffer::Kind::Pinned}, input_{GpuBuffer::Kind::Device}, scratch_{GpuBuffer::Kind::Device},
      output_{GpuBuffer::Kind::Device};
  std::vector<ChunkResult> results_;
};

}  // namespace vologan::depth
