// Launches decode_chunk() for a whole batch: one block per chunk, and one warp per block.
#pragma once

#include <cuda_runtime_api.h>

#include "team_chunk.h"

namespace vologan::depth {

// A ChunkBatch in the memory of a GPU, and the memory for its results.
struct ChunkLaunch {
  const ChunkJob* jobs;
  uint32_t job_count;         // fewer than 2^31
  const ImageTarget* images;  // the `invalid` of their rules is memory of the GPU, too
  const uint8_t* packed;      // aligned to 4 bytes
  uint8_t* scratch;           // aligned to 4 bytes
  int64_t team_bytes;         // ChunkBatch::team_bytes()
  ChunkResult* results;       // one for each job
};

// Returns the status of the launch. Does not wait for the stream.
cudaError_t launch_chunks(const ChunkLaunch& launch, cudaStream_t stream);

}  // namespace vologan::depth
