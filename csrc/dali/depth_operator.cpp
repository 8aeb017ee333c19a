// fn.vologan.depth: the bytes of a depth file to the normalised depth of a training square.
//
// Inputs: the file (uint8), its path, which errors name (uint8), and the shape of the colour image (int64: height,
// width, channels) whose centre square the depth must lie under. Output: float32 (size, size, 1) in pixels.h's
// terms.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dali/pipeline/operator/operator.h"
#include "decode.h"
#include "pixel_rows.h"

namespace vologan::data {

namespace {

struct Size {
  int64_t height, width;
};

std::string to_string(Size size) { return std::to_string(size.width) + " × " + std::to_string(size.height); }

// Both see the same field of view, within the 2 % that rounded sizes of small depth images need.
bool same_aspect(Size a, Size b) {
  const int64_t across = a.width * b.height, along = a.height * b.width;
  return std::abs(across - along) * 50 <= std::max(across, along);
}

std::span<const uint8_t> bytes(const dali::TensorList<dali::CPUBackend>& list, int i) {
  return {list.tensor<uint8_t>(i), static_cast<size_t>(list[i].shape().num_elements())};
}

}  // namespace

class DepthOperator : public dali::Operator<dali::CPUBackend> {
 public:
  explicit DepthOperator(const dali::OpSpec& spec)
      : Operator(spec),
        size_(spec.GetArgument<int>("size")),
        channel_(spec.GetArgument<std::string>("channel")),
        invalid_(spec.GetRepeatedArgument<float>("invalid")),
        rule_{spec.GetArgument<float>("gain"), spec.GetArgument<float>("offset"),
              spec.GetArgument<float>("background"), invalid_.data(), static_cast<int>(invalid_.size())},
        threads_(num_threads_) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>& outputs, const dali::Workspace& ws) override {
    const auto& shapes = ws.GetInputShape(2);
    for (int i = 0; i < shapes.num_samples(); ++i) {
      DALI_ENFORCE(shapes[i] == dali::TensorShape<>{3}, "vologan.depth expects the shape of a colour image (H, W, C)");
    }
    outputs.resize(1);
    outputs[0].type = DALI_FLOAT;
    outputs[0].shape = dali::uniform_list_shape(ws.GetInputBatchSize(0), dali::TensorShape<>{size_, size_, 1});
    return true;
  }

  void RunImpl(dali::Workspace& ws) override {
    const auto& files = ws.Input<dali::CPUBackend>(0);
    const auto& paths = ws.Input<dali::CPUBackend>(1);
    const auto& shapes = ws.Input<dali::CPUBackend>(2);
    auto& output = ws.Output<dali::CPUBackend>(0);
    output.SetLayout("HWC");
    auto& pool = ws.GetThreadPool();
    for (int i = 0; i < files.num_samples(); ++i) {
      pool.AddWork([this, &files, &paths, &shapes, &output, i](int thread) {
        const auto path = bytes(paths, i);
        const int64_t* color = shapes.tensor<int64_t>(i);
        run_sample(threads_[thread], bytes(files, i), std::string(path.begin(), path.end()),
                   Size{color[0], color[1]}, output.mutable_tensor<float>(i));
      });
    }
    pool.RunAll();
  }

 private:
  struct Thread {
    depth::Decoder decoder;
    std::vector<float> image;
    std::vector<int64_t> columns;
  };

  void run_sample(Thread& thread, std::span<const uint8_t> data, const std::string& name, Size color,
                  float* square) const {
    const depth::Info info = depth::probe(data, name);
    const Size size{info.height, info.width};
    if (!same_aspect(color, size)) {
      throw std::runtime_error(name + ": depth of " + to_string(size) + " pixels does not fit the colour of " +
                               to_string(color));
    }
    const std::optional<std::string> channel = channel_.empty() ? std::nullopt : std::optional(channel_);
    const bool in_place = size.height == size_ && size.width == size_ && color.height == color.width;
    if (!in_place) thread.image.resize(size.height * size.width);
    float* image = in_place ? square : thread.image.data();
    thread.decoder.decode(data, name, channel, depth::Plane::packed(image, size.height, size.width));
    if (!in_place) gather_square(image, size, color, thread.columns, square);
    if (!normalize_row(square, size_ * size_, rule_)) throw std::runtime_error(name + ": no valid depth");
  }

  // Gathers the square under the colour's centre out of the image.
  void gather_square(const float* image, Size size, Size color, std::vector<int64_t>& columns, float* square) const {
    const int64_t side = std::min(color.height, color.width);
    columns.resize(size_);
    for (int64_t x = 0; x < size_; ++x) columns[x] = depth_index(x, size_, side, color.width, size.width);
    for (int64_t y = 0; y < size_; ++y) {
      const float* from = image + depth_index(y, size_, side, color.height, size.height) * size.width;
      float* to = square + y * size_;
      for (int64_t x = 0; x < size_; ++x) to[x] = from[columns[x]];
    }
  }

  const int64_t size_;
  const std::string channel_;
  const std::vector<float> invalid_;
  const DepthRule rule_;
  std::vector<Thread> threads_;
};

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Depth, ::vologan::data::DepthOperator, ::dali::CPU);

DALI_SCHEMA(vologan__Depth)
    .DocStr("Decodes a depth file (EXR, grey PNG, NPY, PFM) and normalises the square that a colour image's centre "
            "crop leaves: 0 missing, -1 background, else [1/1024, 1].")
    .NumInput(3)
    .NumOutput(1)
    .AddArg("size", "Side of the square, in pixels.", DALI_INT32)
    .AddArg("gain", "A valid value d becomes d · gain + offset.", DALI_FLOAT)
    .AddArg("offset", "See `gain`.", DALI_FLOAT)
    .AddArg("background", "File value of the background; NaN: none.", DALI_FLOAT)
    .AddOptionalArg("invalid", "File values that mean \"not measured\".", std::vector<float>{})
    .AddOptionalArg("channel", "EXR channel; empty: the one that names itself depth.", "");
