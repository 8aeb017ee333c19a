#include "inflate.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "checksums.h"
#include "file.h"

#define VOLOGAN_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(VOLOGAN_PLAIN_LOOPS)
#define VOLOGAN_X86 1
#endif

namespace vologan::depth {

namespace {

// A table entry is looked up by the next bits of the stream. Its fields, from the lowest bit on:
//   8 bits   how many bits to drop in all
//   4 bits   how many of these are the code; the others are extra bits
//   4 bits   flags
//   16 bits  a value: the least length or distance, or one or two literals
// A code that is longer than a lookup has a second table, which lies after the first one. Its entry in the first table
// has the flag kTable. The value is then the index where the second table begins, and the 4 bits are the number of bits
// to look up in it.
constexpr uint32_t kLiteral = 1u << 15;
constexpr uint32_t kTwo = 1u << 14;    // together with kLiteral: the value holds two literals
constexpr uint32_t kTable = 1u << 13;  // the code is longer and has a second table
constexpr uint32_t kEnd = 1u << 12;    // the end of the block

constexpr uint32_t value_of(uint32_t entry) { return entry >> 16; }
constexpr uint32_t code_bits(uint32_t entry) { return entry >> 8 & 15; }

// The entry of each symbol before the length of its code is known. The symbols 286 and 287 mean the same as 285, and
// 30 and 31 the same as 29.
struct Entries {
  uint32_t literal[288], distance[32], length[19];
};
constexpr Entries kEntries = [] {
  Entries entries{};
  for (uint32_t i = 0; i < 256; ++i) entries.literal[i] = kLiteral | i << 16;
  entries.literal[256] = kEnd;
  for (uint32_t i = 0, least = 3; i < 28; ++i) {
    const uint32_t extra = i < 8 ? 0 : i / 4 - 1;
    entries.literal[257 + i] = least << 16 | extra;
    least += 1u << extra;
  }
  for (uint32_t i = 285; i < 288; ++i) entries.literal[i] = 258u << 16;
  for (uint32_t i = 0, least = 1; i < 30; ++i) {
    const uint32_t extra = i < 4 ? 0 : i / 2 - 1;
    entries.distance[i] = least << 16 | extra;
    least += 1u << extra;
  }
  entries.distance[30] = entries.distance[31] = entries.distance[29];
  for (uint32_t i = 0; i < 19; ++i) entries.length[i] = i << 16;
  return entries;
}();

constexpr int kLiteralBits = 11, kDistanceBits = 8, kLengthBits = 7;  // bits that one lookup takes

// The tables are large enough for any code of up to 15 bits (zlib's examples/enough.c counts them).
struct Tables {
  uint32_t literal[2342], distance[402];
};

// Returns the codeword after this one. Both have `bits` bits in reversed order. There must be a next one.
uint32_t next_codeword(uint32_t codeword, int bits) {
  const uint32_t all = (1u << bits) - 1;
  const uint32_t bit = std::bit_floor(codeword ^ all);  // the lowest place of the unreversed code that is 0
  return (codeword & (bit - 1)) | bit;
}

// Builds a table of 2^bits entries for the canonical code of these lengths, with the tables for longer codes behind
// it. Returns false if there is no such code. A code without symbols counts as complete, and so does one of a single
// symbol with one bit.
bool build(const uint8_t* lengths, int symbols, const uint32_t* entries, int bits, uint32_t* table) {
  uint16_t count[17] = {}, place[16];
  for (int i = 0; i < symbols; ++i) ++count[lengths[i]];
  const int unused = count[0];
  int room = 1, index = unused;
  place[0] = count[0] = 0;
  for (int length = 1; length < 16; ++length) {
    room = room * 2 - count[length];
    if (room < 0) return false;
    place[length] = static_cast<uint16_t>(index);
    index += count[length];
  }
  uint16_t sorted[288];  // by length; symbols without a code come first, so that the loop needs no branch
  for (int i = 0; i < symbols; ++i) sorted[place[lengths[i]]++] = static_cast<uint16_t>(i);
  const uint16_t* symbol = sorted + unused;
  const int used = symbols - unused;
  const auto entry = [&](uint16_t symbol, int length) {
    return entries[symbol] + static_cast<uint32_t>(length) * 0x101;
  };
  if (room != 0) {
    if (used > 1 || (used == 1 && count[1] != 1)) return false;
    std::fill_n(table, 1 << bits, entry(used ? *symbol : 0, 1));
    return true;
  }
  // Short codes come first. The table of all codes so far is doubled when the codes get one bit longer.
  uint32_t codeword = 0;
  int length = 1;
  for (;; ++length) {
    const uint32_t size = 1u << length;
    for (int left = count[length]; left; --left) {
      table[codeword] = entry(*symbol++, length);
      if (codeword == size - 1) {
        for (uint32_t filled = size; filled < 1u << bits; filled *= 2) std::copy_n(table, filled, table + filled);
        return true;
      }
      codeword = next_codeword(codeword, length);
    }
    if (length == bits) break;
    std::copy_n(table, size, table + size);
  }
  // Longer codes that begin with the same bits share a table behind the first one. It is as large as the longest of
  // them needs.
  uint32_t behind = 1u << bits, own = 0, prefix = ~0u;
  for (++length;; ++length) {
    for (int left = count[length]; left; --left) {
      if ((codeword & ((1u << bits) - 1)) != prefix) {
        prefix = codeword & ((1u << bits) - 1);
        own = behind;
        int longest = length;
        for (int codes = left; codes < 1 << (longest - bits); codes = codes * 2 + count[longest]) ++longest;
        behind += 1u << (longest - bits);
        table[prefix] = kTable | own << 16 | static_cast<uint32_t>(longest - bits) << 8 | static_cast<uint32_t>(bits);
      }
      for (uint32_t i = own + (codeword >> bits); i < behind; i += 1u << (length - bits)) {
        table[i] = entry(*symbol, length - bits);
      }
      ++symbol;
      if (codeword == (1u << length) - 1) return true;
      codeword = next_codeword(codeword, length);
    }
  }
}

// Joins two literals in one entry if the codes of both fit into one lookup.
void join_literals(uint32_t* table) {
  for (uint32_t i = 1u << kLiteralBits; i-- > 0;) {  // downwards: entry i reads one that is not joined yet
    const uint32_t first = table[i], length = first & 0xff;
    if (!(first & kLiteral)) continue;
    const uint32_t second = table[i >> length], both = length + (second & 0xff);
    if (!(second & kLiteral) || both > kLiteralBits) continue;
    table[i] = kLiteral | kTwo | both | value_of(first) << 16 | value_of(second) << 24;
  }
}

// Joining saves time if more than this many packed bytes of the stream are left.
constexpr ptrdiff_t kLongBlock = 12288;

enum class Stop { InputEnds, OutputFull, BlockEnds, Corrupt };

// The bits and the output of a stream, for a loop that keeps them in registers.
struct Cursor {
  // The next word of 8 bytes is read at `in`. The buffer may already hold the first bits of that word. They are
  // above the lowest `bits` bits of the buffer.
  const uint8_t* in;
  uint64_t buffer;
  uint32_t bits;  // only the low 8 bits count: drop() leaves the bits above them undefined
  uint8_t* out;

  // Fills the buffer to 56 bits or more. All its 64 bits are filled, but the part above `bits` will be read again.
  VOLOGAN_INLINE void refill() {
    buffer |= load_le<uint64_t>(in) << (bits & 63);
    in += 7 - (bits >> 3 & 7);
    bits |= 56;
  }
  VOLOGAN_INLINE void drop(uint32_t entry) {
    buffer >>= entry & 63;
    bits -= entry;
  }
  VOLOGAN_INLINE uint32_t peek(uint32_t count) const {
    return static_cast<uint32_t>(buffer & ((uint64_t{1} << (count & 63)) - 1));
  }
  VOLOGAN_INLINE uint32_t take(uint32_t count) {
    const uint32_t found = peek(count);
    drop(count);
    return found;
  }
  // Returns the value of an entry plus its extra bits. Drops the code and the extra bits together.
  VOLOGAN_INLINE uint32_t take_value(uint32_t entry) {
    const uint32_t extra = peek(entry) >> code_bits(entry);
    drop(entry);
    return value_of(entry) + extra;
  }
  // Returns the address of the first byte of which no bit was taken.
  VOLOGAN_INLINE const uint8_t* next_byte() const { return in - ((bits & 0xff) >> 3); }
};

// The values that stay the same while a block is inflated.
struct Bounds {
  const Tables* tables;
  const uint8_t* in_last;  // the last place where a step may begin
  const uint8_t* out_begin;
  const uint8_t* out_end;
};

// copy_near copies a match of a distance below kNear, which may overlap itself within one word.
#if defined(__GNUC__) && !defined(__clang__)

typedef uint8_t Vector __attribute__((vector_size(16)));

struct Patterns {
  alignas(16) uint8_t by[16][16];  // by distance below 16: the order that repeats the bytes before a match
  uint8_t step[16];                // how many of the 16 bytes are whole repetitions
};
constexpr Patterns kPatterns = [] {
  Patterns patterns{};
  for (int distance = 1; distance < 16; ++distance) {
    for (int i = 0; i < 16; ++i) patterns.by[distance][i] = static_cast<uint8_t>(i % distance);
    patterns.step[distance] = static_cast<uint8_t>(16 - 16 % distance);
  }
  return patterns;
}();
constexpr uint32_t kNear = 16;

VOLOGAN_INLINE void copy_near(uint8_t* to, const uint8_t* end, uint32_t distance) {
  Vector before, order;
  std::memcpy(&before, to - distance, sizeof before);
  std::memcpy(&order, kPatterns.by[distance], sizeof order);
  const Vector pattern = __builtin_shuffle(before, order);
  const uint32_t step = kPatterns.step[distance];
  do {
    std::memcpy(to, &pattern, sizeof pattern);
    std::memcpy(to + step, &pattern, sizeof pattern);
    to += 2 * step;
  } while (to < end);
}

#else

constexpr uint32_t kNear = 8;

VOLOGAN_INLINE void copy_near(uint8_t* to, const uint8_t* end, uint32_t distance) {
  if (distance == 1) return static_cast<void>(std::memset(to, to[-1], static_cast<size_t>(end - to)));
  for (; to < end; to += distance) {
    const uint8_t* from = to - distance;
    uint64_t word;
    std::memcpy(&word, from, sizeof word);
    std::memcpy(to, &word, sizeof word);
  }
}

#endif

// Copies the rest of a long match. This is a function of its own, so that its loop takes no registers from the loop
// around it.
__attribute__((noinline)) void copy_far(uint8_t* to, const uint8_t* end, uint32_t distance) {
  for (const uint8_t* from = to - distance; to < end; from += 8, to += 8) {
    uint64_t word;
    std::memcpy(&word, from, sizeof word);
    std::memcpy(to, &word, sizeof word);
  }
}

// Copies a match. Writes up to 40 bytes behind its end.
VOLOGAN_INLINE void copy_match(uint8_t* to, const uint8_t* end, uint32_t distance) {
  if (distance < kNear) return copy_near(to, end, distance);
  constexpr int most = 40;  // nearly all matches are at most this long and are copied without a branch
  for (int i = 0; i < most; i += 8) {
    uint64_t word;
    std::memcpy(&word, to - distance + i, sizeof word);
    std::memcpy(to + i, &word, sizeof word);
  }
  if (__builtin_expect(end - to > most, 0)) copy_far(to + most, end, distance);
}

VOLOGAN_INLINE uint32_t look(const Cursor& c, const Bounds& b) { return b.tables->literal[c.peek(kLiteralBits)]; }

VOLOGAN_INLINE void put_literals(Cursor& c, uint32_t entry) {
  c.drop(entry);
  const uint16_t both = static_cast<uint16_t>(value_of(entry));
  std::memcpy(c.out, &both, sizeof both);
  c.out += entry & kTwo ? 2 : 1;
}

// Reads a few literals, or fewer literals and a match. `entry` is the first entry, already looked up. On return it
// is the entry of the next step. Returns false if the block does not go on. Takes at most 70 bits, and writes at
// most 6 + 258 bytes and 40 bytes behind these.
VOLOGAN_INLINE bool step(Cursor& c, const Bounds& b, uint32_t& entry, Stop& stop) {
  uint32_t e = entry;
  if (e & kLiteral) {
    put_literals(c, e);
    e = look(c, b);
    if (e & kLiteral) {
      put_literals(c, e);
      e = look(c, b);
      if (e & kLiteral) {
        put_literals(c, e);
        entry = look(c, b);
        c.refill();
        return true;
      }
    }
    c.refill();
  }
  if (__builtin_expect(e & (kTable | kEnd), 0)) {
    if (e & kTable) {
      c.drop(kLiteralBits);
      e = b.tables->literal[value_of(e) + c.peek(code_bits(e))];
      if (e & kLiteral) {
        put_literals(c, e);
        entry = look(c, b);
        c.refill();
        return true;
      }
    }
    if (e & kEnd) {
      c.drop(e);
      stop = Stop::BlockEnds;
      return false;
    }
  }
  const uint32_t length = c.take_value(e);
  e = b.tables->distance[c.peek(kDistanceBits)];
  if (__builtin_expect(e & kTable, 0)) {
    c.drop(kDistanceBits);
    e = b.tables->distance[value_of(e) + c.peek(code_bits(e))];
  }
  const uint32_t distance = c.take_value(e);
  entry = look(c, b);  // the buffer holds these bits, so the lookup does not wait for the refill
  c.refill();
  if (__builtin_expect(distance > static_cast<size_t>(c.out - b.out_begin), 0)) {
    stop = Stop::Corrupt;
    return false;
  }
  uint8_t* const to = c.out;
  c.out += length;
  copy_match(to, c.out, distance);
  return true;
}

VOLOGAN_INLINE bool may_step(const Cursor& c, const Bounds& b, Stop& stop) {
  if (__builtin_expect(c.in <= b.in_last && c.out <= b.out_end, 1)) return true;
  stop = c.out > b.out_end ? Stop::OutputFull : Stop::InputEnds;
  return false;
}

VOLOGAN_INLINE uint32_t first_look(Cursor& c, const Bounds& b) {
  c.refill();
  return look(c, b);
}

// Runs through a block until it stops.
VOLOGAN_INLINE Stop run(Cursor& cursor, const Bounds& bounds) {
  Cursor c = cursor;
  const Bounds b = bounds;
  Stop stop{};
  uint32_t entry = first_look(c, b);
  while (may_step(c, b, stop) && step(c, b, entry, stop)) {
  }
  cursor = c;
  return stop;
}

// Runs through two blocks in turns until one of them stops. Returns which one, 0 or 1.
VOLOGAN_INLINE int run_two(Cursor& cursor0, const Bounds& bounds0, Cursor& cursor1, const Bounds& bounds1, Stop& stop) {
  Cursor c0 = cursor0, c1 = cursor1;
  const Bounds b0 = bounds0, b1 = bounds1;
  uint32_t entry0 = first_look(c0, b0), entry1 = first_look(c1, b1);
  int stopped;
  for (;;) {
    stopped = 0;
    if (!may_step(c0, b0, stop) || !step(c0, b0, entry0, stop)) break;
    stopped = 1;
    if (!may_step(c1, b1, stop) || !step(c1, b1, entry1, stop)) break;
  }
  cursor0 = c0;
  cursor1 = c1;
  return stopped;
}

// The loops in two versions: for processors with shifts by any register and shuffles of bytes, and for all
// processors.
struct Loops {
  Stop (*run)(Cursor&, const Bounds&);
  int (*run_two)(Cursor&, const Bounds&, Cursor&, const Bounds&, Stop&);
};
#define VOLOGAN_LOOPS(name, attribute)                                                                   \
  attribute Stop run_##name(Cursor& c, const Bounds& b) { return run(c, b); }                            \
  attribute int run_two_##name(Cursor& c0, const Bounds& b0, Cursor& c1, const Bounds& b1, Stop& stop) { \
    return run_two(c0, b0, c1, b1, stop);                                                                \
  }                                                                                                      \
  constexpr Loops loops_##name = {run_##name, run_two_##name};

VOLOGAN_LOOPS(plain, )
#ifdef VOLOGAN_X86
VOLOGAN_LOOPS(bmi2, __attribute__((target("bmi,bmi2,ssse3"))))
#endif

const Loops& best_loops() {
#ifdef VOLOGAN_X86
  if (__builtin_cpu_supports("bmi2") && __builtin_cpu_supports("ssse3")) return loops_bmi2;
#endif
  return loops_plain;
}

// Lookups and steps that begin inside the input read fewer bytes behind it than this.
constexpr ptrdiff_t kReadBehind = 40;
// A block's header has up to 14 + 19 · 3 + 320 · 14 bits, which are fewer than 570 bytes.
constexpr ptrdiff_t kLongestHeader = 570 + kReadBehind;

constexpr const char* kEndsEarly = "a stream that ends early";
constexpr const char* kGoesOn = "a stream that goes on";
constexpr const char* kCorrupt = "a corrupt stream";

// A stream while it is inflated.
class Stream {
 public:
  void begin(const InflateJob& job) {
    in_end_ = job.in.data() + job.in.size();
    in_tail_ = last_ = false;
    more_ = job.more;
    if (job.in.size() < 6) return stop(kCorrupt);
    const uint32_t header = load_be<uint16_t>(job.in.data());
    // Method 8, a window of at most 2^15 bytes, no dictionary.
    if (header % 31 != 0 || (header & 0x0f20) != 0x0800 || header >> 12 > 7) return stop(kCorrupt);
    cursor_ = {job.in.data() + 2, 0, 0, job.out.data()};
    bounds_ = {&tables_, nullptr, job.out.data(), job.out.data() + job.out.size()};
    to_codes();
  }

  // Whether the stream is inside a block of codes. If not, it has come to its end, with or without a problem.
  bool running() const { return running_; }
  const char* problem() const { return problem_; }

  Cursor& cursor() { return cursor_; }
  const Bounds& bounds() const { return bounds_; }

  // Goes on after a loop has stopped.
  void stopped(Stop why) {
    switch (why) {
      case Stop::InputEnds:
        return in_tail_ || ended() ? stop(kEndsEarly) : to_tail();
      case Stop::OutputFull:
        return stop(kGoesOn);
      case Stop::Corrupt:
        return stop(kCorrupt);
      case Stop::BlockEnds:
        return to_codes();
    }
  }

 private:
  void stop(const char* problem) {
    problem_ = problem;
    running_ = false;
  }

  // Whether more bits were taken than there are.
  bool ended() const { return cursor_.next_byte() > in_end_; }
  ptrdiff_t left() const { return in_end_ - cursor_.next_byte(); }

  // Copies the end of the input to a buffer in which the loops may read on behind the end.
  void to_tail() {
    const uint8_t* next = cursor_.next_byte();
    const ptrdiff_t rest = left();
    std::memcpy(tail_, next, static_cast<size_t>(rest));
    std::memset(tail_ + rest, 0, kReadBehind);
    cursor_.bits &= 7;  // the bits that are left of the byte before
    cursor_.buffer = cursor_.peek(cursor_.bits);
    cursor_.in = tail_;
    in_end_ = tail_ + rest;
    bounds_.in_last = in_end_ + 7;  // `in` is at most here while no bit behind the end was taken
    in_tail_ = true;
  }

  // Reads headers and stored blocks up to the next block of codes, or to the end of the stream.
  void to_codes() {
    while (!last_) {
      if (ended()) return stop(kEndsEarly);
      if (!in_tail_ && left() <= kLongestHeader) to_tail();
      cursor_.refill();
      last_ = cursor_.take(1);
      const uint32_t type = cursor_.take(2);
      if (type == 3) return stop(kCorrupt);
      if (const char* problem = type == 0 ? copy_stored() : type == 1 ? use_fixed_codes() : read_codes()) {
        return stop(problem);
      }
      if (type == 0) continue;
      if (left() > kLongBlock) join_literals(tables_.literal);
      if (!in_tail_) bounds_.in_last = in_end_ - kReadBehind;
      running_ = true;
      return;
    }
    stop(trailer());
  }

  const char* copy_stored() {
    const uint8_t* next = cursor_.next_byte();
    if (in_end_ - next < 4) return kEndsEarly;
    const ptrdiff_t count = load_le<uint16_t>(next);
    if ((count ^ load_le<uint16_t>(next + 2)) != 0xffff) return kCorrupt;
    next += 4;
    if (count > in_end_ - next) return kEndsEarly;
    if (count > bounds_.out_end - cursor_.out) return kGoesOn;
    std::memcpy(cursor_.out, next, static_cast<size_t>(count));
    cursor_ = {next + count, 0, 0, cursor_.out + count};
    return nullptr;
  }

  const char* use_fixed_codes() {
    if (fixed_) return nullptr;  // still built: streams as short as a line of background all use the fixed codes
    uint8_t lengths[288 + 32];
    std::fill_n(lengths, 144, 8);
    std::fill_n(lengths + 144, 112, 9);
    std::fill_n(lengths + 256, 24, 7);
    std::fill_n(lengths + 280, 8, 8);
    std::fill_n(lengths + 288, 32, 5);
    build_codes(lengths, 288, 32);
    fixed_ = true;
    return nullptr;
  }

  const char* read_codes() {
    static constexpr uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    Cursor c = cursor_;
    const int literals = static_cast<int>(c.take(5)) + 257, distances = static_cast<int>(c.take(5)) + 1;
    const int symbols = literals + distances, given = static_cast<int>(c.take(4)) + 4;
    uint8_t own[19] = {};
    for (int i = 0; i < given; ++i) {
      if (i % 16 == 0) c.refill();
      own[order[i]] = static_cast<uint8_t>(c.take(3));
    }
    uint32_t table[1 << kLengthBits];
    if (!build(own, 19, kEntries.length, kLengthBits, table)) return kCorrupt;
    uint8_t lengths[288 + 32 + 138];  // the last repetition may reach behind the 288 + 32 lengths
    int i = 0;
    while (i < symbols) {
      c.refill();
      if (c.next_byte() > in_end_) return kEndsEarly;
      for (int k = 0; k < 4 && i < symbols; ++k) {  // at most 14 bits each
        const uint32_t entry = table[c.peek(kLengthBits)], symbol = value_of(entry);
        c.drop(entry);
        if (symbol < 16) {
          lengths[i++] = static_cast<uint8_t>(symbol);
          continue;
        }
        if (symbol == 16 && i == 0) return kCorrupt;
        const uint8_t repeated = symbol == 16 ? lengths[i - 1] : 0;
        const uint32_t times = symbol == 16 ? 3 + c.take(2) : symbol == 17 ? 3 + c.take(3) : 11 + c.take(7);
        std::memset(lengths + i, repeated, times);
        i += static_cast<int>(times);
      }
    }
    if (i != symbols) return kCorrupt;
    cursor_ = c;
    return build_codes(lengths, literals, distances);
  }

  const char* build_codes(const uint8_t* lengths, int literals, int distances) {
    fixed_ = false;
    const bool sound = build(lengths + literals, distances, kEntries.distance, kDistanceBits, tables_.distance) &&
                       build(lengths, literals, kEntries.literal, kLiteralBits, tables_.literal);
    return sound ? nullptr : kCorrupt;
  }

  // Checks the end of the stream behind the last block. Returns the problem, or nullptr.
  const char* trailer() const {
    if (cursor_.out > bounds_.out_end) return kGoesOn;
    if (ended() || cursor_.out < bounds_.out_end || left() < 4) return kEndsEarly;
    const std::span<const uint8_t> out(bounds_.out_begin, bounds_.out_end);
    if (load_be<uint32_t>(cursor_.next_byte()) != adler32(out)) return kCorrupt;
    return left() > 4 && !more_ ? "bytes behind the stream's end" : nullptr;
  }

  Cursor cursor_;
  Bounds bounds_;
  const uint8_t* in_end_;
  const char* problem_;
  bool running_, last_, in_tail_, more_;
  bool fixed_ = false;  // whether the tables hold the fixed codes
  Tables tables_;
  uint8_t tail_[kLongestHeader + kReadBehind];
};

}  // namespace

struct Inflater::State {
  Stream streams[2];
};

Inflater::Inflater() : state_(std::make_unique<State>()) {}
Inflater::~Inflater() = default;
Inflater::Inflater(Inflater&&) noexcept = default;
Inflater& Inflater::operator=(Inflater&&) noexcept = default;

namespace {

const Loops& loops() {
  static const Loops& best = best_loops();
  return best;
}

const char* finish(Stream& stream) {
  while (stream.running()) stream.stopped(loops().run(stream.cursor(), stream.bounds()));
  return stream.problem();
}

}  // namespace

const char* Inflater::inflate(const InflateJob& job) {
  Stream& stream = state_->streams[0];
  stream.begin(job);
  return finish(stream);
}

std::array<const char*, 2> Inflater::inflate(const InflateJob& a, const InflateJob& b) {
  auto& streams = state_->streams;
  streams[0].begin(a);
  streams[1].begin(b);
  while (streams[0].running() && streams[1].running()) {
    Stop stop{};
    const int stopped =
        loops().run_two(streams[0].cursor(), streams[0].bounds(), streams[1].cursor(), streams[1].bounds(), stop);
    streams[stopped].stopped(stop);
  }
  return {finish(streams[0]), finish(streams[1])};
}

}  // namespace vologan::depth
