// Implements inflate.h by team_inflate.h, so that inflate_test.cpp can test the latter.
#include <cstring>
#include <vector>

#include "inflate.h"
#include "team_inflate.h"

namespace vologan::depth {

struct Inflater::State {
  InflateTables tables;
};

Inflater::Inflater() : state_(std::make_unique<State>()) {}
Inflater::~Inflater() = default;

const char* Inflater::inflate(const InflateJob& job) {
  const std::span<const uint8_t> in = job.in;
  const std::span<uint8_t> out = job.out;
  std::vector<uint32_t> words((in.size() + 3) / 4);
  if (!in.empty()) std::memcpy(words.data(), in.data(), in.size());
  std::vector<uint8_t> exact(out.size());  // of exact size: a sanitiser reports a write behind it
  const Problem problem = team_inflate(HostTeam{}, words.data(), static_cast<uint32_t>(in.size()), exact.data(),
                                       static_cast<int64_t>(exact.size()), state_->tables);
  std::copy(exact.begin(), exact.end(), out.begin());
  return found_instead(problem);
}

std::array<const char*, 2> Inflater::inflate(const InflateJob& a, const InflateJob& b) {
  return {inflate(a), inflate(b)};
}

}  // namespace vologan::depth
