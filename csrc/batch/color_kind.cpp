#include "color_kind.h"

#include <algorithm>
#include <string_view>

namespace vologan::data {

namespace {

// Whether a JPEG has four components and no marker of Adobe before its first scan.
bool is_cmyk_without_marker(std::span<const uint8_t> file) {
  int components = 0;
  for (size_t at = 2; at + 4 <= file.size();) {
    if (file[at] != 0xff) return false;  // broken
    const uint8_t marker = file[at + 1];
    if (marker == 0xff) {  // a byte that fills
      ++at;
      continue;
    }
    if (marker == 0xda) return components == 4;
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {  // without a length
      at += 2;
      continue;
    }
    const size_t length = size_t{file[at + 2]} << 8 | file[at + 3], end = at + 2 + length;
    if (length < 2 || end > file.size()) return false;  // broken
    const auto segment = file.subspan(at + 4, length - 2);
    const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (frame && segment.size() > 5) components = segment[5];
    constexpr std::string_view adobe = "Adobe";
    if (marker == 0xee && segment.size() >= adobe.size() && std::equal(adobe.begin(), adobe.end(), segment.begin())) {
      return false;
    }
    at = end;
  }
  return false;  // broken
}

bool begins(std::span<const uint8_t> file, std::string_view magic) {
  return file.size() >= magic.size() &&
         std::equal(magic.begin(), magic.end(), file.begin(),
                    [](char wanted, uint8_t found) { return static_cast<uint8_t>(wanted) == found; });
}

}  // namespace

const char* refused_color(std::span<const uint8_t> file) {
  if (begins(file, "\x89PNG\r\n\x1a\n")) return nullptr;
  if (!begins(file, "\xff\xd8\xff")) return "not a JPEG or PNG image";
  return is_cmyk_without_marker(file) ? "a CMYK JPEG without Adobe's marker" : nullptr;
}

}  // namespace vologan::data
