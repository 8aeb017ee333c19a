// Compares every level of the row kernels with the scalar definitions: at every length around the vector widths, at
// odd addresses, and for every half. Prints the levels that this processor has.
#include "rows.h"

#include <cstdio>
#include <cstring>
#include <random>

using namespace vologan::depth;
using Bytes = std::vector<uint8_t>;

int failures = 0;

Bytes random_bytes(size_t n) {
  static std::mt19937 random(1);
  Bytes bytes(n);
  // Some arrays have only few different values: Paeth's order of preference matters only for equal neighbours.
  const uint32_t mask = random() % 2 ? 0xff : 0x83;
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() & mask);
  return bytes;
}

void expect_equal(const char* what, const RowKernels& kernels, int64_t n, const Bytes& found, const Bytes& expected) {
  if (found == expected) return;
  ++failures;
  std::printf("%s, %s: differs at %lld bytes\n", kernels.level, what, static_cast<long long>(n));
}

void test_reconstruct(const RowKernels& kernels, const RowKernels& definition) {
  for (int64_t n = 2; n <= 1300; n += 2) {
    const size_t at = n % 5;  // any alignment
    const Bytes in = random_bytes(at + n);
    Bytes found(at + n + 1), expected(at + n + 1);
    kernels.reconstruct(in.data() + at, n, found.data() + at);
    definition.reconstruct(in.data() + at, n, expected.data() + at);
    expect_equal("reconstruct", kernels, n, found, expected);
  }
}

void test_halves_to_floats(const RowKernels& kernels, const RowKernels& definition) {
  Bytes halves(2 * 65536);
  for (size_t i = 0; i < 65536; ++i) {
    halves[2 * i] = static_cast<uint8_t>(i);
    halves[2 * i + 1] = static_cast<uint8_t>(i >> 8);
  }
  for (size_t at = 0; at < 20; ++at) {  // loads at odd addresses, too, and every length of the tail
    const int64_t count = 65535 - static_cast<int64_t>(at);
    std::vector<float> found(count), expected(count);
    kernels.halves_to_floats(halves.data() + at, count, found.data());
    definition.halves_to_floats(halves.data() + at, count, expected.data());
    if (std::memcmp(found.data(), expected.data(), count * sizeof(float)) == 0) continue;
    ++failures;
    std::printf("%s, halves_to_floats: differs from byte %zu on\n", kernels.level, at);
  }
}

// Undoes four lines below another line. The `gap` bytes between lines must stay as they are.
void test_filters(const RowKernels& kernels, const RowKernels& definition) {
  for (int64_t n = 2; n <= 300; n += 2) {
    for (int64_t gap = 1; gap <= 3; ++gap) {
      const int64_t stride = n + gap;
      const Bytes lines = random_bytes(gap + 5 * stride);
      const auto undone = [&](auto undo) {
        Bytes copy = lines;
        undo(copy.data() + gap);
        return copy;
      };
      const auto compare = [&](const char* name, auto kernel) {
        expect_equal(name, kernels, n, undone([&](uint8_t* first) { kernel(kernels, first); }),
                     undone([&](uint8_t* first) { kernel(definition, first); }));
      };
      compare("undo_sub", [&](const RowKernels& k, uint8_t* first) { k.undo_sub(first, n); });
      compare("undo_average_4",
              [&](const RowKernels& k, uint8_t* first) { k.undo_average_4(first + stride, stride, first, n); });
      compare("undo_paeth_4",
              [&](const RowKernels& k, uint8_t* first) { k.undo_paeth_4(first + stride, stride, first, n); });
    }
  }
}

int main() {
  const auto levels = row_kernel_levels();
  for (const RowKernels& kernels : levels) {
    std::printf("%s\n", kernels.level);
    test_reconstruct(kernels, levels.back());
    test_halves_to_floats(kernels, levels.back());
    test_filters(kernels, levels.back());
  }
  return failures != 0;
}
