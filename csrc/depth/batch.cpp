#include "batch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <new>
#include <system_error>
#include <thread>

#include "file.h"

namespace vologan::depth {

namespace {

struct Descriptor {
  int number;
  ~Descriptor() { ::close(number); }
};

[[noreturn]] void fail_with_errno(int error, const std::string& path) {
  throw std::system_error(error, std::generic_category(), path);
}

struct Worker {
  Decoder decoder;
  std::vector<uint8_t> file;  // kept from image to image

  void decode(const Source& source, const Plane& plane, const std::optional<std::string>& channel,
              const Limits& limits) {
    if (!source.bytes) read_file(source.name, limits, file);
    decoder.decode(source.bytes.value_or(file), source.name, channel, plane, limits);
  }
};

}  // namespace

void read_file(const std::string& path, const Limits& limits, std::vector<uint8_t>& bytes) {
  // O_NONBLOCK: opening a pipe must not wait for its other end.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status{};
  if (file.number < 0 || ::fstat(file.number, &status) != 0) fail_with_errno(errno, path);
  if (S_ISDIR(status.st_mode)) fail_with_errno(EISDIR, path);
  if (!S_ISREG(status.st_mode)) throw Error(text(path, ": file: expected a regular file, found another kind"));
  if (status.st_size > limits.max_bytes) {
    throw Error(text(path, ": file: expected at most ", limits.max_bytes, " bytes, found ", status.st_size));
  }
  bytes.resize(static_cast<size_t>(status.st_size));
  size_t read = 0;
  while (read < bytes.size()) {
    const ssize_t count = ::read(file.number, bytes.data() + read, bytes.size() - read);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_with_errno(errno, path);
    if (count == 0) break;  // the file has become shorter meanwhile: the decoder will report the missing part
    read += static_cast<size_t>(count);
  }
  bytes.resize(read);
}

std::vector<std::exception_ptr> decode_batch(const std::vector<Source>& sources, const std::vector<Plane>& planes,
                                             const std::optional<std::string>& channel, int threads,
                                             const Limits& limits) {
  std::vector<std::exception_ptr> errors(sources.size());
  std::atomic<size_t> next{0};
  std::atomic<size_t> first_failed{sources.size()};
  const auto work = [&](Worker& worker) {
    for (size_t i = next++; i < first_failed; i = next++) {
      try {
        worker.decode(sources[i], planes[i], channel, limits);
      } catch (const NotNative&) {
        errors[i] = std::current_exception();
      } catch (...) {
        errors[i] = std::current_exception();
        size_t before = first_failed;
        while (i < before && !first_failed.compare_exchange_weak(before, i)) {
        }
      }
    }
  };
  const size_t helpers = std::min(sources.size(), static_cast<size_t>(threads)) - (sources.empty() ? 0 : 1);
  std::vector<std::jthread> pool;
  try {
    for (size_t i = 0; i < helpers; ++i) {
      pool.emplace_back([&work] {
        try {
          Worker worker;
          work(worker);
        } catch (const std::bad_alloc&) {  // no memory for this worker: the others do its part
        }
      });
    }
  } catch (const std::system_error&) {  // no more threads are available: the existing ones do the work
  }
  thread_local Worker own;  // kept from call to call, so that an image like the one before needs no allocation
  work(own);
  return errors;
}

}  // namespace vologan::depth
