// A mutation fuzzer for the decoder, under address and undefined-behaviour sanitisers:
//
//   make fuzz                                        # builds it, and runs it on tests/depth/fuzz_corpus.py, as CI does
//   build/fuzz/csrc/depth/depth_fuzz 60 1 FILE…      # seconds, seed, whole files to begin from
//
// Each round changes, inserts or drops some bytes of one file. If its headers are still
// valid, the file is decoded twice, into memory of different content. If decode() succeeds, both results must be the
// same. For an EXR, the code that GPUs run must give the same result, and so must OpenEXR if it decodes the file.
//
// Every other round changes one zlib stream of a file, and then gives it the right checksum for its new output. So
// there are streams that no library would write. All inflaters must accept or refuse the same streams: the CPU's, for a
// stream alone and for two streams side by side, the GPU's, and libdeflate. An accepted stream is then decoded as the
// chunk of an EXR.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

#include "batch.h"
#include "chunk_batch.h"
#include "fuzzing.h"
#include "inflate.h"
#include "judges.h"

using namespace vologan::depth;
using namespace vologan::fuzzing;

namespace {

constexpr Limits limits{1 << 20, 1 << 23};

using Floats = std::vector<float>;

bool same(const Floats& a, const Floats& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

// Decodes the file by chunks. Returns whether that succeeded.
bool decode_chunks(const Bytes& file, const Info& info, Floats& image) {
  static HostChunkDecoder decoder;
  try {
    ChunkBatch batch;
    batch.add(file, "fuzz", std::nullopt, {image.data(), info.height, info.width, info.width, 1}, limits);
    batch.check(0, decoder.decode(batch).data());
    return true;
  } catch (const Error&) {
    return false;
  }
}

// EXRs that we decoded, by what OpenEXR made of them.
struct {
  long same = 0, refused = 0;
} by_openexr;

// OpenEXR may be stricter than we are, but what it decodes must be the same: to the bit, except for the payload of a
// NaN.
void judge_by_openexr(const Bytes& file, const Info& info, const Floats& decoded) {
  Floats judged(decoded.size(), 789.0f);
  const Channel& channel = info.channels[*info.choice.channel];
  if (!decode_by_openexr(file, info, channel, judged.data())) {
    ++by_openexr.refused;
    return;
  }
  ++by_openexr.same;
  for (size_t i = 0; i < decoded.size(); ++i) {
    if (std::isnan(decoded[i]) ? !std::isnan(judged[i]) : std::memcmp(&decoded[i], &judged[i], sizeof(float)) != 0) {
      fail("OpenEXR differs");
    }
  }
}

// Whether the file decoded; aborts where two decodes of it differ.
bool run(const Bytes& file, Decoder& decoder) {
  Info info;
  Floats first, second, by_chunks;
  bool decoded = false;
  try {
    info = probe(file, "fuzz", std::nullopt, limits);
    const size_t count = static_cast<size_t>(info.width * info.height);
    first.assign(count, 123.0f), second.assign(count, -456.0f), by_chunks.assign(count, 789.0f);
    decoder.decode(file, "fuzz", std::nullopt, Plane::packed(first.data(), info.height, info.width), limits);
    decoder.decode(file, "fuzz", std::nullopt, Plane::packed(second.data(), info.height, info.width), limits);
    if (!same(first, second)) fail("two decodes differ");
    decoded = true;
  } catch (const Error&) {
    if (first.empty()) return false;  // not even its headers hold
  }
  if (info.format == "exr") {
    if (!info.choice.equal.empty()) {  // a picture, which is not decoded by chunks
      if (decoded) judge_by_openexr(file, info, first);
      return decoded;
    }
    if (decode_chunks(file, info, by_chunks) != decoded) fail("only one of both decoders decodes it");
    if (decoded && !same(first, by_chunks)) fail("both decoders differ");
    if (decoded) judge_by_openexr(file, info, first);
  }
  return decoded;
}

struct Stream {
  Bytes bytes;
  int64_t size;  // inflated
};

// A stream that repeats a crash is saved as a file: "zlib", the size, the stream.
constexpr std::string_view stream_magic = "zlib";

Bytes file_of(const Bytes& stream, int64_t size) {
  Bytes file(stream_magic.begin(), stream_magic.end());
  const auto* bytes = reinterpret_cast<const uint8_t*>(&size);
  file.insert(file.end(), bytes, bytes + sizeof size);
  file.insert(file.end(), stream.begin(), stream.end());
  return file;
}

std::optional<Stream> stream_of(const Bytes& file) {
  const size_t header = stream_magic.size() + sizeof(int64_t);
  if (file.size() < header || !std::equal(stream_magic.begin(), stream_magic.end(), file.begin())) return std::nullopt;
  Stream stream{{file.begin() + header, file.end()}, 0};
  std::memcpy(&stream.size, file.data() + stream_magic.size(), sizeof stream.size);
  return stream;
}

// Adds the ZIP chunks of an EXR.
void add_streams(const Bytes& file, std::vector<Stream>& streams) {
  try {
    const Info info = probe(file, "seed");
    if (info.format != "exr") return;
    ChunkBatch batch;
    batch.add(file, "seed", std::nullopt, {nullptr, info.height, info.width, 0, 0});
    Bytes packed(static_cast<size_t>(batch.packed_bytes()));
    batch.pack(packed.data());
    for (const ChunkJob& job : batch.jobs()) {
      const auto begin = packed.begin() + job.packed;
      if (job.packing == Packing::Zlib) streams.push_back({{begin, begin + job.packed_bytes}, job.bytes});
    }
  } catch (const Error&) {  // a kind that is not read natively
  }
}

std::vector<uint32_t> words_of(const Bytes& bytes) {
  std::vector<uint32_t> words((bytes.size() + 3) / 4);
  if (!bytes.empty()) std::memcpy(words.data(), bytes.data(), bytes.size());
  return words;
}

template <class Value>
void append(Bytes& to, const Value& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

// The EXR of one line of halves, ZIPS, whose only chunk is this stream of `size` bytes inflated.
Bytes exr_of(const Bytes& stream, int64_t size) {
  Bytes file;
  append(file, uint32_t{20000630});  // magic number
  append(file, uint32_t{2});         // version
  const auto attribute = [&](std::string_view name, std::string_view type, const auto&... values) {
    for (const std::string_view word : {name, type}) {
      file.insert(file.end(), word.begin(), word.end());
      file.push_back(0);
    }
    append(file, static_cast<int32_t>((sizeof values + ...)));
    (append(file, values), ...);
  };
  const std::array<int32_t, 4> window{0, 0, static_cast<int32_t>(size / 2) - 1, 0};
  // Its name is Y, its type half, it is not perceptually linear, and it holds every pixel. Then the list ends.
  attribute("channels", "chlist", std::array<char, 2>{'Y'}, std::array<int32_t, 4>{1, 0, 1, 1}, uint8_t{0});
  attribute("compression", "compression", uint8_t{2});
  attribute("dataWindow", "box2i", window);
  attribute("displayWindow", "box2i", window);
  attribute("lineOrder", "lineOrder", uint8_t{0});
  attribute("pixelAspectRatio", "float", 1.0f);
  attribute("screenWindowCenter", "v2f", std::array<float, 2>{});
  attribute("screenWindowWidth", "float", 1.0f);
  file.push_back(0);
  append(file, static_cast<uint64_t>(file.size() + sizeof(uint64_t)));  // where the chunk begins: line, bytes, stream
  append(file, int32_t{0});
  append(file, static_cast<int32_t>(stream.size()));
  file.insert(file.end(), stream.begin(), stream.end());
  return file;
}

// A sound stream as a file. One that is not shorter than its content would be taken for the content itself.
void run_as_exr(const Bytes& stream, int64_t size) {
  if (size == 0 || size % 2 != 0 || static_cast<int64_t>(stream.size()) >= size) return;
  static Decoder decoder;
  const Bytes file = exr_of(stream, size);
  watch(file);
  if (!run(file, decoder)) fail("a sound stream is refused as the chunk of an EXR");
}

// Whether all inflaters accept the stream; aborts where they differ.
bool inflate_by_all(const Bytes& stream, int64_t size, InflateTables& tables) {
  static Inflater inflater;
  static Stream other;  // the stream before
  const Bytes file = file_of(stream, size);
  watch(file);
  const size_t n = static_cast<size_t>(size);
  Bytes expected(n + output_tail), beside(n + output_tail), others(static_cast<size_t>(other.size) + output_tail);
  const char* const problem = inflater.inflate({stream, {expected.data(), n}});
  const auto check = [&](const char* who, bool accepts, const Bytes& found) {
    const bool same =
        accepts == !problem && (!accepts || std::equal(expected.begin(), expected.begin() + size, found.begin()));
    if (!same) fail(who);
  };
  const InflateJob job{stream, {beside.data(), n}};
  const InflateJob before{other.bytes, {others.data(), static_cast<size_t>(other.size)}};
  check("beside another stream it is inflated differently", !inflater.inflate(before, job)[1], beside);
  check("before another stream it is inflated differently", !inflater.inflate(job, before)[0], beside);
  Bytes found(n);
  const std::vector<uint32_t> words = words_of(stream);
  check("the GPU's inflater differs",
        team_inflate(HostTeam{}, words.data(), static_cast<uint32_t>(stream.size()), found.data(), size, tables) ==
            Problem::None,
        found);
  check("libdeflate differs", inflate_by_libdeflate(stream, found), found);
  other = {stream, size};
  if (!problem) run_as_exr(stream, size);
  return !problem;
}

bool run_stream(Bytes& stream, int64_t size) {
  static InflateTables tables;
  if (inflate_by_all(stream, size, tables)) return true;
  // The blocks of the stream may still be sound. With their end, their size and their checksum they become a sound
  // stream.
  if (stream.size() < 3) return false;
  const std::vector<uint32_t> words = words_of(stream);
  BitReader reader(words.data(), static_cast<uint32_t>(stream.size()));
  reader.seek(2);
  Bytes out(size_t{1} << 16);
  int64_t written;
  const int64_t room = static_cast<int64_t>(out.size());
  if (expand_blocks(HostTeam{}, reader, out.data(), room, written, tables) != Problem::None) return false;
  const uint32_t sum = team_adler32(HostTeam{}, out.data(), written, tables);
  stream.resize(reader.byte());
  stream[0] = 0x78, stream[1] = 0x9c;
  for (const int shift : {24, 16, 8, 0}) stream.push_back(static_cast<uint8_t>(sum >> shift));
  if (!inflate_by_all(stream, written, tables)) fail("sound blocks are refused");
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "usage: depth_fuzz SECONDS SEED FILE...\n");
    return 2;
  }
  std::vector<Bytes> files;
  std::vector<Stream> streams;
  for (int i = 3; i < count; ++i) {
    read_file(arguments[i], {}, files.emplace_back());
    add_streams(files.back(), streams);
  }
  std::printf("fuzz: judges: %s\n", judges().c_str());
  std::fflush(stdout);
  Random random(std::strtoull(arguments[2], nullptr, 10));
  save_when_it_fails();
  Decoder decoder;
  for (const Bytes& file : files) {  // unchanged: with 0 seconds this repeats a crash
    watch(file);
    if (std::optional<Stream> stream = stream_of(file)) {
      run_stream(stream->bytes, stream->size);
    } else {
      run(file, decoder);
    }
  }
  long decoded = 0, accepted = 0;
  const long rounds = repeat(std::atoi(arguments[1]), [&](long number) {
    const bool whole = number % 2 == 0 || streams.empty();
    const Stream* stream = whole ? nullptr : &streams[random() % streams.size()];
    Bytes bytes = whole ? files[random() % files.size()] : stream->bytes;
    mutate(bytes, random);
    if (whole) {
      watch(bytes);
      decoded += run(bytes, decoder);
    } else {
      accepted += run_stream(bytes, stream->size);
    }
  });
  std::printf("%ld rounds; %ld files decoded, %ld streams accepted\n", rounds, decoded, accepted);
  std::printf("EXRs that we decoded: %ld the same by OpenEXR, %ld refused by it\n", by_openexr.same,
              by_openexr.refused);
  if (by_openexr.same == 0 && by_openexr.refused > 0) fail("OpenEXR decoded nothing, so it has judged nothing");
}
