// Inflates what comes in on stdin: records of packed size, expected size and packed bytes. Prints for each the CRC-32 of
// the output, or the problem.
#include "inflate.h"

#include <cstdio>
#include <vector>

using namespace vologan::depth;

int main() {
  Inflater inflater;
  uint32_t sizes[2];
  while (std::fread(sizes, sizeof sizes, 1, stdin) == 1) {
    std::vector<uint8_t> in(sizes[0]), out(sizes[1] + output_tail);
    if (std::fread(in.data(), 1, in.size(), stdin) != in.size()) return 1;
    const std::span<uint8_t> exact(out.data(), sizes[1]);
    const char* problem = inflater.inflate(in, exact);
    problem ? std::printf("%s\n", problem) : std::printf("%u\n", crc32(exact));
  }
}
