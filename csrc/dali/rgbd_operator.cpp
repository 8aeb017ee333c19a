// fn.vologan.rgbd: a depth file and decoded colour to an augmented RGBD image, in one pass over the output.
//
// Inputs: the three of fn.vologan.depth, and colour uint8 (size, size, 3). Output: float32 (size, size, 4) in [0, 1].
// The image is flipped left-right where `flip` is set; then output (y, x) is its pixel (y + top, x + left), and
// background where that lies outside: the crop of an image that was zero-padded at the bottom and at the right.
//
// Depth is decoded and packed image by image, on its thread's own square: a batch of them would have left the caches
// before it is packed.
#include <memory>
#include <vector>

#include "batch_memory.h"
#include "pack_image.h"
#include "square_depth.h"

namespace vologan::data {

class RgbdOperator : public dali::Operator<dali::CPUBackend> {
 public:
  explicit RgbdOperator(const dali::OpSpec& spec) : Operator(spec), depth_(spec), threads_(num_threads_) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>&, const dali::Workspace& ws) override {
    SquareDepth::check_inputs(ws);
    const auto& colors = ws.GetInputShape(3);
    for (int i = 0; i < colors.num_samples(); ++i) {
      DALI_ENFORCE((colors[i] == dali::TensorShape<>{depth_.size(), depth_.size(), 3}),
                   "vologan.rgbd expects colour (size, size, 3)");
    }
    return false;
  }

  void RunImpl(dali::Workspace& ws) override {
    const auto& color = ws.Input<dali::CPUBackend>(3);
    const int batch = color.num_samples();
    const int64_t size = depth_.size();
    const auto shape = dali::uniform_list_shape(batch, dali::TensorShape<>{size, size, 4});
    auto& output = ws.Output<dali::CPUBackend>(0);
    const size_t bytes = shape.num_elements() * sizeof(float);
    output.ShareData(memory_->take(bytes), bytes, false, shape, DALI_FLOAT, dali::CPU_ONLY_DEVICE_ID,
                     dali::AccessOrder::host(), "HWC");
    std::vector<int> flip, top, left;
    GetPerSampleArgument(flip, "flip", ws, batch);
    GetPerSampleArgument(top, "top", ws, batch);
    GetPerSampleArgument(left, "left", ws, batch);
    auto& pool = ws.GetThreadPool();
    for (int i = 0; i < batch; ++i) {
      const Augmentation augmentation{flip[i] != 0, top[i], left[i]};
      pool.AddWork([this, &ws, &color, &output, augmentation, i](int thread) {
        Thread& own = threads_[thread];
        own.square.resize(depth_.size() * depth_.size());
        depth_.read(depth_.open(ws, i), own.scratch, own.square.data());
        const auto depth_row = [&own](int64_t pixel, int64_t) { return own.square.data() + pixel; };
        pack_image(color.tensor<uint8_t>(i), depth_.size(), augmentation, depth_row, output.mutable_tensor<float>(i));
      });
    }
    pool.RunAll();
  }

 private:
  struct Thread {
    SquareDepth::Scratch scratch;
    std::vector<float> square;
  };

  const SquareDepth depth_;
  std::vector<Thread> threads_;
  const std::shared_ptr<BatchMemory> memory_ = std::make_shared<BatchMemory>();
};

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Rgbd, ::vologan::data::RgbdOperator, ::dali::CPU);

DALI_SCHEMA(vologan__Rgbd)
    .DocStr("Decodes and normalises depth as vologan.depth does; flips, shifts, scales and joins colour and depth into "
            "an RGBD image in [0, 1].")
    .NumInput(4)
    .NumOutput(1)
    .AddParent("vologan__Depth")
    .AddOptionalArg("flip", "Not 0: left-right flip.", 0, true)
    .AddOptionalArg("top", "Rows that the crop begins below the top.", 0, true)
    .AddOptionalArg("left", "Columns that the crop begins right of the left edge.", 0, true);
