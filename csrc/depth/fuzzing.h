// Code that the fuzzers share: it mutates bytes, ends a run in time, and keeps the file at which something failed.
//
// A fuzzer ends at the first failure, with the file that caused it in ./crash.bin. A failure is an error that a
// sanitiser sees, a call of fail(), or a file that takes more than a minute of computing.
#pragma once

#include <sanitizer/common_interface_defs.h>
#include <sys/time.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

namespace vologan::fuzzing {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937_64;

inline const Bytes* current = nullptr;

inline void save_current() {
  std::ofstream("crash.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(current->data()), static_cast<std::streamsize>(current->size()));
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  save_current();
  std::abort();
}

// Says which bytes are used from now on. They must stay valid until the next call.
inline void watch(const Bytes& file) {
  current = &file;
  // The time of the process, because a clock on the wall goes on while the process is stopped.
  const itimerval minute{{0, 0}, {60, 0}};
  setitimer(ITIMER_PROF, &minute, nullptr);
}

inline void save_when_it_fails() {
  __sanitizer_set_death_callback(save_current);
  std::signal(SIGPROF, [](int) { fail("a file takes more than a minute"); });
}

// Changes, inserts or drops some bytes.
inline void mutate(Bytes& file, Random& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  static constexpr uint8_t telling[] = {0, 1, 2, 16, 127, 128, 254, 255};
  for (size_t changes = 1 + below(8); changes > 0 && !file.empty(); --changes) {
    // Headers and tables are where the sizes are: half of all changes go there.
    const size_t at = below(random() & 1 ? file.size() : std::min<size_t>(file.size(), 512));
    switch (below(6)) {
      case 0:
        file.insert(file.begin() + static_cast<ptrdiff_t>(at), 1 + below(9), static_cast<uint8_t>(random()));
        break;
      case 1:
        file.resize(at);
        break;
      case 2:
        file[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 3:
        file[at] = file[below(file.size())];
        break;
      default:
        file[at] = telling[below(std::size(telling))];
    }
  }
}

// Calls round(number) again and again for so many seconds. Returns how often.
template <class Round>
long repeat(int seconds, Round round) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  long rounds = 0;
  for (; std::chrono::steady_clock::now() < end; ++rounds) round(rounds);
  return rounds;
}

}  // namespace vologan::fuzzing
