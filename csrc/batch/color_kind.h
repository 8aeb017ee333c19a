// Says which colour files no loader reads, so that all loaders refuse the same files.
//
// open_color of vologan_fast/data/pixels.py is the definition. It reads JPEG and PNG. It refuses a JPEG of CMYK without
// Adobe's marker: then nothing says whether 0 is no ink or all ink, and libraries differ. It refuses a JPEG without an
// end marker, which was cut, and an image of too many pixels. DALI's decoders would read some of these files, and files
// of several other formats.
#pragma once

#include <cstdint>
#include <span>

namespace vologan::data {

// Returns the reason why the file is refused, or nullptr. A file that is broken may be accepted here: decoding it
// fails.
const char* refused_color(std::span<const uint8_t> file, int64_t max_pixels);

}  // namespace vologan::data
