// Many depth images on several threads.
#pragma once

#include <exception>

#include "decode.h"

namespace vologan::depth {

// Bytes in memory, or, without them, the file at the path `name`.
struct Source {
  std::string name;
  std::optional<std::span<const uint8_t>> bytes;
};

// A whole regular file. Throws std::system_error where it cannot be read, Error where it is larger than
// max_bytes or not a regular one.
void read_file(const std::string& path, const Limits& limits, std::vector<uint8_t>& bytes);

// Decodes sources[i] into planes[i] on at most `threads` threads, the calling one among them. Returns what each image
// threw, or null. Images behind the first that failed (NotNative is no failure) may be left alone.
//
// Threads are started for each call: a pool that outlives it would be dead in a process forked from this one, such as
// a DataLoader's worker, and each thread costs but 0.02 ms, a tenth of an image.
std::vector<std::exception_ptr> decode_batch(const std::vector<Source>& sources, const std::vector<Plane>& planes,
                                             const std::optional<std::string>& channel, int threads,
                                             const Limits& limits);

}  // namespace vologan::depth
