// Compiled once for each instruction set, with its flags and its name as VOLOGAN_LEVEL.

#include "level.h"

#include "backward.h"
#include "forward.h"
#include "nadam_update.h"
#include "threads.h"
#include "winograd_transforms.h"

#define VOLOGAN_TEXT(name) #name
#define VOLOGAN_NAME_OF(name) VOLOGAN_TEXT(name)

namespace vologan {

namespace VOLOGAN_LEVEL {

namespace {

// A tensor of fewer numbers is the work of one thread: waking another one takes as long as they do.
constexpr int64_t kNumbersPerThread = 16384;

// Run a direction for all images. Each thread takes whole images, if there are enough of them. Otherwise all threads
// share the parts of one image. The results have the same bits in both cases, because no sum depends on the threads.
template <class Direction>
int run(const Direction& direction, const VologanNorm& norm) {
  using A = typename Direction::A;
  const Cut& cut = direction.cut();
  const int64_t numbers = cut.images * cut.pixels() * cut.channels;
  const int64_t threads = smaller(norm.threads, larger(numbers / kNumbersPerThread, 1));
  struct Work {
    const Direction& direction;
    const Cut& cut;
    bool failed = false;
  } work{direction, cut};
  if (threads == 1 || cut.images % threads == 0 || cut.images > 4 * threads) {
    const auto images = [](void* context, int64_t, int64_t begin, int64_t end) {
      Work& w = *static_cast<Work*>(context);
      const Scratch<A> scratch(w.direction.scratch_numbers(1), 3 * w.cut.channels);
      if (!scratch.complete()) {
        __atomic_store_n(&w.failed, true, __ATOMIC_RELAXED);
        return;
      }
      const auto alone = [](int64_t count, const auto& f) {
        for (int64_t i = 0; i < count; ++i) f(i, 0);
      };
      for (int64_t image = begin; image < end; ++image) w.direction.image(image, scratch, alone);
    };
    share(threads, cut.images, images, &work);
    return work.failed;
  }
  const Scratch<A> scratch(direction.scratch_numbers(threads), 3 * cut.channels);
  if (!scratch.complete()) return 1;
  const auto together = [threads]<class F>(int64_t count, const F& f) {
    const auto range = [](void* context, int64_t thread, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(context))(i, thread);
    };
    share(threads, count, range, const_cast<F*>(&f));
  };
  for (int64_t image = 0; image < cut.images; ++image) direction.image(image, scratch, together);
  return 0;
}

template <class T>
int forward_of(const VologanForward& call) {
  return run(Forward<T>(call), call.norm);
}

template <class T>
int backward_of(const VologanBackward& call) {
  using A = Accumulator<T>;
  const VologanNorm& norm = call.norm;
  const int64_t planes = norm.n * norm.c;
  const Scratch<A> sums(1, 3 * planes);
  if (!sums.complete()) return 1;
  for (int64_t k = 0; k < 3 * planes; ++k) sums.sums[k] = 0;
  if (run(Backward<T>(call, sums.sums), norm) != 0) return 1;
  void* const results[3] = {call.d_bias, call.d_weight, call.d_slope};
  for (int64_t kind = 0; kind < 3; ++kind) {
    for (int64_t c = 0; results[kind] != nullptr && c < norm.c; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < norm.n; ++n) sum += sums.sums[kind * planes + n * norm.c + c];
      static_cast<A*>(results[kind])[c] = static_cast<A>(sum);
    }
  }
  return 0;
}

int forward(const VologanForward& call) {
  switch (call.norm.type) {
    case kBfloat16:
      return forward_of<Bfloat16>(call);
    case kFloat64:
      return forward_of<double>(call);
    default:
      return forward_of<float>(call);
  }
}

int backward(const VologanBackward& call) {
  switch (call.norm.type) {
    case kBfloat16:
      return backward_of<Bfloat16>(call);
    case kFloat64:
      return backward_of<double>(call);
    default:
      return backward_of<float>(call);
  }
}

int nadam(const VologanNAdamRow* rows, int64_t count, int64_t type, int64_t threads) {
  int64_t numbers = 0;
  for (int64_t i = 0; i < count; ++i) numbers += rows[i].numbers;
  threads = smaller(threads, larger(numbers / kNumbersPerThread, 1));
  switch (type) {
    case kBfloat16:
      return NAdam<Bfloat16>::step(rows, count, threads);
    case kFloat64:
      return NAdam<double>::step(rows, count, threads);
    default:
      return NAdam<float>::step(rows, count, threads);
  }
}

void winograd_gather(const VologanWinograd& call) {
  switch (call.patches) {
    case kImage:
      return Winograd::gather<kImageMatrix>(call);
    case kResult:
      return Winograd::gather<kResultMatrix>(call);
    default:
      return Winograd::gather<kKernelMatrix>(call);
  }
}

void winograd_scatter(const VologanWinograd& call) {
  switch (call.patches) {
    case kImage:
      return Winograd::scatter<kTransposed<kImageMatrix>>(call);
    case kResult:
      return Winograd::scatter<kTransposed<kResultMatrix>>(call);
    default:
      return Winograd::scatter<kTransposed<kKernelMatrix>>(call);
  }
}

}  // namespace

extern const Level level;
const Level level{VOLOGAN_NAME_OF(VOLOGAN_LEVEL), forward, backward, nadam, winograd_gather, winograd_scatter};

}  // namespace VOLOGAN_LEVEL

}  // namespace vologan
