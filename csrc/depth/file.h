// A file in memory that knows its name: loads inside its bounds, and errors that say where.
#pragma once

#include <bit>
#include <cstring>
#include <sstream>

#include "decode.h"

namespace vologan::depth {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// Text from the file, cut and escaped so that an error message stays one readable line.
inline std::string quoted(std::string_view raw) {
  static const char* const digits = "0123456789abcdef";
  std::string safe = "'";
  for (const unsigned char c : raw.substr(0, 80)) {
    if (c >= 0x20 && c < 0x7f) {
      safe += static_cast<char>(c);
    } else {
      safe += {'\\', 'x', digits[c >> 4], digits[c & 15]};
    }
  }
  return safe + (raw.size() > 80 ? "…'" : "'");
}

static_assert(std::endian::native == std::endian::little, "the loads assume a little-endian processor");

template <class T>
T load_le(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

template <class T>
T load_be(const uint8_t* bytes) {
  if constexpr (sizeof(T) == 1) {
    return load_le<T>(bytes);
  } else if constexpr (sizeof(T) == 2) {
    return std::bit_cast<T>(__builtin_bswap16(load_le<uint16_t>(bytes)));
  } else if constexpr (sizeof(T) == 4) {
    return std::bit_cast<T>(__builtin_bswap32(load_le<uint32_t>(bytes)));
  } else {
    return std::bit_cast<T>(__builtin_bswap64(load_le<uint64_t>(bytes)));
  }
}

// What of a file an error speaks of, perhaps by a name that stands in the file. Every access says it, so it becomes
// text only in an error.
struct Part {
  std::string_view what;
  std::optional<std::string_view> name = std::nullopt;

  Part(const char* what) : what(what) {}
  Part(const std::string& what) : what(what) {}
  Part(std::string_view what, std::string_view name) : what(what), name(name) {}

  std::string to_string() const { return name ? text(what, ' ', quoted(*name)) : std::string(what); }
};

struct File {
  std::span<const uint8_t> data;
  const std::string& name;

  int64_t size() const { return static_cast<int64_t>(data.size()); }

  [[noreturn]] void fail(const Part& part, const std::string& expected, const std::string& found) const {
    throw Error(text(name, ": ", part.to_string(), ": expected ", expected, ", found ", found));
  }

  // data[offset, offset + count), which `part` needs.
  const uint8_t* at(int64_t offset, int64_t count, const Part& part) const {
    if (offset < 0 || count < 0 || offset > size() || count > size() - offset) {
      fail(part, text(count, " bytes at offset ", offset), text("a file of ", size(), " bytes"));
    }
    return data.data() + offset;
  }

  // Refuses an image that has no pixels or is larger than the limits.
  void check_size(const Part& part, int64_t width, int64_t height, int64_t pixel_bytes, const Limits& limits) const {
    const auto size = [&] { return text(width, " × ", height); };
    if (width < 1 || height < 1) fail(part, "at least one pixel", size());
    if (width > limits.max_pixels / height) fail(part, text("at most ", limits.max_pixels, " pixels"), size());
    if (pixel_bytes > limits.max_bytes / (width * height)) {
      fail(part, text("at most ", limits.max_bytes, " bytes decoded"),
           text(size(), " of ", pixel_bytes, " bytes each"));
    }
  }
};

}  // namespace vologan::depth
