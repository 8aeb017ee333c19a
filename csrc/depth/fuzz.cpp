// A mutation fuzzer for the decoder, under address and undefined-behaviour sanitisers:
//
//   make fuzz                                        # builds it, and runs it on tests/depth/fuzz_corpus.py, as CI does
//   build/fuzz/csrc/depth/depth_fuzz 60 1 FILE…      # seconds, seed, whole files to begin from
//
// Each round changes, inserts or drops some bytes of one file, decodes it if its headers still hold, twice into memory
// of different content: whatever decode() calls decoded must be the same both times. Ends at the first failure with the
// file that caused it in ./crash.bin.
#include <sanitizer/common_interface_defs.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include "batch.h"

using namespace vologan::depth;
using Bytes = std::vector<uint8_t>;

namespace {

constexpr Limits limits{1 << 20, 1 << 23};

const Bytes* current = nullptr;  // for the sanitisers' last words

void save_current() {
  std::ofstream("crash.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(current->data()), static_cast<std::streamsize>(current->size()));
}

void mutate(Bytes& file, std::mt19937_64& random) {
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

// Whether the file decoded; aborts where two decodes of it differ.
bool run(const Bytes& file, Decoder& decoder) {
  try {
    const Info info = probe(file, "fuzz", limits);
    const size_t count = static_cast<size_t>(info.width * info.height);
    std::vector<float> first(count, 123.0f), second(count, -456.0f);
    decoder.decode(file, "fuzz", std::nullopt, Plane::packed(first.data(), info.height, info.width), limits);
    decoder.decode(file, "fuzz", std::nullopt, Plane::packed(second.data(), info.height, info.width), limits);
    if (std::memcmp(first.data(), second.data(), count * sizeof(float)) != 0) {
      save_current();
      std::abort();
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "usage: depth_fuzz SECONDS SEED FILE...\n");
    return 2;
  }
  std::vector<Bytes> files;
  for (int i = 3; i < count; ++i) read_file(arguments[i], {}, files.emplace_back());
  std::mt19937_64 random(std::strtoull(arguments[2], nullptr, 10));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
  __sanitizer_set_death_callback(save_current);
  Decoder decoder;
  for (const Bytes& file : files) {  // as they are: with 0 seconds this repeats a crash
    current = &file;
    run(file, decoder);
  }
  long rounds = 0, decoded = 0;
  for (; std::chrono::steady_clock::now() < end; ++rounds) {
    Bytes file = files[random() % files.size()];
    mutate(file, random);
    current = &file;
    decoded += run(file, decoder);
  }
  std::printf("%ld files, %ld of them decoded\n", rounds, decoded);
}
