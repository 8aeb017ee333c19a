// Decodes many depth images on several threads.
#pragma once

#include <exception>

#include "decode.h"

namespace vologan::depth {

// Bytes in memory or, if there are none, the file at the path `name`.
struct Source {
  std::string name;
  std::optional<std::span<const uint8_t>> bytes;
};

// Reads a whole regular file into `bytes`. Throws std::system_error if the file cannot be read. Throws Error if it
// is larger than max_bytes or is not a regular file.
void read_file(const std::string& path, const Limits& limits, std::vector<uint8_t>& bytes);

// Decodes sources[i] into planes[i] on at most `threads` threads, including the calling one. Returns for each image
// the exception that it threw, or null. Images behind the first one that failed may be left alone. NotNative does
// not count as a failure.
//
// Threads are started for each call. A thread pool that outlives the call would be dead in a process forked from
// this one, such as a DataLoader's worker. A thread costs only 0.02 ms, a tenth of an image.
std::vector<std::exception_ptr> decode_batch(const std::vector<Source>& sources, const std::vector<Plane>& planes,
                                             const std::optional<std::string>& channel, int threads,
                                             const Limits& limits);

}  // namespace vologan::depth
