// Decodes batches of EXR chunks on the current GPU. It is built only if there is a CUDA compiler.
//
// If a CUDA call fails, a std::runtime_error names the failed operation and CUDA's reason.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "chunk_batch.h"

struct CUstream_st;

namespace vologan::depth {

using Stream = CUstream_st*;  // a cudaStream_t

// Memory that grows to the largest size requested. Its contents are lost when it grows. Kind::Pinned is pinned
// memory of the host, which is copied to and from the GPU without a detour. Kind::Device is memory of the GPU.
class GpuBuffer {
 public:
  enum class Kind { Pinned, Device };
  explicit GpuBuffer(Kind kind) : kind_(kind) {}
  GpuBuffer(const GpuBuffer&) = delete;
  GpuBuffer& operator=(const GpuBuffer&) = delete;
  ~GpuBuffer();

  // Returns memory of at least `bytes` bytes.
  uint8_t* reserve(size_t bytes);
  uint8_t* data() const { return data_; }

 private:
  const Kind kind_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

void use_gpu(int index);  // for all later CUDA calls of this thread
void copy_to_gpu(void* to, const void* from, size_t bytes, Stream stream);
void wait_for(Stream stream);

// Waits for the stream when it goes out of scope, also after an exception: memory that the stream's work reads or
// writes is reused or freed behind it. Declare it before the work begins, and after that memory.
class WaitAtEnd {
 public:
  explicit WaitAtEnd(Stream stream) : stream_(stream) {}
  WaitAtEnd(const WaitAtEnd&) = delete;
  WaitAtEnd& operator=(const WaitAtEnd&) = delete;
  ~WaitAtEnd();

 private:
  const Stream stream_;
};

// Keeps its memory from batch to batch. It is not thread-safe.
class GpuChunkDecoder {
 public:
  // Decodes a batch by one copy to the GPU, one launch and one copy back, and waits for them. The targets' data are
  // memory of the GPU. The lists `invalid` of their rules are memory of the host. The returned results are valid
  // until the next call. If it throws, it has waited too: nothing reads or writes the memory of the batch any more.
  const std::vector<ChunkResult>& decode(const ChunkBatch& batch, Stream stream);

 private:
  GpuBuffer staging_{GpuBuffer::Kind::Pinned}, input_{GpuBuffer::Kind::Device}, scratch_{GpuBuffer::Kind::Device},
      output_{GpuBuffer::Kind::Device};
  std::vector<ChunkResult> results_;
};

}  // namespace vologan::depth
