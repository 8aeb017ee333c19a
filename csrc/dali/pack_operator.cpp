// fn.vologan.pack: colour and normalised depth to an augmented RGBD image, in one pass over the output.
//
// Inputs: colour uint8 (S, S, 3) and what fn.vologan.depth gives, float32 (S, S, 1). Output: float32 (S, S, 4) in
// [0, 1]. The image is flipped left-right where `flip` is set; then output (y, x) is its pixel (y + top, x + left),
// and background where that lies outside: the crop of an image that was zero-padded at the bottom and at the right.
#include <algorithm>
#include <array>
#include <vector>

#include "dali/pipeline/operator/operator.h"
#include "pixels.h"

namespace vologan::data {

namespace {

// The 256 levels of a colour channel, each correctly rounded (a product with 1/255 is not).
const std::array<float, 256> kLevels = [] {
  std::array<float, 256> levels{};
  for (int i = 0; i < 256; ++i) levels[i] = static_cast<float>(i) / 255.0f;
  return levels;
}();

struct Augmentation {
  bool flip;
  int64_t top, left;
};

void pack_image(const uint8_t* color, const float* depth, int64_t size, Augmentation a, float* rgbd) {
  const int64_t rows = std::clamp<int64_t>(size - a.top, 0, size);
  const int64_t columns = std::clamp<int64_t>(size - a.left, 0, size);
  const int64_t first = a.flip ? size - 1 - a.left : a.left, step = a.flip ? -1 : 1;
  for (int64_t y = 0; y < rows; ++y) {
    const int64_t row = (y + a.top) * size;
    float* out = rgbd + y * size * 4;
    for (int64_t x = 0; x < columns; ++x) {
      const int64_t pixel = row + first + step * x;
      const uint8_t* c = color + pixel * 3;
      pack_pixel(kLevels[c[0]], kLevels[c[1]], kLevels[c[2]], depth[pixel], out + x * 4);
    }
    std::fill(out + columns * 4, out + size * 4, 0.0f);
  }
  std::fill(rgbd + rows * size * 4, rgbd + size * size * 4, 0.0f);
}

}  // namespace

class PackOperator : public dali::Operator<dali::CPUBackend> {
 public:
  using Operator::Operator;

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>& outputs, const dali::Workspace& ws) override {
    const auto& depth = ws.GetInputShape(1);
    outputs.resize(1);
    outputs[0].type = DALI_FLOAT;
    outputs[0].shape = depth;
    for (int i = 0; i < depth.num_samples(); ++i) {
      const auto square = depth[i];
      DALI_ENFORCE(square[0] == square[1] && ws.GetInputShape(0)[i] == dali::TensorShape<>(square[0], square[1], 3),
                   "vologan.pack expects colour (S, S, 3) and depth (S, S, 1)");
      outputs[0].shape.set_tensor_shape(i, dali::TensorShape<>{square[0], square[1], 4});
    }
    return true;
  }

  void RunImpl(dali::Workspace& ws) override {
    const auto& color = ws.Input<dali::CPUBackend>(0);
    const auto& depth = ws.Input<dali::CPUBackend>(1);
    auto& output = ws.Output<dali::CPUBackend>(0);
    output.SetLayout("HWC");
    const int batch = color.num_samples();
    std::vector<int> flip, top, left;
    GetPerSampleArgument(flip, "flip", ws, batch);
    GetPerSampleArgument(top, "top", ws, batch);
    GetPerSampleArgument(left, "left", ws, batch);
    auto& pool = ws.GetThreadPool();
    for (int i = 0; i < batch; ++i) {
      const Augmentation augmentation{flip[i] != 0, top[i], left[i]};
      pool.AddWork([&color, &depth, &output, augmentation, i](int) {
        pack_image(color.tensor<uint8_t>(i), depth.tensor<float>(i), output[i].shape()[0], augmentation,
                   output.mutable_tensor<float>(i));
      });
    }
    pool.RunAll();
  }
};

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Pack, ::vologan::data::PackOperator, ::dali::CPU);

DALI_SCHEMA(vologan__Pack)
    .DocStr("Flips, shifts, scales and joins colour and normalised depth into an RGBD image in [0, 1].")
    .NumInput(2)
    .NumOutput(1)
    .AddOptionalArg("flip", "Not 0: left-right flip.", 0, true)
    .AddOptionalArg("top", "Rows that the crop begins below the top.", 0, true)
    .AddOptionalArg("left", "Columns that the crop begins right of the left edge.", 0, true);
