#include "color_kind.h"

#include <algorithm>
#include <iterator>
#include <string_view>

namespace vologan::data {

namespace {

constexpr const char* kTooLarge = "an image of more pixels than --data.max-pixels";

int64_t big_endian(std::span<const uint8_t> bytes) {
  int64_t value = 0;
  for (const uint8_t byte : bytes) value = value << 8 | byte;
  return value;
}

bool is_too_large(int64_t height, int64_t width, int64_t max_pixels) { return height && width > max_pixels / height; }

// Returns the reason why a JPEG is refused, from the markers before its first scan and the end marker behind it.
const char* refused_jpeg(std::span<const uint8_t> file, int64_t max_pixels) {
  int components = 0;
  bool has_adobe = false;
  for (size_t at = 2; at + 4 <= file.size();) {
    if (file[at] != 0xff) return nullptr;  // broken
    const uint8_t marker = file[at + 1];
    if (marker == 0xff) {  // a byte that fills
      ++at;
      continue;
    }
    if (marker == 0xda) {
      if (components == 4 && !has_adobe) return "a CMYK JPEG without Adobe's marker";
      constexpr uint8_t end[] = {0xff, 0xd9};
      const auto scan = file.subspan(at);
      const bool ends = std::find_end(scan.begin(), scan.end(), std::begin(end), std::end(end)) != scan.end();
      return ends ? nullptr : "a JPEG that ends early";
    }
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {  // without a length
      at += 2;
      continue;
    }
    const size_t length = size_t{file[at + 2]} << 8 | file[at + 3], end = at + 2 + length;
    if (length < 2 || end > file.size()) return nullptr;  // broken
    const auto segment = file.subspan(at + 4, length - 2);
    const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (frame && segment.size() > 5) {
      components = segment[5];
      const int64_t height = big_endian(segment.subspan(1, 2)), width = big_endian(segment.subspan(3, 2));
      if (is_too_large(height, width, max_pixels)) return kTooLarge;
    }
    constexpr std::string_view adobe = "Adobe";
    has_adobe |=
        marker == 0xee && segment.size() >= adobe.size() && std::equal(adobe.begin(), adobe.end(), segment.begin());
    at = end;
  }
  return nullptr;  // broken
}

bool begins(std::span<const uint8_t> file, std::string_view magic) {
  return file.size() >= magic.size() &&
         std::equal(magic.begin(), magic.end(), file.begin(),
                    [](char wanted, uint8_t found) { return static_cast<uint8_t>(wanted) == found; });
}

}  // namespace

const char* refused_color(std::span<const uint8_t> file, int64_t max_pixels) {
  if (begins(file, "\x89PNG\r\n\x1a\n")) {
    if (file.size() < 24) return nullptr;  // broken
    const int64_t width = big_endian(file.subspan(16, 4)), height = big_endian(file.subspan(20, 4));
    return is_too_large(height, width, max_pixels) ? kTooLarge : nullptr;
  }
  if (!begins(file, "\xff\xd8\xff")) return "not a JPEG or PNG image";
  return refused_jpeg(file, max_pixels);
}

}  // namespace vologan::data
