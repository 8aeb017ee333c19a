// inflate.h by team_inflate.h, for inflate_test.cpp: a third inflater beside libdeflate and zlib.
#include <zlib.h>

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

const char* Inflater::inflate(std::span<const uint8_t> in, std::span<uint8_t> out) {
  std::vector<uint32_t> words((in.size() + 3) / 4);
  if (!in.empty()) std::memcpy(words.data(), in.data(), in.size());
  std::vector<uint8_t> exact(out.size());  // where a sanitiser sees what is written behind it
  const Problem problem = team_inflate(HostTeam{}, words.data(), static_cast<uint32_t>(in.size()), exact.data(),
                                       static_cast<int64_t>(exact.size()), state_->tables);
  std::copy(exact.begin(), exact.end(), out.begin());
  return found_instead(problem);
}

uint32_t crc32(std::span<const uint8_t> data) { return static_cast<uint32_t>(::crc32_z(0, data.data(), data.size())); }

}  // namespace vologan::depth
