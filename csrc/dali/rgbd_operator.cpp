// fn.vologan.rgbd: a depth file and decoded colour to an augmented RGBD image, in one pass over the output.
//
// Inputs: the three of fn.vologan.depth, and colour uint8 (size, size, 3). Output: float32 (size, size, 4) in [0, 1].
// The image is flipped left-right where `flip` is set; then output (y, x) is its pixel (y + top, x + left), and
// background where that lies outside: the crop of an image that was zero-padded at the bottom and at the right.
//
// Depth is decoded and packed image by image, on its thread's own square: a batch of them would have left the caches
// before it is packed.
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "pixel_rows.h"
#include "square_depth.h"

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
    if (!block.data) block.data = allocate(bytes);
    std::byte* data = block.data.get();
    // The deleter runs when the last tensor that shares the batch is gone, perhaps after the pipeline.
    return {data, [memory = shared_from_this(), owned = std::make_shared<Block>(std::move(block))](void*) {
              memory->give_back(std::move(*owned));
            }};
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  using Data = std::unique_ptr<std::byte[], Free>;
  struct Block {
    size_t bytes;
    Data data;
  };

  // In pages of 2 MiB where the kernel has them: a batch is written from end to end, through 512 times fewer of them.
  static Data allocate(size_t bytes) {
    constexpr size_t page = size_t{1} << 21;
    const size_t whole = (bytes + page - 1) / page * page;
    Data data(static_cast<std::byte*>(std::aligned_alloc(page, whole)));
    if (!data) throw std::bad_alloc();
    ::madvise(data.get(), whole, MADV_HUGEPAGE);
    return data;
  }

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
        depth_.read(ws, i, own.scratch, own.square.data());
        pack_image(color.tensor<uint8_t>(i), own.square.data(), depth_.size(), augmentation,
                   output.mutable_tensor<float>(i));
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
