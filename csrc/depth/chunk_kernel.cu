#include "chunk_kernel.h"

namespace vologan::depth {

__global__ void __launch_bounds__(kTeamThreads) decode_chunks_kernel(const ChunkLaunch launch) {
  __shared__ InflateTables tables;
  extern __shared__ uint32_t own[];
  const ChunkJob& job = launch.jobs[blockIdx.x];
  uint32_t* const room = job.scratch < 0 ? own : reinterpret_cast<uint32_t*>(launch.scratch + job.scratch);
  const ChunkResult result = decode_chunk(WarpTeam{}, job, launch.images[job.image], launch.packed, room, tables);
  if (threadIdx.x == 0) launch.results[blockIdx.x] = result;
}

cudaError_t launch_chunks(const ChunkLaunch& launch, cudaStream_t stream) {
  if (launch.job_count == 0) return cudaSuccess;
  decode_chunks_kernel<<<launch.job_count, kTeamThreads, static_cast<size_t>(launch.team_bytes), stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace vologan::depth
