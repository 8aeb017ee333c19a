// The functions that the library exports, and the choice of a level.

#include "library.h"

#include <cstring>
#include <initializer_list>

#include "level.h"
#include "nadam.h"
#include "norm.h"
#include "threads.h"
#include "winograd.h"

namespace vologan {

#if defined(VOLOGAN_HAS_avx512_bf16)
namespace avx512_bf16 {
extern const Level level;
}
#endif
#if defined(VOLOGAN_HAS_avx2)
namespace avx2 {
extern const Level level;
}
#endif
namespace plain {
extern const Level level;
}

namespace {

// The levels that this processor can run, the fastest first.
struct Levels {
  const Level* found[3];
  int count = 0;
  char names[64] = "";

  Levels() {
#if defined(VOLOGAN_HAS_avx512_bf16)
    __builtin_cpu_init();
    // All processors with AVX512-BF16 have the other extensions too, but an operating system may hide some.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16")) {
      add(avx512_bf16::level);
    }
#endif
#if defined(VOLOGAN_HAS_avx2)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2::level);
#endif
    add(plain::level);
  }

  void add(const Level& level) {
    if (count > 0) std::strcat(names, " ");
    std::strcat(names, level.name);
    found[count++] = &level;
  }
};

// Puts the addresses of a call into its structure, in the order of norm.h.
class Addresses {
 public:
  explicit Addresses(void* const* next) : next_(next) {}

  void* take() { return *next_++; }
  void images(std::initializer_list<VologanView*> views) {
    for (VologanView* view : views) view->data = take();
  }
  void parameters(VologanNorm& norm) {
    for (const void** parameter : {&norm.weight, &norm.bias, &norm.slope}) *parameter = take();
    norm.mean = take();
    norm.rstd = take();
  }

 private:
  void* const* next_;
};

const Levels levels;
const Level* used = levels.found[0];

}  // namespace

}  // namespace vologan

int vologan_norm_forward(const VologanForward* call, void* const* addresses) {
  VologanForward made = *call;
  if (addresses != nullptr) {
    vologan::Addresses next(addresses);
    next.images({&made.x, &made.residual, &made.y});
    next.parameters(made.norm);
  }
  return vologan::used->forward(made);
}

int vologan_norm_backward(const VologanBackward* call, void* const* addresses) {
  VologanBackward made = *call;
  if (addresses != nullptr) {
    vologan::Addresses next(addresses);
    next.images({&made.grad, &made.saved, &made.residual, &made.dx, &made.d_residual});
    next.parameters(made.norm);
    for (void** result : {&made.d_weight, &made.d_bias, &made.d_slope}) *result = next.take();
  }
  return vologan::used->backward(made);
}

int vologan_nadam(const VologanNAdamRow* rows, int64_t count, int64_t type, int64_t threads) {
  return vologan::used->nadam(rows, count, type, threads);
}

void vologan_winograd_gather(const VologanWinograd* call) { vologan::used->winograd_gather(*call); }

void vologan_winograd_scatter(const VologanWinograd* call) { vologan::used->winograd_scatter(*call); }

const char* vologan_levels() { return vologan::levels.names; }

int vologan_use_level(const char* name) {
  for (int i = 0; i < vologan::levels.count; ++i) {
    if (std::strcmp(vologan::levels.found[i]->name, name) == 0) {
      vologan::used = vologan::levels.found[i];
      return 0;
    }
  }
  return 1;
}

void vologan_use_openmp(void* parallel, void* thread_num, void* num_threads) {
  vologan::use_openmp(parallel, thread_num, num_threads);
}
