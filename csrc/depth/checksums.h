// The checksums of zlib streams (Adler-32) and of PNG (CRC-32).
#pragma once

#include <cstdint>
#include <span>

namespace vologan::depth {

uint32_t adler32(std::span<const uint8_t> data);  // RFC 1950
uint32_t crc32(std::span<const uint8_t> data);    // ISO 3309

}  // namespace vologan::depth
