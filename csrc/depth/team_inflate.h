// Inflates a zlib stream (RFC 1950, RFC 1951) by a team of threads. This is the inflater for GPUs; inflate.h is the
// one for CPUs.
//
// Huffman codes can be read in one order only. So all threads read them together, each with the same bit buffer. The
// loads are broadcasts, and no value has to be passed between threads. The threads share the work that consists of
// many bytes: the copies of matches and of stored blocks, the tables, and the checksum. Every read and every write
// is checked against the end of its memory.
//
// Accepts the streams that libdeflate accepts. They go beyond RFC 1951 in four harmless ways: a code without
// symbols; a code of one symbol with either bit; 288 and 32 code lengths; and the symbols 286, 287, 30 and 31, which
// mean the same as 285 and 29.
#pragma once

#include <cstdint>

#include "team.h"

namespace vologan::depth {

// The problem that was found instead of the expected bytes.
enum class Problem : uint8_t { None, EndsEarly, GoesOn, BytesBehind, Corrupt, RunEndsEarly, RunsGoOn, RunsEndEarly };

// Returns the problem in the words of the CPU's decoder, or nullptr for Problem::None.
inline const char* found_instead(Problem problem) {
  static constexpr const char* words[] = {nullptr,
                                          "a stream that ends early",
                                          "a stream that goes on",
                                          "bytes behind the stream's end",
                                          "a corrupt stream",
                                          "a run that ends early",
                                          "runs that go on",
                                          "runs that end early"};
  return words[static_cast<int>(problem)];
}

// A reader of a stream's bits, beginning with the lowest bit of the first byte. The bytes are read as whole words,
// so the memory must hold the whole last word. Behind the end come zeros; overrun() tells whether some of them were
// taken.
class BitReader {
 public:
  VOLOGAN_HD BitReader(const uint32_t* words, uint32_t bytes) : words_(words), bytes_(bytes) { seek(0); }

  // Fills the buffer to 32 bits or more.
  VOLOGAN_HD void refill() {
    if (count_ > 32) return;
    const uint32_t word = next_ < bytes_ / 4 + (bytes_ % 4 != 0) ? words_[next_] : 0;
    ++next_;
    buffer_ |= static_cast<uint64_t>(word) << count_;
    count_ += 32;
  }
  VOLOGAN_HD uint32_t peek() const { return static_cast<uint32_t>(buffer_); }
  VOLOGAN_HD void drop(uint32_t count) {
    buffer_ >>= count;
    count_ -= count;
  }
  // Takes the next `count` bits. refill() must have loaded them.
  VOLOGAN_HD uint32_t take(uint32_t count) {
    const uint32_t bits = peek() & ((1u << count) - 1);
    drop(count);
    return bits;
  }

  // Returns the index of the first byte of which no bit was taken.
  VOLOGAN_HD uint32_t byte() const { return 4 * next_ - count_ / 8; }
  VOLOGAN_HD bool overrun() const { return byte() > bytes_; }
  VOLOGAN_HD void seek(uint32_t byte) {
    next_ = byte / 4;
    buffer_ = 0;
    count_ = 0;
    refill();
    drop(byte % 4 * 8);
  }

  VOLOGAN_HD uint32_t bytes() const { return bytes_; }
  VOLOGAN_HD uint8_t at(uint32_t byte) const { return static_cast<uint8_t>(words_[byte / 4] >> (byte % 4 * 8)); }

 private:
  const uint32_t* words_;
  uint32_t bytes_;     // fewer than 2^31, because EXR stores sizes as int32
  uint32_t next_ = 0;  // index of the next word
  uint64_t buffer_ = 0;
  uint32_t count_ = 0;  // bits in buffer_
};

VOLOGAN_HD inline uint32_t reverse_bits(uint32_t value) {
#ifdef __CUDA_ARCH__
  return __brev(value);
#else
  value = (value >> 1 & 0x55555555u) | (value & 0x55555555u) << 1;
  value = (value >> 2 & 0x33333333u) | (value & 0x33333333u) << 2;
  value = (value >> 4 & 0x0f0f0f0fu) | (value & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(value);
#endif
}

// A canonical Huffman code of lengths up to 15. Codes of up to kRootBits bits are looked up in one step. The few
// longer ones are looked up length by length.
template <int kRootBits, int kSymbols>
class HuffmanCode {
 public:
  static constexpr uint32_t kNoSymbol = 511;

  // Builds the code from the length of each symbol's code; 0 means no code. Returns false if there is no such code.
  // `lengths` must be in sync.
  template <class Team>
  VOLOGAN_HD bool build(const Team& team, const uint8_t* lengths, int symbols) {
    for (int length = team.rank(); length < 16; length += team.size()) {
      int found = 0;
      for (int symbol = 0; symbol < symbols; ++symbol) found += lengths[symbol] == length;
      count_[length] = static_cast<uint16_t>(length ? found : 0);
    }
    team.sync();
    int room = 1, code = 0, index = 0;  // room: codes of this length that no shorter code begins
    for (int length = 1; length < 16; ++length) {
      code = (code + count_[length - 1]) * 2;
      room = room * 2 - count_[length];
      if (room < 0) return false;
      if (team.rank() == 0) {
        first_[length] = static_cast<uint16_t>(code);
        index_[length] = static_cast<uint16_t>(index);
      }
      index += count_[length];
    }
    const bool single = index == 0 || (index == 1 && count_[1] == 1);
    if (room != 0 && !single) return false;
    team.sync();
    for (int length = team.rank(); length < 16; length += team.size()) {
      if (length == 0) continue;
      int at = index_[length];
      for (int symbol = 0; symbol < symbols; ++symbol) {
        if (lengths[symbol] == length) sorted_[at++] = static_cast<uint16_t>(symbol);
      }
    }
    team.sync();
    if (room != 0) {
      const uint32_t only = index ? sorted_[0] : 0;
      for (int i = team.rank(); i < 1 << kRootBits; i += team.size()) root_[i] = entry(only, 1);
    } else {
      for (int i = team.rank(); i < 1 << kRootBits; i += team.size()) root_[i] = 0;
      team.sync();
      for (int k = team.rank(); k < index; k += team.size()) fill(k, lengths[sorted_[k]]);
    }
    team.sync();
    return true;
  }

  // Takes the next code from the refilled reader. Returns its symbol, or kNoSymbol.
  VOLOGAN_HD uint32_t take(BitReader& reader) const {
    const uint32_t bits = reader.peek();
    const uint32_t found = root_[bits & ((1u << kRootBits) - 1)];
    if (found) {
      reader.drop(found >> 9);
      return found & 511;
    }
    const uint32_t reversed = reverse_bits(bits);
    for (uint32_t length = kRootBits + 1; length < 16; ++length) {
      const uint32_t k = (reversed >> (32 - length)) - first_[length];
      if (k < count_[length]) {
        reader.drop(length);
        return sorted_[index_[length] + k];
      }
    }
    return kNoSymbol;
  }

 private:
  VOLOGAN_HD static uint16_t entry(uint32_t symbol, uint32_t length) {
    return static_cast<uint16_t>(symbol | length << 9);
  }

  // Fills all entries of root_ that begin with the k-th code.
  VOLOGAN_HD void fill(int k, uint32_t length) {
    if (length > kRootBits) return;
    const uint32_t code = first_[length] + static_cast<uint32_t>(k) - index_[length];
    for (uint32_t i = reverse_bits(code) >> (32 - length); i < 1u << kRootBits; i += 1u << length) {
      root_[i] = entry(sorted_[k], length);
    }
  }

  uint16_t root_[1 << kRootBits];               // by the next bits: symbol | length << 9, or 0 for a longer code
  uint16_t sorted_[kSymbols];                   // symbols in the order of their codes
  uint16_t count_[16], first_[16], index_[16];  // by length: number of codes, first code, its index in sorted_
};

// The memory of a team, which all its threads share.
struct InflateTables {
  HuffmanCode<10, 288> literals;  // the code of literals and lengths
  HuffmanCode<8, 32> distances;   // the code of distances; before that, the code of the code lengths
  uint8_t lengths[288 + 32];
  uint32_t sums[2][kTeamThreads];
};

// Returns the Adler-32 of n bytes, which must be in sync.
template <class Team>
VOLOGAN_HD uint32_t team_adler32(const Team& team, const uint8_t* bytes, int64_t n, InflateTables& tables) {
  constexpr uint32_t modulus = 65521;
  constexpr int64_t strip = 5552;  // the most bytes whose sums of sums fit 32 bits
  const TeamRange own = team_range(team, team.rank(), n);
  uint32_t a = 0, b = 0;
  for (int64_t begin = own.begin; begin < own.end; begin += strip) {
    const int64_t end = begin + strip < own.end ? begin + strip : own.end;
    for (int64_t i = begin; i < end; ++i) {
      a += bytes[i];
      b += a;
    }
    a %= modulus;
    b %= modulus;
  }
  tables.sums[0][team.rank()] = a;
  tables.sums[1][team.rank()] = b;
  team.sync();
  uint64_t low = 1, high = 0;
  for (int k = 0; k < team.size(); ++k) {
    const TeamRange range = team_range(team, k, n);
    high = (high + static_cast<uint64_t>(range.end - range.begin) % modulus * low + tables.sums[1][k]) % modulus;
    low = (low + tables.sums[0][k]) % modulus;
  }
  team.sync();
  return static_cast<uint32_t>(high << 16 | low);
}

// Appends `length` bytes to the first `written` bytes of out. They are copied from `distance` bytes before the end.
template <class Team>
VOLOGAN_HD void copy_match(const Team& team, uint8_t* out, int64_t written, uint32_t length, uint32_t distance) {
  team.sync();  // the bytes that the other threads wrote are there
  const uint8_t* const from = out + written - distance;
  const uint32_t rank = static_cast<uint32_t>(team.rank()), size = static_cast<uint32_t>(team.size());
  if (distance >= length) {
    for (uint32_t i = rank; i < length; i += size) out[written + i] = from[i];
    return;
  }
  // The match overlaps itself: it repeats the same `distance` bytes.
  const uint32_t step = size % distance;
  uint32_t at = rank % distance;
  for (uint32_t i = rank; i < length; i += size) {
    out[written + i] = from[at];
    at += step;
    if (at >= distance) at -= distance;
  }
}

// Copies a stored block. Its length comes next in the reader.
template <class Team>
VOLOGAN_HD Problem copy_stored(const Team& team, BitReader& reader, uint8_t* out, int64_t size, int64_t& written) {
  const uint32_t header = reader.byte(), begin = header + 4;
  if (begin > reader.bytes()) return Problem::EndsEarly;
  const uint32_t length = reader.at(header) | reader.at(header + 1) << 8;
  const uint32_t inverse = reader.at(header + 2) | reader.at(header + 3) << 8;
  if ((length ^ inverse) != 0xffff) return Problem::Corrupt;
  if (length > reader.bytes() - begin) return Problem::EndsEarly;
  if (length > size - written) return Problem::GoesOn;
  for (uint32_t i = team.rank(); i < length; i += team.size()) out[written + i] = reader.at(begin + i);
  written += length;
  reader.seek(begin + length);
  return Problem::None;
}

// Builds the codes that the format fixes.
template <class Team>
VOLOGAN_HD void fixed_codes(const Team& team, InflateTables& tables) {
  for (int symbol = team.rank(); symbol < 288; symbol += team.size()) {
    tables.lengths[symbol] = symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8;
  }
  for (int symbol = team.rank(); symbol < 32; symbol += team.size()) tables.lengths[288 + symbol] = 5;
  team.sync();
  tables.literals.build(team, tables.lengths, 288);
  tables.distances.build(team, tables.lengths + 288, 32);
}

// Returns the symbol whose code length is the i-th of 19: 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, …, 1, 15.
VOLOGAN_HD constexpr int length_symbol(int i) {
  return i < 3 ? 16 + i : i == 3 ? 0 : i % 2 ? 7 - (i - 5) / 2 : 8 + (i - 4) / 2;
}

// Reads and builds the codes at the beginning of a dynamic block.
template <class Team>
VOLOGAN_HD Problem read_codes(const Team& team, BitReader& reader, InflateTables& tables) {
  uint8_t* const lengths = tables.lengths;
  reader.refill();
  const int literals = 257 + static_cast<int>(reader.take(5));
  const int distances = 1 + static_cast<int>(reader.take(5));
  const int given = 4 + static_cast<int>(reader.take(4));
  for (int i = 0; i < 19; ++i) {
    reader.refill();
    const uint32_t length = i < given ? reader.take(3) : 0;
    if (team.rank() == 0) lengths[length_symbol(i)] = static_cast<uint8_t>(length);
  }
  team.sync();
  if (!tables.distances.build(team, lengths, 19)) return Problem::Corrupt;
  uint8_t previous = 0;
  for (int i = 0; i < literals + distances;) {
    reader.refill();
    const uint32_t symbol = tables.distances.take(reader);
    if (reader.overrun()) return Problem::EndsEarly;
    if (symbol > 18 || (symbol == 16 && i == 0)) return Problem::Corrupt;
    const int repeat = static_cast<int>(symbol < 16    ? 1
                                        : symbol == 16 ? 3 + reader.take(2)
                                        : symbol == 17 ? 3 + reader.take(3)
                                                       : 11 + reader.take(7));
    if (symbol != 16) previous = static_cast<uint8_t>(symbol < 16 ? symbol : 0);
    if (repeat > literals + distances - i) return Problem::Corrupt;
    for (int k = team.rank(); k < repeat; k += team.size()) lengths[i + k] = previous;
    i += repeat;
  }
  team.sync();
  if (!tables.literals.build(team, lengths, literals)) return Problem::Corrupt;
  if (!tables.distances.build(team, lengths + literals, distances)) return Problem::Corrupt;
  return Problem::None;
}

// Expands the symbols of a block up to its end.
template <class Team>
VOLOGAN_HD Problem expand_symbols(const Team& team, BitReader& reader, const InflateTables& tables, uint8_t* out,
                                  int64_t size, int64_t& written) {
  for (;;) {
    reader.refill();
    const uint32_t symbol = tables.literals.take(reader);
    if (reader.overrun()) return Problem::EndsEarly;
    if (symbol < 256) {
      if (written == size) return Problem::GoesOn;
      if (team.rank() == 0) out[written] = static_cast<uint8_t>(symbol);
      ++written;
      continue;
    }
    if (symbol == 256) return Problem::None;
    if (symbol == tables.literals.kNoSymbol) return Problem::Corrupt;
    // Each power of two has four lengths and two distances.
    const uint32_t l = symbol - 257;
    const uint32_t extra = l < 8 || l >= 28 ? 0 : l / 4 - 1;
    const uint32_t length = (l < 8 ? 3 + l : l >= 28 ? 258 : 3 + ((4 + l % 4) << extra)) + reader.take(extra);
    reader.refill();
    uint32_t d = tables.distances.take(reader);
    if (d == tables.distances.kNoSymbol) return Problem::Corrupt;
    d = d < 29 ? d : 29;
    const uint32_t more = d < 4 ? 0 : d / 2 - 1;
    const uint32_t distance = (d < 4 ? 1 + d : 1 + ((2 + d % 2) << more)) + reader.take(more);
    if (reader.overrun()) return Problem::EndsEarly;
    if (distance > written) return Problem::Corrupt;
    if (length > size - written) return Problem::GoesOn;
    copy_match(team, out, written, length, distance);
    written += length;
  }
}

// Expands the blocks of a deflate stream to at most `size` bytes. If it returns Problem::None, the `written` bytes
// are in sync.
template <class Team>
VOLOGAN_HD Problem expand_blocks(const Team& team, BitReader& reader, uint8_t* out, int64_t size, int64_t& written,
                                 InflateTables& tables) {
  written = 0;
  for (bool last = false; !last;) {
    reader.refill();
    last = reader.take(1);
    const uint32_t kind = reader.take(2);
    Problem problem = kind == 3 ? Problem::Corrupt : Problem::None;
    if (kind == 0) problem = copy_stored(team, reader, out, size, written);
    if (kind == 1) fixed_codes(team, tables);
    if (kind == 2) problem = read_codes(team, reader, tables);
    if (problem == Problem::None && kind != 0) problem = expand_symbols(team, reader, tables, out, size, written);
    if (problem != Problem::None) return problem;
    team.sync();
  }
  return Problem::None;
}

// Inflates a whole zlib stream of `bytes` bytes to exactly `size` bytes and checks its Adler-32. If it returns
// Problem::None, the output is in sync.
template <class Team>
VOLOGAN_HD Problem team_inflate(const Team& team, const uint32_t* words, uint32_t bytes, uint8_t* out, int64_t size,
                                InflateTables& tables) {
  BitReader reader(words, bytes);
  const uint32_t method = reader.take(8), flags = reader.take(8);
  const bool dictionary = flags & 32;
  if ((method << 8 | flags) % 31 || method % 16 != 8 || method > 0x78 || dictionary) return Problem::Corrupt;
  int64_t written;
  const Problem problem = expand_blocks(team, reader, out, size, written, tables);
  if (problem != Problem::None) return problem;
  const uint32_t end = reader.byte();
  if (end + 4 > bytes) return Problem::EndsEarly;
  uint32_t expected = 0;
  for (uint32_t k = 0; k < 4; ++k) expected = expected << 8 | reader.at(end + k);
  if (team_adler32(team, out, written, tables) != expected) return Problem::Corrupt;
  if (written < size) return Problem::EndsEarly;
  return end + 4 < bytes ? Problem::BytesBehind : Problem::None;
}

}  // namespace vologan::depth
