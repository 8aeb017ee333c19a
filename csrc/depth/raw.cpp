// NPY and PFM, the formats without compression.
//
// NPY (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) begins with a magic string, a
// version, the length of the header, and a padded Python dictionary {'descr': '<f4', 'fortran_order': False,
// 'shape': (480, 640), }. The samples follow.
//
// PFM (http://netpbm.sourceforge.net/doc/pfm.html) begins with "Pf width height scale" and one white space. Then
// follow float32 rows from the bottom up. They are little-endian if the scale is negative. The magnitude of the
// scale has no agreed meaning and is ignored: Pillow and the Middlebury tools ignore it too, OpenCV divides by it, and
// ImageMagick multiplies by it. "PF" has three samples per pixel and is read if they are equal everywhere.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

#include "formats.h"
#include "rows.h"

namespace vologan::depth {

namespace {

// Returns the number of bytes of all samples. Throws Error if they are beyond the limits.
int64_t samples_bytes(const File& file, const Raw& raw, const Limits& limits) {
  const Info& info = raw.info;
  const int64_t pixel_bytes = sample_bytes(info.channels[0].type) * raw.samples;
  file.check_size("header", info.width, info.height, pixel_bytes, limits);
  return info.width * info.height * pixel_bytes;
}

// Throws Error if the file does not hold its samples, or if a second image of the format `magic` follows. Some bytes
// behind the samples are ignored, as other readers do. As many bytes as the image has are a sign of another size.
void check_samples(const File& file, const Raw& raw, const Limits& limits, std::string_view magic) {
  const Info& info = raw.info;
  const int64_t expected = samples_bytes(file, raw, limits), found = file.size() - raw.offset;
  const auto size = [&] { return text(expected, " bytes for ", info.width, " × ", info.height); };
  if (found < expected) file.fail("samples", size(), text(found));
  if (found == expected) return;
  const auto* behind = reinterpret_cast<const char*>(file.data.data()) + raw.offset + expected;
  if (std::string_view(behind, static_cast<size_t>(found - expected)).starts_with(magic)) {
    file.fail("samples", "one image in the file", text("a second one behind the first: save each to its own file"));
  }
  if (found - expected >= expected) file.fail("samples", size(), text(found, ", enough for several such images"));
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
    while (!rest.empty() && std::string_view(" \t\n\r\f").find(rest[0]) != std::string_view::npos)
      rest.remove_prefix(1);
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
    if (!accept("u")) accept("b");  // Python 2 may write them
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
    accept("L");  // Python 2
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

// Returns the type that NumPy calls `descr`: "<f4", "|u1", "f4" or "float32". Without a mark, the order is
// little-endian.
SampleType npy_type(const File& file, std::string_view descr) {
  static constexpr std::pair<std::string_view, SampleType> types[] = {
      {"f2", SampleType::Float16}, {"f4", SampleType::Float32}, {"f8", SampleType::Float64}, {"u1", SampleType::Uint8},
      {"u2", SampleType::Uint16},  {"u4", SampleType::Uint32},  {"u8", SampleType::Uint64},  {"i1", SampleType::Int8},
      {"i2", SampleType::Int16},   {"i4", SampleType::Int32},   {"i8", SampleType::Int64}};
  const bool marked = !descr.empty() && std::string_view("<>=|").find(descr[0]) != std::string_view::npos;
  const std::string_view code = descr.substr(marked ? 1 : 0);
  for (const auto& [name, type] : types) {
    if (code == name || code == sample_name(type)) return type;
  }
  const bool mask = code == "b1" || code == "bool";
  file.fail("NPY header", "a type of <f2 <f4 <f8 |u1 <u2 <u4 <u8 |i1 <i2 <i4 <i8, or > for <",
            quoted(descr) + (mask          ? ", a mask of booleans"
                             : code == "O" ? ", pickled objects"
                                           : ""));
}

// Returns the height and width of a shape of two sizes. Sizes of 1 behind and before them are ignored: (H, W, 1),
// (1, H, W), (1, 1, H, W). The shape (1, n, 1) is one row.
std::pair<int64_t, int64_t> npy_size(const File& file, const Shape& shape) {
  const auto& size = shape.size;
  size_t begin = 0, end = shape.count;
  if (end <= size.size()) {
    while (end - begin > 2 && size[end - 1] == 1) --end;
    while (end - begin > 2 && size[begin] == 1) ++begin;
    if (end - begin == 2) return {size[begin], size[begin + 1]};
  }
  std::string found = "(";
  for (size_t i = 0; i < shape.count && i < size.size(); ++i) found += text(i ? ", " : "", size[i]);
  file.fail("NPY header", "shape (H, W), (H, W, 1) or (1, H, W), one depth image",
            found + (shape.count > size.size() ? ", …)" : ")"));
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
      if (literal.accept("[") || literal.accept("(")) {
        file.fail("NPY header", "one number per pixel", "a structured type: save the field that holds the depth");
      }
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
  raw.samples = 1;
  raw.big_endian = descr->starts_with('>');
  raw.fortran_order = *fortran_order;
  raw.bottom_up = false;
  check_samples(file, raw, limits, npy_magic);
}

namespace {

constexpr std::string_view spaces = " \t\n\r\v\f";

// Returns the position behind the white space and the comments (# to the end of the line) from `position` on.
size_t end_of_spaces(std::string_view all, size_t position) {
  position = std::min(all.find_first_not_of(spaces, position), all.size());
  while (position < all.size() && all[position] == '#') {
    position = std::min(all.find_first_of("\r\n", position), all.size());
    position = std::min(all.find_first_not_of(spaces, position), all.size());
  }
  return position;
}

}  // namespace

void parse_pfm(const File& file, const Limits& limits, Raw& raw) {
  const auto* chars = reinterpret_cast<const char*>(file.data.data());
  const std::string_view all(chars, file.data.size());
  size_t position = 2;
  // Returns the next word. White space and comments separate words. Photoshop writes width and height on lines of their
  // own, Windows programs end lines by CR LF.
  const auto token = [&](const char* what) {
    position = end_of_spaces(all, position);
    const std::string_view word = all.substr(position, 32);
    const size_t end = word.find_first_of(spaces);
    if (end == word.npos && position + word.size() == all.size()) file.fail("PFM header", what, "its end");
    if (end == word.npos) file.fail("PFM header", text(what, " with white space behind it"), quoted(word));
    position += end;
    return word.substr(0, end);
  };
  const auto number = [&](const char* what, auto& value) {
    const std::string_view word = token(what);
    std::string digits(word.substr(word.starts_with('+') ? 1 : 0));
    std::replace(digits.begin(), digits.end(), ',', '.');  // the decimal comma of some locales
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size()) file.fail("PFM header", what, quoted(word));
  };
  raw.info.format = "pfm";
  raw.info.compression = "none";
  raw.info.set_channel(SampleType::Float32);
  number("a width", raw.info.width);
  number("a height", raw.info.height);
  double scale = 0;
  number("a scale other than 0", scale);
  if (!std::isfinite(scale) || scale == 0) file.fail("PFM header", "a scale other than 0", text(scale));
  raw.samples = all[1] == 'F' ? 3 : 1;
  raw.big_endian = scale > 0;
  raw.fortran_order = false;
  raw.bottom_up = true;

  // One white space ends the header. Some writers put spaces or a CR before the line end. The first sample may begin
  // with the same bytes. If nothing stands behind the samples, their number decides.
  const size_t exact = all.size() - samples_bytes(file, raw, limits),
               line_end = all.find_first_not_of(" \t\r", position);
  const bool longer = line_end != all.npos && all[line_end] == '\n' && exact != position + 1;
  const size_t begin = (longer ? line_end : position) + 1;
  if (exact < all.size() && exact > begin && end_of_spaces(all, begin) != begin) {
    file.fail("PFM header", "one line end behind the scale",
              "more white space or a comment, or bytes behind the samples");
  }
  raw.offset = static_cast<int64_t>(begin);
  check_samples(file, raw, limits, all.substr(0, 3));
}

namespace {

// Returns one of the three equal samples of each pixel of a row of "PF". Throws Error if they differ.
const uint8_t* grey_row(const File& file, const uint8_t* samples, int64_t width, int64_t row, Scratch& scratch) {
  constexpr int64_t bytes = sizeof(float);
  scratch.grey.resize(static_cast<size_t>(width * bytes));
  for (int64_t x = 0; x < width; ++x, samples += 3 * bytes) {
    if (std::memcmp(samples, samples + bytes, bytes) != 0 || std::memcmp(samples, samples + 2 * bytes, bytes) != 0) {
      file.fail("samples", "one depth per pixel, or red, green and blue that are equal",
                text("colour: they differ in column ", x, " of row ", row, " from the bottom"));
    }
    std::memcpy(scratch.grey.data() + x * bytes, samples, bytes);
  }
  return scratch.grey.data();
}

}  // namespace

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
    const uint8_t* grey = raw.samples == 1 ? samples : grey_row(file, samples, target.width, row, scratch);
    store_row(target, row, type, raw.big_endian, grey, scratch.row);
    samples += target.width * raw.samples * sample_bytes(type);
  }
}

}  // namespace vologan::depth
