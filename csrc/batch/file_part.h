// Reads a file, or a part of one, and compares its bytes with the checksum that was recorded.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "checksums.h"

namespace vologan::data {

// A part of an open file. open() checks that the file holds it. The part is read, not mapped: if a mapped file
// shrinks, the process is killed.
class FilePart {
 public:
  FilePart() = default;
  FilePart(const FilePart&) = delete;
  FilePart& operator=(const FilePart&) = delete;
  ~FilePart() {
    if (file_ >= 0) ::close(file_);
  }

  // Opens `size` bytes from `offset` on; size −1 means all bytes from there on. `crc` is the CRC-32 of these bytes, or
  // −1 if it is unknown. Throws std::runtime_error, which names the path.
  void open(std::string path, int64_t offset, int64_t size, int64_t crc) {
    path_ = std::move(path);
    offset_ = offset;
    crc_ = crc;
    file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // opening a pipe must not wait
    struct stat status;
    if (file_ < 0 || ::fstat(file_, &status) != 0) fail(std::strerror(errno));
    if (!S_ISREG(status.st_mode)) fail("not a regular file");  // a device may have no end
    const int64_t length = status.st_size;
    size_ = size == -1 ? length - offset : size;
    if (offset < 0 || size_ < 0 || offset > length || size_ > length - offset) {
      fail("expected " + std::to_string(size) + " bytes from " + std::to_string(offset) + " on, found a file of " +
           std::to_string(length));
    }
    if (size_ > kLargest) {
      fail("expected at most " + std::to_string(kLargest) + " bytes, found " + std::to_string(size_));
    }
  }

  int64_t size() const { return size_; }

  // Reads the whole part into `data`, which has room for size() bytes. Throws std::runtime_error, which names the
  // path, also for other bytes than the recorded ones.
  void read(uint8_t* data) const {
    for (int64_t done = 0; done < size_;) {
      const ssize_t got = ::pread(file_, data + done, size_ - done, offset_ + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(std::strerror(errno));
      if (got == 0) fail("the file became shorter while it was read");
      done += got;
    }
    if (crc_ != -1 && depth::crc32({data, static_cast<size_t>(size_)}) != crc_) {
      fail("these are not the bytes that were recorded");
    }
  }

  // Throws std::runtime_error, which names the path, if there is a reason.
  void refuse(const char* reason) const {
    if (reason) fail(reason);
  }

 private:
  static constexpr int64_t kLargest = int64_t{1} << 30;  // as in data/records.py

  [[noreturn]] void fail(const std::string& reason) const { throw std::runtime_error(path_ + ": " + reason); }

  std::string path_;
  int file_ = -1;
  int64_t offset_ = 0, size_ = 0, crc_ = -1;
};

}  // namespace vologan::data
