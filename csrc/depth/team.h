// Teams of threads that decode one chunk together: a warp on a GPU, one thread on a CPU. The code of team_*.h is
// written for a team.
//
// All threads of a team run the same code on the same values and take the same branches. Only loops that use rank()
// share their work. In such a loop a thread takes the iterations rank, rank + size, …, or a range of its own. A
// value that one thread has written may be read by the others after sync(). All threads must reach each sync().
// Memory is "in sync" if a sync() has followed the last write to it.
#pragma once

#include <cstdint>

#include "transforms.h"

namespace vologan::depth {

// The largest size of a team.
constexpr int kTeamThreads = 32;

// The team of one thread on a CPU.
struct HostTeam {
  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  static void sync() {}
  static bool any(bool value) { return value; }  // whether the value is true in any thread
};

#ifdef __CUDACC__
// The team of a block's 32 threads, which are one warp.
struct WarpTeam {
  __device__ static int rank() { return static_cast<int>(threadIdx.x); }
  __device__ static constexpr int size() { return kTeamThreads; }
  __device__ static void sync() { __syncwarp(); }
  __device__ static bool any(bool value) { return __any_sync(~0u, value); }
};
#endif

// The range of n bytes that one thread works on alone. It begins at a multiple of 4, or at n if it is empty. Ranges
// have an odd number of words, so that they begin in different banks of a GPU's shared memory.
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
