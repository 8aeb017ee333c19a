// Inflates records from stdin: packed size, expected size and packed bytes. Prints for each record the CRC-32 of the
// output, or the problem. Each record is inflated again beside the record before it, which must change nothing.
#include "inflate.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "checksums.h"

using namespace vologan::depth;

struct Record {
  std::vector<uint8_t> in, out;
  const char* problem = nullptr;

  void expect(size_t size) { out.assign(size + output_tail, 0); }
  std::span<uint8_t> exact() { return {out.data(), out.size() - output_tail}; }
  InflateJob job() { return {in, exact()}; }

  void check_again(const char* found, std::vector<uint8_t> before) {
    const bool same = found && problem ? std::strcmp(found, problem) == 0 : found == problem;
    if (!same || (!problem && std::memcmp(before.data(), out.data(), exact().size()) != 0)) {
      std::printf("beside another one: %s\n", found ? found : "other bytes");
      std::exit(1);
    }
  }
};

int main() {
  Inflater inflater;
  Record last;
  last.expect(0);
  uint32_t sizes[2];
  while (std::fread(sizes, sizeof sizes, 1, stdin) == 1) {
    Record record;
    record.in.resize(sizes[0]);
    record.expect(sizes[1]);
    if (std::fread(record.in.data(), 1, record.in.size(), stdin) != record.in.size()) return 1;
    record.problem = inflater.inflate(record.job());
    record.problem ? std::printf("%s\n", record.problem) : std::printf("%u\n", crc32(record.exact()));
    if (last.in.empty()) last.problem = inflater.inflate(last.job());
    for (const bool first : {true, false}) {
      const std::vector<uint8_t> alone = record.out, other = last.out;
      const auto found =
          first ? inflater.inflate(record.job(), last.job()) : inflater.inflate(last.job(), record.job());
      record.check_again(found[first ? 0 : 1], alone);
      last.check_again(found[first ? 1 : 0], other);
    }
    last = std::move(record);
  }
}
