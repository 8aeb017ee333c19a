// A file in memory together with its name: bounds-checked access, and errors that name the part of the file.
#pragma once

#include <bit>
#include <cstring>
#include <sstream>

#include "decode.h"

namespace vologan::depth {

// Returns the parts as one string, each printed by <<.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// Returns text from the file in quotes, cut to 80 bytes and escaped. An error message thus stays one readable line.
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

// Loads a little-endian T at any alignment.
template <class T>
T load_le(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// Loads a big-endian T at any alignment.
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

// The part of a file that an error message names, perhaps with a name that stands in the file. Every access passes a
// Part. It becomes text only when an error is thrown.
struct Part {
  std::string_view what;
  std::optional<std::string_view> name = std::nullopt;

  Part(const char* what) : what(what) {}
  Part(const std::string& what) : what(what) {}
  Part(std::string_view what, std::string_view name) : what(what), name(name) {}

  std::string to_string() const { return name ? text(what, ' ', quoted(*name)) : std::string(what); }
};

// A file in memory. Error messages use `name` for it. The bytes and the name must outlive the File.
struct File {
  std::span<const uint8_t> data;
  const std::string& name;

  int64_t size() const { return static_cast<int64_t>(data.size()); }

  // Throws Error with the message "NAME: part: expected …, found …".
  [[noreturn]] void fail(const Part& part, const std::string& expected, const std::string& found) const {
    throw Error(text(name, ": ", part.to_string(), ": expected ", expected, ", found ", found));
  }

  // Returns a pointer to data[offset, offset + count). Throws Error about `part` if the file does not hold these
  // bytes.
  const uint8_t* at(int64_t offset, int64_t count, const Part& part) const {
    if (offset < 0 || count < 0 || offset > size() || count > size() - offset) {
      fail(part, text(count, " bytes at offset ", offset), text("a file of ", size(), " bytes"));
    }
    return data.data() + offset;
  }

  // Throws Error if an image has no pixels or is larger than the limits. A pixel has `pixel_bytes` bytes in all its
  // channels.
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
