// The SIMD rows against their scalar twins: every length around the vector widths, every half.
#include "rows.h"

#include <cstdio>
#include <cstring>
#include <random>

using namespace vologan::depth;

int main() {
  int failures = 0;
  std::mt19937 random(1);
  for (int64_t n = 2; n <= 1300; n += 2) {
    std::vector<uint8_t> in(n), fast(n, 1), plain(n, 2);
    for (uint8_t& byte : in) byte = static_cast<uint8_t>(random());
    reconstruct(in.data(), n, fast.data());
    reconstruct_scalar(in.data(), n, plain.data());
    if (fast != plain) failures += std::printf("reconstruct differs at %lld bytes\n", static_cast<long long>(n));
  }
  std::vector<uint16_t> halves(65536 + 7);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  for (size_t first = 0; first < 8; ++first) {  // the tail behind the last whole vector, and unaligned loads
    const size_t count = halves.size() - first;
    const uint8_t* in = reinterpret_cast<const uint8_t*>(halves.data() + first);
    std::vector<float> fast(count), plain(count);
    halves_to_floats(in, static_cast<int64_t>(count), fast.data());
    halves_to_floats_scalar(in, static_cast<int64_t>(count), plain.data());
    if (std::memcmp(fast.data(), plain.data(), count * sizeof(float)) != 0) {
      failures += std::printf("halves_to_floats differs from %zu on\n", first);
    }
  }
  return failures != 0;
}
