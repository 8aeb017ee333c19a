// Threads that decode one chunk together, as the code of team_*.h sees them: a warp on a GPU, one thread on a CPU.
//
// All threads of a team run the same code on the same values and take the same branches; only loops that say so share
// their work, each thread taking the turns rank, rank + size, … or a range of its own. What one thread writes others
// may read after sync(), which all must reach.
#pragma once

#include <cstdint>

#include "transforms.h"

namespace vologan::depth {

// The most threads a team may have.
constexpr int kTeamThreads = 32;

struct HostTeam {
  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  static void sync() {}
  static bool any(bool value) { return value; }  // whether it is true in some thread
};

#ifdef __CUDACC__
// The 32 threads of a block.
struct WarpTeam {
  __device__ static int rank() { return static_cast<int>(threadIdx.x); }
  __device__ static constexpr int size() { return kTeamThreads; }
  __device__ static void sync() { __syncwarp(); }
  __device__ static bool any(bool value) { return __any_sync(~0u, value); }
};
#endif

// The range of n bytes that a thread works on alone, beginning at a multiple of 4. Ranges of an odd number of words
// begin in different banks of a GPU's shared memory.
struct TeamRange {
  int64_t begin, end;
};
template <class Team>
VOLOGAN_HD TeamRange team_range(const Team& team, int rank, int64_t n) {
  const int64_t bytes = (((n + 3) / 4 + team.size() - 1) / team.size() | 1) * 4;
  const int64_t begin = rank * bytes, end = begin + bytes;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace vologan::depth
