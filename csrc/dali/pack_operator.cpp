// fn.vologan.pack: colour and normalised depth to an augmented RGBD image, in one pass over the output.
//
// Inputs: colour uint8 (S, S, 3) and what fn.vologan.depth gives, float32 (S, S, 1). Output: float32 (S, S, 4) in
// [0, 1]. The image is flipped left-right where `flip` is set; then output (y, x) is its pixel (y + top, x + left),
// and background where that lies outside: the crop of an image that was zero-padded at the bottom and at the right.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "dali/pipeline/operator/operator.h"
#include "pixel_rows.h"

namespace vologan::data {

namespace {

// Memory for batches. A batch belongs to whoever asked for it, so each needs memory of its own; taking that anew from
// the kernel, page by page, costs more time than packing. So it comes from batches that nobody needs any more.
class BatchMemory : public std::enable_shared_from_this<BatchMemory> {
 public:
  std::shared_ptr<void> take(size_t bytes) {
    Block block{bytes, nullptr};
    {
      const std::lock_guard lock(mutex_);
      while (!spare_.empty() && !block.data) {
        if (spare_.back().bytes == bytes) block.data = std::move(spare_.back().data);
        spare_.pop_back();
      }
    }
    if (!block.data) block.data.reset(new std::byte[bytes]);
    std::byte* data = block.data.get();
    // The deleter runs when the last tensor that shares the batch is gone, perhaps after the pipeline.
    return {data, [memory = shared_from_this(), owned = std::make_shared<Block>(std::move(block))](void*) {
              memory->give_back(std::move(*owned));
            }};
  }

 private:
  struct Block {
    size_t bytes;
    std::unique_ptr<std::byte[]> data;
  };

  void give_back(Block block) {
    const std::lock_guard lock(mutex_);
    if (spare_.size() < kSpare) spare_.push_back(std::move(block));
  }

  static constexpr size_t kSpare = 4;
  std::mutex mutex_;
  std::vector<Block> spare_;
};

struct Augmentation {
  bool flip;
  int64_t top, left;
};

void pack_image(const uint8_t* color, const float* depth, int64_t size, Augmentation a, float* rgbd) {
  const int64_t rows = std::clamp<int64_t>(size - a.top, 0, size);
  const int64_t columns = std::clamp<int64_t>(size - a.left, 0, size);
  const int64_t first = a.flip ? size - 1 - a.left : a.left;
  for (int64_t y = 0; y < rows; ++y) {
    const int64_t pixel = (y + a.top) * size + first;
    float* out = rgbd + y * size * 4;
    pack_row(color + pixel * 3, depth + pixel, columns, a.flip ? -1 : 1, out);
    std::fill(out + columns * 4, out + size * 4, 0.0f);
  }
  std::fill(rgbd + rows * size * 4, rgbd + size * size * 4, 0.0f);
  finish_rows();
}

}  // namespace

class PackOperator : public dali::Operator<dali::CPUBackend> {
 public:
  using Operator::Operator;

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>&, const dali::Workspace&) override { return false; }

  void RunImpl(dali::Workspace& ws) override {
    const auto& color = ws.Input<dali::CPUBackend>(0);
    const auto& depth = ws.Input<dali::CPUBackend>(1);
    const int batch = color.num_samples();
    auto shape = depth.shape();
    for (int i = 0; i < batch; ++i) {
      const auto square = depth[i].shape();
      DALI_ENFORCE(square[0] == square[1] && color[i].shape() == dali::TensorShape<>(square[0], square[1], 3),
                   "vologan.pack expects colour (S, S, 3) and depth (S, S, 1)");
      shape.set_tensor_shape(i, dali::TensorShape<>{square[0], square[1], 4});
    }
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
      pool.AddWork([&color, &depth, &output, augmentation, i](int) {
        pack_image(color.tensor<uint8_t>(i), depth.tensor<float>(i), output[i].shape()[0], augmentation,
                   output.mutable_tensor<float>(i));
      });
    }
    pool.RunAll();
  }

 private:
  const std::shared_ptr<BatchMemory> memory_ = std::make_shared<BatchMemory>();
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
