// Memory for batches. A batch belongs to the code that requested it, so each batch needs memory of its own. Taking
// new memory from the kernel, page by page, takes longer than packing. So memory is reused from batches that are no
// longer needed.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace vologan::data {

class BatchMemory : public std::enable_shared_from_this<BatchMemory> {
 public:
  // Returns memory of `bytes` bytes for a batch. When its last owner is gone, the memory is used again.
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
    // The deleter runs when the last tensor that shares the batch is gone. All other owners of this BatchMemory may
    // be gone by then.
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

  // Allocates pages of 2 MiB if the kernel has them. A batch is written from end to end, and so touches 512 times
  // fewer pages.
  static Data allocate(size_t bytes) {
    constexpr size_t page = size_t{1} << 21;
    const size_t whole = (bytes + page - 1) / page * page;
    Data data(static_cast<std::byte*>(std::aligned_alloc(page, whole)));
    if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    ::madvise(data.get(), whole, MADV_HUGEPAGE);
#endif
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

}  // namespace vologan::data
