// fn.vologan.read: bytes of a file, or of a part of it.
//
// Inputs: the file's path (uint8), and offset and size (int64, 2 values); size -1 is all from the offset on. Output:
// uint8 (size). The file is read, not mapped: a mapped file that shrinks meanwhile kills the process.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dali/pipeline/operator/operator.h"

namespace vologan::data {

namespace {

// A part of an open file, which it is known to hold.
class FilePart {
 public:
  FilePart() = default;
  FilePart(const FilePart&) = delete;
  FilePart& operator=(const FilePart&) = delete;
  ~FilePart() {
    if (file_ >= 0) ::close(file_);
  }

  void open(std::string path, int64_t offset, int64_t size) {
    path_ = std::move(path);
    offset_ = offset;
    file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file_ < 0 || ::fstat(file_, &status) != 0) fail(std::strerror(errno));
    const int64_t length = status.st_size;
    size_ = size == -1 ? length - offset : size;
    if (offset < 0 || size_ < 0 || offset > length || size_ > length - offset) {
      fail("expected " + std::to_string(size) + " bytes from " + std::to_string(offset) + " on, found a file of " +
           std::to_string(length));
    }
  }

  int64_t size() const { return size_; }

  void read(uint8_t* data) const {
    for (int64_t done = 0; done < size_;) {
      const ssize_t got = ::pread(file_, data + done, size_ - done, offset_ + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(std::strerror(errno));
      if (got == 0) fail("the file became shorter while it was read");
      done += got;
    }
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const { throw std::runtime_error(path_ + ": " + reason); }

  std::string path_;
  int file_ = -1;
  int64_t offset_ = 0, size_ = 0;
};

}  // namespace

class ReadOperator : public dali::Operator<dali::CPUBackend> {
 public:
  using Operator::Operator;

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>&, const dali::Workspace& ws) override {
    const auto& spans = ws.GetInputShape(1);
    for (int i = 0; i < spans.num_samples(); ++i) {
      DALI_ENFORCE(spans[i] == dali::TensorShape<>{2}, "vologan.read expects offset and size");
    }
    return false;
  }

  void RunImpl(dali::Workspace& ws) override {
    const auto& paths = ws.Input<dali::CPUBackend>(0);
    const auto& spans = ws.Input<dali::CPUBackend>(1);
    const int batch = paths.num_samples();
    auto& pool = ws.GetThreadPool();
    std::vector<FilePart> parts(batch);
    for (int i = 0; i < batch; ++i) {
      pool.AddWork([&, i](int) {
        const auto* path = reinterpret_cast<const char*>(paths.tensor<uint8_t>(i));
        const int64_t* span = spans.tensor<int64_t>(i);
        parts[i].open({path, static_cast<size_t>(paths[i].shape().num_elements())}, span[0], span[1]);
      });
    }
    pool.RunAll();
    dali::TensorListShape<> shape(batch, 1);
    for (int i = 0; i < batch; ++i) shape.set_tensor_shape(i, dali::TensorShape<>{parts[i].size()});
    auto& output = ws.Output<dali::CPUBackend>(0);
    output.Resize(shape, DALI_UINT8);
    for (int i = 0; i < batch; ++i) {
      pool.AddWork([&, i](int) { parts[i].read(output.mutable_tensor<uint8_t>(i)); }, parts[i].size());
    }
    pool.RunAll();
  }
};

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Read, ::vologan::data::ReadOperator, ::dali::CPU);

DALI_SCHEMA(vologan__Read)
    .DocStr("Reads a part of a file: its path, and (offset, size), where size -1 means all from the offset on.")
    .NumInput(2)
    .NumOutput(1);
