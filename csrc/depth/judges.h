// Other libraries that read the same streams and files. The fuzzer compares our decoder with them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "decode.h"

namespace vologan::depth {

// "libdeflate 1.14, OpenEXR 3.1.5": the judges and their versions.
std::string judges();

// Whether libdeflate inflates the zlib stream, all of it, to exactly out.size() bytes.
bool inflate_by_libdeflate(std::span<const uint8_t> stream, std::span<uint8_t> out);

// Whether OpenEXR decodes the channel of this scanline EXR. `out` holds info.height × info.width values; where OpenEXR
// refuses the file, they are unspecified. For files that our decoder decoded: OpenEXR gets none whose sizes are not
// known to be sound.
bool decode_by_openexr(std::span<const uint8_t> file, const Info& info, const Channel& channel, float* out);

}  // namespace vologan::depth
