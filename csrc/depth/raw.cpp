// NPY and PFM, the formats without compression.
//
// NPY (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) begins with a magic string, a
// version, the length of the header, and a padded Python dictionary {'descr': '<f4', 'fortran_order': False,
// 'shape': (480, 640), }. The samples follow.
//
// PFM (http://netpbm.sourceforge.net/doc/pfm.html) begins with "Pf width height scale" and one white space. Then
// follow float32 rows from the bottom up. They are little-endian if the scale is negative. The magnitude of the
// scale has no agreed meaning and is ignored.
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

#include "formats.h"
#include "rows.h"

namespace vologan::depth {

namespace {

// Throws Error if the file does not end with its samples. A shorter file was cut off, and a longer one is not what
// its header claims.
void check_samples(const File& file, const Raw& raw, const Limits& limits) {
  const Info& info = raw.info;
  const int64_t pixel_bytes = sample_bytes(info.channels[0].type);
  file.check_size("header", info.width, info.height, pixel_bytes, limits);
  const int64_t expected = info.width * info.height * pixel_bytes;
  if (expected != file.size() - raw.offset) {
    file.fail("samples", text(expected, " bytes for ", info.width, " × ", info.height), text(file.size() - raw.offset));
  }
}

struct Shape {
  size_t count = 0;
  std::array<int64_t, 8> size;  // the first sizes; the tuple may have more
};

// A reader for the few Python literals of an NPY header.
struct Literal {
  const File& file;
  std::string_view rest;

  [[noreturn]] void fail(const std::string& expected) const {
    file.fail("NPY header", expected, rest.empty() ? "its end" : quoted(rest.substr(0, 24)));
  }
  void skip_space() {
    while (!rest.empty() && std::string_view(" \t\n\r").find(rest[0]) != std::string_view::npos) rest.remove_prefix(1);
  }
  bool accept(std::string_view word) {
    skip_space();
    if (!rest.starts_with(word)) return false;
    rest.remove_prefix(word.size());
    return true;
  }
  void expect(std::string_view word) {
    if (!accept(word)) fail(quoted(word));
  }
  std::string_view string() {
    skip_space();
    if (rest.empty() || (rest[0] != '\'' && rest[0] != '"')) fail("a string");
    const size_t end = rest.find(rest[0], 1);
    if (end == std::string_view::npos) fail("a string that ends");
    const std::string_view value = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
    return value;
  }
  int64_t integer() {
    skip_space();
    int64_t value = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (error != std::errc() || value < 0) fail("a size");
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
    return value;
  }
  Shape tuple() {
    Shape values;
    expect("(");
    while (!accept(")")) {
      const int64_t value = integer();
      if (values.count < values.size.size()) values.size[values.count] = value;
      ++values.count;
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    return values;
  }
};

SampleType npy_type(const File& file, std::string_view descr) {
  static constexpr std::pair<std::string_view, SampleType> types[] = {
      {"f2", SampleType::Float16}, {"f4", SampleType::Float32}, {"f8", SampleType::Float64}, {"u1", SampleType::Uint8},
      {"u2", SampleType::Uint16},  {"u4", SampleType::Uint32},  {"u8", SampleType::Uint64},  {"i1", SampleType::Int8},
      {"i2", SampleType::Int16},   {"i4", SampleType::Int32},   {"i8", SampleType::Int64}};
  for (const auto& [code, type] : types) {
    const bool ordered = descr.starts_with('<') || descr.starts_with('>');
    if ((ordered || (sample_bytes(type) == 1 && descr.starts_with('|'))) && descr.substr(1) == code) return type;
  }
  file.fail("NPY header", "a type of <f2 <f4 <f8 |u1 <u2 <u4 <u8 |i1 <i2 <i4 <i8, or > for <", quoted(descr));
}

// Returns the height and width of a shape (H, W), (H, W, 1) or (1, H, W). The shape (1, n, 1) is one row.
std::pair<int64_t, int64_t> npy_size(const File& file, const Shape& shape) {
  const auto& [count, size] = shape;
  if (count == 2) return {size[0], size[1]};
  if (count == 3 && size[2] == 1) return {size[0], size[1]};
  if (count == 3 && size[0] == 1) return {size[1], size[2]};
  std::string found = "(";
  for (size_t i = 0; i < count && i < size.size(); ++i) found += text(i ? ", " : "", size[i]);
  file.fail("NPY header", "shape (H, W), (H, W, 1) or (1, H, W)", found + (count > size.size() ? ", …)" : ")"));
}

}  // namespace

void parse_npy(const File& file, const Limits& limits, Raw& raw) {
  const int version = file.at(6, 2, "NPY header")[0];
  if (version < 1 || version > 3) file.fail("NPY header", "version 1, 2 or 3", text(version));
  const int64_t length_bytes = version == 1 ? 2 : 4;
  const uint8_t* length = file.at(8, length_bytes, "NPY header");
  const int64_t header_bytes = version == 1 ? load_le<uint16_t>(length) : load_le<uint32_t>(length);
  const uint8_t* header = file.at(8 + length_bytes, header_bytes, "NPY header");

  Literal literal{file, {reinterpret_cast<const char*>(header), static_cast<size_t>(header_bytes)}};
  std::optional<std::string_view> descr;
  std::optional<Shape> shape;
  std::optional<bool> fortran_order;
  literal.expect("{");
  while (!literal.accept("}")) {
    const std::string_view key = literal.string();
    literal.expect(":");
    if (key == "descr" && !descr) {
      if (literal.accept("[")) file.fail("NPY header", "one number per pixel", "a structured type");
      descr = literal.string();
    } else if (key == "shape" && !shape) {
      shape = literal.tuple();
    } else if (key == "fortran_order" && !fortran_order) {
      fortran_order = literal.accept("True");
      if (!*fortran_order) literal.expect("False");
    } else {
      file.fail("NPY header", "'descr', 'fortran_order' and 'shape', each once", quoted(key));
    }
    if (!literal.accept(",")) {
      literal.expect("}");
      break;
    }
  }
  literal.skip_space();
  if (!literal.rest.empty()) literal.fail("nothing behind the dictionary");
  if (!descr || !shape || !fortran_order) file.fail("NPY header", "'descr', 'fortran_order' and 'shape'", "not all");

  raw.info.format = "npy";
  raw.info.compression = "none";
  raw.info.set_channel(npy_type(file, *descr));
  std::tie(raw.info.height, raw.info.width) = npy_size(file, *shape);
  raw.offset = 8 + length_bytes + header_bytes;
  raw.big_endian = descr->starts_with('>');
  raw.fortran_order = *fortran_order;
  raw.bottom_up = false;
  check_samples(file, raw, limits);
}

void parse_pfm(const File& file, const Limits& limits, Raw& raw) {
  const auto is_space = [](uint8_t c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  if (file.data[1] == 'F') file.fail("PFM header", "'Pf' (grey)", "'PF' (colour)");
  int64_t position = 2;
  const auto token = [&](const char* what) {
    while (position < file.size() && is_space(file.data[position])) ++position;
    const int64_t begin = position;
    while (position < file.size() && position - begin < 32 && !is_space(file.data[position])) ++position;
    const std::string_view word(reinterpret_cast<const char*>(file.data.data()) + begin, position - begin);
    if (position == file.size() || word.empty()) file.fail("PFM header", what, "its end");
    return word;
  };
  const auto size = [&](const char* what) {
    const std::string_view word = token(what);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size()) file.fail("PFM header", what, quoted(word));
    return value;
  };
  raw.info.format = "pfm";
  raw.info.compression = "none";
  raw.info.set_channel(SampleType::Float32);
  raw.info.width = size("a width");
  raw.info.height = size("a height");
  const std::string_view word = token("a scale");
  double scale = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), scale);
  if (error != std::errc() || end != word.data() + word.size() || !std::isfinite(scale) || scale == 0) {
    file.fail("PFM header", "a scale other than 0", quoted(word));
  }
  raw.big_endian = scale > 0;
  raw.fortran_order = false;
  raw.bottom_up = true;
  raw.offset = position + 1;
  check_samples(file, raw, limits);
}

void decode_raw(const File& file, const Raw& raw, const Plane& out, Scratch& scratch) {
  Plane target = out;
  if (raw.fortran_order) target = {out.data, out.width, out.height, out.column_stride, out.row_stride};
  if (raw.bottom_up) {
    target.data += (out.height - 1) * out.row_stride;
    target.row_stride = -out.row_stride;
  }
  const SampleType type = raw.info.channels[0].type;
  const uint8_t* samples = file.data.data() + raw.offset;
  for (int64_t row = 0; row < target.height; ++row) {
    store_row(target, row, type, raw.big_endian, samples, scratch.row);
    samples += target.width * sample_bytes(type);
  }
}

}  // namespace vologan::depth
