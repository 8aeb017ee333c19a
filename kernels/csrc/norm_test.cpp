// norm_test CASES SEED [LEVEL]: random calls of the library, of the norm, NAdam and Winograd's transforms, for
// sanitisers. The judges are the definitions, as loops in float64.
//
// Every tensor ends where a page begins that nobody may touch. So an access beyond it ends the program, also in code
// that no sanitiser sees. The library has no OpenMP here. Its threads are its own, and thread sanitisers see them.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "nadam.h"
#include "norm.h"
#include "winograd.h"

namespace {

// ---- numbers of all types -------------------------------------------------------------------------------------------

double get(int64_t type, const void* data, int64_t i) {
  if (type == kFloat32) return static_cast<const float*>(data)[i];
  if (type == kFloat64) return static_cast<const double*>(data)[i];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[i]} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void put(int64_t type, void* data, int64_t i, double value) {
  if (type == kFloat32) {
    static_cast<float*>(data)[i] = static_cast<float>(value);
  } else if (type == kFloat64) {
    static_cast<double*>(data)[i] = value;
  } else {  // cut off, which is as good as any other rounding for random input
    const float number = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits >> 16);
  }
}

int64_t size_of(int64_t type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; }

// The relative error that a result of this type may have: some roundings of it, and of the sums behind it.
double tolerance(int64_t type) { return type == kFloat64 ? 1e-11 : type == kFloat32 ? 2e-5 : 2e-2; }

// ---- memory ---------------------------------------------------------------------------------------------------------

// Bytes that end where a page begins that nobody may touch.
class Guarded {
 public:
  Guarded() = default;
  explicit Guarded(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
    mapped_ = (pages + 1) * page;
    base_ =
        static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + pages * page, page, PROT_NONE) != 0) std::abort();
    first_ = base_ + pages * page - bytes;
  }
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(first_, other.first_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~Guarded() {
    if (base_ != nullptr) munmap(base_, mapped_);
  }

  unsigned char* get() const { return first_; }

 private:
  unsigned char *base_ = nullptr, *first_ = nullptr;
  int64_t mapped_ = 0;
};

// ---- tensors --------------------------------------------------------------------------------------------------------

struct Tensor {
  int64_t type = kFloat32, numbers = 0;
  Guarded memory;
  VologanView view{};

  double at(int64_t n, int64_t p, int64_t c) const {
    return get(type, view.data, n * view.n + p * view.p + c * view.c);
  }
  void set(int64_t n, int64_t p, int64_t c, double value) {
    put(type, view.data, n * view.n + p * view.p + c * view.c, value);
  }
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int64_t whole(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(engine_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  double normal() { return normal_(engine_); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<double> normal_;
};

Tensor row(int64_t type, int64_t numbers) {
  Tensor made;
  made.type = type;
  made.numbers = numbers;
  made.memory = Guarded(numbers * size_of(type));
  std::memset(made.memory.get(), 0xff, numbers * size_of(type));  // NaN: what is not written shows
  made.view = {made.memory.get(), 0, 1, 0};
  return made;
}

Tensor random_row(Random& random, int64_t type, int64_t numbers, double centre, double deviation) {
  Tensor made = row(type, numbers);
  for (int64_t i = 0; i < numbers; ++i) put(type, made.view.data, i, centre + deviation * random.normal());
  return made;
}

// An image, dense or with gaps between its planes or pixels.
Tensor image(const VologanNorm& norm, int64_t pixels, int64_t gap) {
  const int64_t pixel = norm.channels_last ? norm.c + gap : 1, plane = norm.channels_last ? 1 : pixels + gap;
  const int64_t sample = norm.channels_last ? pixels * pixel : norm.c * plane;
  const int64_t last = (norm.n - 1) * sample + (pixels - 1) * pixel + (norm.c - 1) * plane;
  Tensor made = row(norm.type, last + 1);
  made.view = {made.memory.get(), sample, pixel, plane};
  return made;
}

void fill(Random& random, Tensor& tensor, double centre) {
  for (int64_t i = 0; i < tensor.numbers; ++i) put(tensor.type, tensor.view.data, i, centre + random.normal());
}

// ---- the definition -------------------------------------------------------------------------------------------------

double activation(int64_t kind, double u, double slope) {
  switch (kind) {
    case kRelu:
      return std::fmax(u, 0);
    case kLeakyRelu:
    case kPrelu:
      return u > 0 ? u : u * slope;
    case kSilu:
      return u / (1 + std::exp(-u));
    case kGelu:
      return 0.5 * u * std::erfc(-u * std::sqrt(0.5));
    case kElu:
      return u > 0 ? u : std::expm1(u);
    case kTanh:
      return std::tanh(u);
    default:
      return u;
  }
}

double derivative(int64_t kind, double u, double slope) {
  const double sigmoid = 1 / (1 + std::exp(-u)), tanh = std::tanh(u);
  switch (kind) {
    case kRelu:
      return u > 0 ? 1 : 0;
    case kLeakyRelu:
    case kPrelu:
      return u > 0 ? 1 : slope;
    case kSilu:
      return sigmoid * (1 + u * (1 - sigmoid));
    case kGelu:
      return 0.5 * std::erfc(-u * std::sqrt(0.5)) + u * std::exp(-u * u / 2) * 0.3989422804014327;
    case kElu:
      return u > 0 ? 1 : std::exp(u);
    case kTanh:
      return 1 - tanh * tanh;
    default:
      return 1;
  }
}

int64_t reflected(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * size - 2 - i : i; }

struct Parameters {
  double gamma, beta, slope;
};

Parameters parameters_of(const VologanNorm& norm, int64_t c) {
  const int64_t type = norm.type == kFloat64 ? kFloat64 : kFloat32;
  const auto read = [&](const void* data, double otherwise) {
    return data == nullptr ? otherwise : get(type, data, c);
  };
  Parameters found{read(norm.weight, 1), read(norm.bias, 0), read(norm.slope, norm.negative_slope)};
  if (norm.weight != nullptr && std::fabs(found.gamma) < norm.min_scale) {
    found.gamma = found.gamma < 0 ? -norm.min_scale : norm.min_scale;
  }
  return found;
}

// ---- a case ---------------------------------------------------------------------------------------------------------

class Case {
 public:
  explicit Case(Random& random) {
    norm_.type = random.whole(kFloat32, kFloat64);
    accumulator_ = norm_.type == kFloat64 ? kFloat64 : kFloat32;
    norm_.channels_last = random.chance(0.5);
    norm_.n = random.whole(1, 4);
    norm_.c = random.whole(1, random.chance(0.2) ? 140 : 20);
    const int64_t largest = random.chance(0.1) ? 120 : 20;
    norm_.h = random.whole(1, largest);
    norm_.w = random.whole(1, largest);
    norm_.pad = random.whole(0, std::min<int64_t>(3, std::min(norm_.h, norm_.w) - 1));
    norm_.activation = random.whole(kIdentity, kTanh);
    norm_.threads = random.whole(2, 5);
    norm_.eps = 1e-3;
    norm_.negative_slope = 0.25;
    norm_.min_scale = random.chance(0.5) ? 0.5 : 0;
    const bool invertible = norm_.activation == kIdentity || norm_.activation == kLeakyRelu;
    from_output_ = invertible && random.chance(0.5);

    const bool adds = random.chance(0.4);
    const auto gap = [&] { return random.chance(0.3) ? random.whole(1, 5) : 0; };
    const int64_t pixels = norm_.h * norm_.w, outputs = (norm_.h + 2 * norm_.pad) * (norm_.w + 2 * norm_.pad);
    x_ = image(norm_, pixels, gap());
    fill(random, x_, random.whole(-3, 3));
    if (adds) {
      residual_ = image(norm_, pixels, gap());
      fill(random, residual_, 0);
      d_residual_ = image(norm_, pixels, 0);
    }
    y_ = image(norm_, outputs, 0);
    grad_ = image(norm_, outputs, gap());
    fill(random, grad_, 0);
    dx_ = image(norm_, pixels, 0);
    mean_ = row(accumulator_, norm_.n * norm_.c);
    rstd_ = row(accumulator_, norm_.n * norm_.c);
    if (random.chance(0.7)) weight_ = random_row(random, accumulator_, norm_.c, 1, from_output_ ? 0.1 : 1);
    if (random.chance(0.5)) bias_ = random_row(random, accumulator_, norm_.c, 0, 1);
    if (norm_.activation == kPrelu) {
      slope_ = random_row(random, accumulator_, norm_.c, 0.25, 0.1);
      d_slope_ = row(accumulator_, norm_.c);
    }
    d_weight_ = row(accumulator_, norm_.c);
    d_bias_ = row(accumulator_, norm_.c);
    norm_.weight = weight_.view.data;
    norm_.bias = bias_.view.data;
    norm_.slope = slope_.view.data;
    norm_.mean = mean_.view.data;
    norm_.rstd = rstd_.view.data;
  }

  std::string text() const {
    std::ostringstream text;
    text << "type " << norm_.type << ", channels_last " << norm_.channels_last << ", " << norm_.n << " x " << norm_.c
         << " x " << norm_.h << " x " << norm_.w << ", pad " << norm_.pad << ", activation " << norm_.activation
         << ", threads " << norm_.threads << ", from output " << from_output_ << ", residual "
         << (residual_.view.data != nullptr);
    return text.str();
  }

  void run() {
    same_for_any_threads({&y_, &mean_, &rstd_}, [&](const VologanNorm& norm) {
      const VologanForward call{norm, x_.view, residual_.view, y_.view};
      return vologan_norm_forward(&call, nullptr);
    });
    judge_forward();
    same_for_any_threads({&dx_, &d_residual_, &d_weight_, &d_bias_, &d_slope_}, [&](const VologanNorm& norm) {
      const VologanView saved = from_output_ ? y_.view : x_.view;
      const VologanBackward call{norm,
                                 from_output_,
                                 grad_.view,
                                 saved,
                                 residual_.view,
                                 dx_.view,
                                 d_residual_.view,
                                 d_weight_.view.data,
                                 d_bias_.view.data,
                                 d_slope_.view.data};
      return vologan_norm_backward(&call, nullptr);
    });
    judge_backward();
  }

 private:
  // Call with one thread and with several: the same bits.
  template <class Call>
  void same_for_any_threads(const std::vector<Tensor*>& results, const Call& call) {
    VologanNorm alone = norm_;
    alone.threads = 1;
    check(call(alone) == 0, "memory");
    std::vector<std::vector<unsigned char>> before;
    for (Tensor* result : results) {
      unsigned char* memory = result->memory.get();
      before.emplace_back(memory, memory + result->numbers * size_of(result->type));
    }
    check(call(norm_) == 0, "memory");
    for (size_t i = 0; i < results.size(); ++i) {
      check(std::equal(before[i].begin(), before[i].end(), results[i]->memory.get()), "bits with several threads");
    }
  }

  void judge_forward() const {
    const int64_t pixels = norm_.h * norm_.w, padded = norm_.w + 2 * norm_.pad;
    for (int64_t n = 0; n < norm_.n; ++n) {
      for (int64_t c = 0; c < norm_.c; ++c) {
        double mean = 0, variance = 0;
        for (int64_t p = 0; p < pixels; ++p) mean += x_.at(n, p, c) / pixels;
        for (int64_t p = 0; p < pixels; ++p) variance += std::pow(x_.at(n, p, c) - mean, 2) / pixels;
        const double rstd = 1 / std::sqrt(variance + norm_.eps);
        close(get(accumulator_, mean_.view.data, n * norm_.c + c), mean, 8, accumulator_, "mean");
        close(get(accumulator_, rstd_.view.data, n * norm_.c + c), rstd, 40, accumulator_, "rstd");
        const Parameters parameters = parameters_of(norm_, c);
        for (int64_t i = -norm_.pad; i < norm_.h + norm_.pad; ++i) {
          for (int64_t j = -norm_.pad; j < norm_.w + norm_.pad; ++j) {
            const int64_t p = reflected(i, norm_.h) * norm_.w + reflected(j, norm_.w);
            double u = (x_.at(n, p, c) - mean) * rstd * parameters.gamma + parameters.beta;
            if (residual_.view.data != nullptr) u += residual_.at(n, p, c);
            const double y = y_.at(n, (i + norm_.pad) * padded + j + norm_.pad, c);
            close(y, activation(norm_.activation, u, parameters.slope), 8, norm_.type, "y");
          }
        }
      }
    }
  }

  void judge_backward() const {
    for (int64_t c = 0; c < norm_.c; ++c) {
      Sums sums{};
      for (int64_t n = 0; n < norm_.n; ++n) judge_plane(n, c, sums);
      const auto judge = [&](const Tensor& found, double truth, const char* name) {
        if (found.view.data != nullptr)
          close(get(accumulator_, found.view.data, c), truth, sums.terms, accumulator_, name);
      };
      judge(d_bias_, sums.g, "d_bias");
      judge(d_weight_, sums.g_x_hat, "d_weight");
      judge(d_slope_, sums.slope, "d_slope");
    }
  }

  struct Sums {
    double g, g_x_hat, slope, terms;
  };

  void judge_plane(int64_t n, int64_t c, Sums& of_channel) const {
    const int64_t pixels = norm_.h * norm_.w, padded = norm_.w + 2 * norm_.pad;
    const Parameters parameters = parameters_of(norm_, c);
    const double mean = get(accumulator_, norm_.mean, n * norm_.c + c),
                 rstd = get(accumulator_, norm_.rstd, n * norm_.c + c);
    std::vector<double> upstream(pixels, 0), g(pixels), x_hat(pixels);
    for (int64_t i = -norm_.pad; i < norm_.h + norm_.pad; ++i) {
      for (int64_t j = -norm_.pad; j < norm_.w + norm_.pad; ++j) {
        const int64_t p = reflected(i, norm_.h) * norm_.w + reflected(j, norm_.w);
        upstream[p] += grad_.at(n, (i + norm_.pad) * padded + j + norm_.pad, c);
      }
    }
    double sum_g = 0, sum_g_x_hat = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const double residual = residual_.view.data == nullptr ? 0 : residual_.at(n, p, c);
      double u;
      if (from_output_) {
        u = y_.at(n, (p / norm_.w + norm_.pad) * padded + p % norm_.w + norm_.pad, c);
        if (norm_.activation == kLeakyRelu && u <= 0) u /= parameters.slope;
        x_hat[p] = (u - residual - parameters.beta) / parameters.gamma;
      } else {
        x_hat[p] = (x_.at(n, p, c) - mean) * rstd;
        u = x_hat[p] * parameters.gamma + parameters.beta + residual;
      }
      g[p] = upstream[p] * derivative(norm_.activation, u, parameters.slope);
      if (near_a_kink(u)) return skip(of_channel);
      sum_g += g[p];
      sum_g_x_hat += g[p] * x_hat[p];
      if (u <= 0) of_channel.slope += upstream[p] * u;
      of_channel.terms += std::fabs(upstream[p]) * (1 + std::fabs(x_hat[p]) + std::fabs(u));
      if (d_residual_.view.data != nullptr) close(d_residual_.at(n, p, c), g[p], 8, norm_.type, "d_residual");
    }
    of_channel.g += sum_g;
    of_channel.g_x_hat += sum_g_x_hat;
    for (int64_t p = 0; p < pixels; ++p) {
      const double centred = g[p] - sum_g / pixels - x_hat[p] * sum_g_x_hat / pixels;
      const double scale = 8 * std::fabs(parameters.gamma) * rstd;
      close(dx_.at(n, p, c), parameters.gamma * rstd * centred, scale, norm_.type, "dx");
    }
  }

  // Where rounding may put u on the other side of a kink, no judgement is possible.
  bool near_a_kink(double u) const {
    const bool has_kink = norm_.activation == kRelu || norm_.activation == kLeakyRelu || norm_.activation == kPrelu;
    return has_kink && std::fabs(u) < 1e-5;
  }

  static void skip(Sums& of_channel) { of_channel.terms = std::numeric_limits<double>::infinity(); }

  void close(double found, double truth, double scale, int64_t type, const char* name) const {
    const double error = std::fabs(found - truth), allowed = tolerance(type) * (std::fabs(truth) + scale);
    if (error <= allowed) return;
    std::fprintf(stderr, "%s: found %.9g, expected %.9g within %.3g: %s\n", name, found, truth, allowed,
                 text().c_str());
    std::abort();
  }

  void check(bool holds, const char* name) const {
    if (holds) return;
    std::fprintf(stderr, "%s: %s\n", name, text().c_str());
    std::abort();
  }

  VologanNorm norm_{};
  int64_t accumulator_ = kFloat32;
  bool from_output_ = false;
  Tensor x_, residual_, y_, grad_, dx_, d_residual_, mean_, rstd_;
  Tensor weight_, bias_, slope_, d_weight_, d_bias_, d_slope_;
};

// ---- NAdam ----------------------------------------------------------------------------------------------------------

// Some parameters of one type, updated once by the library and once by the definition.
void nadam(Random& random) {
  const int64_t type = random.whole(0, 2), count = random.whole(1, 6);
  struct Parameter {
    Tensor tensors[6];  // θ, g, m, v; t, Π
    std::vector<double> before[6];
  };
  std::vector<Parameter> parameters(count);
  std::vector<VologanNAdamRow> rows(count);
  for (int64_t i = 0; i < count; ++i) {
    Parameter& p = parameters[i];
    const int64_t numbers = random.chance(0.2) ? random.whole(0, 70000) : random.whole(0, 70);
    for (int64_t k = 0; k < 6; ++k) {
      p.tensors[k] = k < 4 ? random_row(random, type, numbers, 0, 1) : row(kFloat32, 1);
      if (k == 3) {
        for (int64_t j = 0; j < numbers; ++j) p.tensors[k].set(0, j, 0, std::fabs(p.tensors[k].at(0, j, 0)));
      }
      if (k == 4) p.tensors[k].set(0, 0, 0, static_cast<double>(random.whole(0, 500)));
      if (k == 5) p.tensors[k].set(0, 0, 0, 0.9 / static_cast<double>(random.whole(1, 5)));
      for (int64_t j = 0; j < p.tensors[k].numbers; ++j) p.before[k].push_back(p.tensors[k].at(0, j, 0));
    }
    void* const data[6] = {p.tensors[0].view.data, p.tensors[1].view.data, p.tensors[2].view.data,
                           p.tensors[3].view.data, p.tensors[4].view.data, p.tensors[5].view.data};
    const double decay = random.chance(0.5) ? 0.1 : 0;
    const bool decoupled = random.chance(0.5);
    rows[i] = {data[0],
               data[1],
               data[2],
               data[3],
               static_cast<float*>(data[4]),
               static_cast<float*>(data[5]),
               numbers,
               nullptr,
               0.01,
               4e-3 * std::log(0.96),
               std::log(0.999),
               random.chance(0.5) ? 1.0 : -1.0,
               decoupled ? 0 : decay,
               decoupled ? decay : 0,
               0.9,
               0.999,
               1e-3};
  }
  if (vologan_nadam(rows.data(), count, type, random.whole(1, 4)) != 0) std::abort();
  for (int64_t i = 0; i < count; ++i) {
    const VologanNAdamRow& r = rows[i];
    const Parameter& p = parameters[i];
    const double t = p.before[4][0] + 1, mu = r.beta1 * (1 - 0.5 * std::exp(t * r.log_decay));
    const double next = r.beta1 * (1 - 0.5 * std::exp((t + 1) * r.log_decay)),
                 product = static_cast<float>(p.before[5][0]) * static_cast<float>(mu);  // Π is a float32
    const auto check = [&](int64_t k, int64_t j, double expected) {
      const double found = p.tensors[k].at(0, j, 0), allowed = tolerance(k < 4 ? type : kFloat32);
      if (!(std::fabs(found - expected) <= allowed * (1 + std::fabs(expected)))) {
        std::fprintf(stderr, "NAdam: type %d, tensor %d, number %d: %g, expected %g\n", static_cast<int>(type),
                     static_cast<int>(k), static_cast<int>(j), found, expected);
        std::abort();
      }
    };
    check(4, 0, t);
    check(5, 0, product);
    for (int64_t j = 0; j < r.numbers; ++j) {
      const double theta = p.before[0][j], g = r.sign * p.before[1][j] + r.decay * theta;
      const double m = r.beta1 * p.before[2][j] + (1 - r.beta1) * g;
      const double v = r.beta2 * p.before[3][j] + (1 - r.beta2) * g * g;
      const double change = (1 - mu) / (1 - product) * g + next / (1 - product * next) * m;
      const double root = std::sqrt(v / (1 - std::exp(t * r.log_beta2))) + r.eps;
      check(0, j, theta * (1 - r.rate_number * r.decoupled) - r.rate_number * change / root);
      check(2, j, m);
      check(3, j, v);
    }
  }
}

// ---- Winograd's convolution -----------------------------------------------------------------------------------------

// A convolution and its gradients, by the transforms and by the definition. The patches are in random parts.
class Convolution {
 public:
  explicit Convolution(Random& random) : random_(random) {
    const auto channels = [&] { return random.whole(1, random.chance(0.3) ? 40 : 6); };
    n_ = random.whole(1, 3);
    in_ = channels();
    out_ = channels();
    for (int64_t side = 0; side < 2; ++side) {
      padding_[side] = random.whole(0, 2);
      x_sides_[side] = random.whole(std::max<int64_t>(1, 3 - 2 * padding_[side]), 14);
      y_sides_[side] = x_sides_[side] + 2 * padding_[side] - 2;
      patches_[side] = (y_sides_[side] + 3) / 4;
    }
    x_ = random_row(random, kFloat32, n_ * x_sides_[0] * x_sides_[1] * in_, 0, 1);
    weight_ = random_row(random, kFloat32, out_ * 9 * in_, 0, 1);
    grad_ = random_row(random, kFloat32, n_ * y_sides_[0] * y_sides_[1] * out_, 0, 1);
    if (random.chance(0.5)) bias_ = random_row(random, kFloat32, out_, 0, 1);
    y_ = row(kFloat32, grad_.numbers);
    dx_ = zeros(x_.numbers);
    d_weight_ = row(kFloat32, weight_.numbers);
  }

  void run() {
    const Tensor kernels = row(kFloat32, kNumbers * out_ * in_), d_kernels = zeros(kernels.numbers);
    transform(vologan_winograd_gather, kKernel, weight_, kernels, 0, out_);
    const int64_t all = n_ * patches_[0];
    for (int64_t first = 0; first < all;) {
      const int64_t count = random_.whole(1, all - first), patches = count * patches_[1];
      const Tensor d = row(kFloat32, kNumbers * patches * in_), m = zeros(kNumbers * patches * out_);
      transform(vologan_winograd_gather, kImage, x_, d, first, count);
      multiply(d, kernels, m, patches, [](float a, float b, float& c) { c += a * b; });
      transform(vologan_winograd_scatter, kResult, y_, m, first, count);
      const Tensor z = row(kFloat32, m.numbers), dd = zeros(d.numbers);
      transform(vologan_winograd_gather, kResult, grad_, z, first, count);
      multiply(d, d_kernels, z, patches, [](float a, float& b, float c) { b += a * c; });
      multiply(dd, kernels, z, patches, [](float& a, float b, float c) { a += b * c; });
      transform(vologan_winograd_scatter, kImage, dx_, dd, first, count);
      first += count;
    }
    transform(vologan_winograd_scatter, kKernel, d_weight_, d_kernels, 0, out_);
    judge();
  }

 private:
  static constexpr int64_t kNumbers = 36;

  Tensor zeros(int64_t numbers) { return random_row(random_, kFloat32, numbers, 0, 0); }

  static float* numbers_of(const Tensor& tensor) { return static_cast<float*>(tensor.view.data); }

  // A transform with one thread and with several: the same bits.
  void transform(void (*run)(const VologanWinograd*), VologanPatches kind, const Tensor& image,
                 const Tensor& transformed, int64_t first, int64_t count) {
    const int64_t* sides = kind == kImage ? x_sides_ : y_sides_;
    VologanWinograd call{};
    call.patches = kind;
    call.threads = 1;
    call.image = numbers_of(image);
    call.h = kind == kKernel ? 3 : sides[0];
    call.w = kind == kKernel ? 3 : sides[1];
    call.c = kind == kResult ? out_ : in_;
    call.row_stride = call.w * call.c;
    call.image_stride = call.h * call.row_stride;
    if (kind == kImage) {
      call.padding_rows = padding_[0];
      call.padding_columns = padding_[1];
    }
    call.rows = kind == kKernel ? 1 : patches_[0];
    call.columns = kind == kKernel ? 1 : patches_[1];
    call.first = first;
    call.count = count;
    call.transformed = numbers_of(transformed);
    call.plane_stride = transformed.numbers / kNumbers;
    const bool scatters = run == vologan_winograd_scatter;
    if (scatters && kind == kResult) call.bias = numbers_of(bias_);
    const Tensor& written = scatters ? image : transformed;
    const std::vector<float> before(numbers_of(written), numbers_of(written) + written.numbers);
    run(&call);
    const std::vector<float> alone(numbers_of(written), numbers_of(written) + written.numbers);
    std::copy(before.begin(), before.end(), numbers_of(written));
    call.threads = random_.whole(2, 5);
    run(&call);
    if (std::memcmp(alone.data(), numbers_of(written), alone.size() * sizeof(float)) != 0)
      fail("bits with several threads");
  }

  // Call f for the numbers that belong together of d (36, patches, in), kernels (36, out, in) and m (36, patches, out).
  template <class F>
  void multiply(const Tensor& d, const Tensor& kernels, const Tensor& m, int64_t patches, const F& f) const {
    for (int64_t k = 0; k < kNumbers; ++k) {
      for (int64_t patch = 0; patch < patches; ++patch) {
        for (int64_t o = 0; o < out_; ++o) {
          for (int64_t i = 0; i < in_; ++i) {
            f(numbers_of(d)[(k * patches + patch) * in_ + i], numbers_of(kernels)[(k * out_ + o) * in_ + i],
              numbers_of(m)[(k * patches + patch) * out_ + o]);
          }
        }
      }
    }
  }

  void judge() const {
    std::vector<double> y(y_.numbers), dx(x_.numbers), d_weight(weight_.numbers);
    std::vector<double> y_terms(y.size(), 1), dx_terms(dx.size(), 1), d_weight_terms(d_weight.size(), 1);
    for (int64_t at = 0; at < y_.numbers; ++at) {
      const int64_t o = at % out_, column = at / out_ % y_sides_[1], line = at / out_ / y_sides_[1] % y_sides_[0];
      const int64_t n = at / out_ / y_sides_[1] / y_sides_[0];
      const double g = numbers_of(grad_)[at];
      if (bias_.numbers > 0) y[at] = numbers_of(bias_)[o];
      for (int64_t k = 0; k < 9; ++k) {
        const int64_t from_line = line + k / 3 - padding_[0], from_column = column + k % 3 - padding_[1];
        if (from_line < 0 || from_line >= x_sides_[0] || from_column < 0 || from_column >= x_sides_[1]) continue;
        for (int64_t i = 0; i < in_; ++i) {
          const int64_t from = ((n * x_sides_[0] + from_line) * x_sides_[1] + from_column) * in_ + i;
          const int64_t by = (o * 9 + k) * in_ + i;
          const double x = numbers_of(x_)[from], w = numbers_of(weight_)[by];
          y[at] += x * w;
          dx[from] += g * w;
          d_weight[by] += g * x;
          y_terms[at] += std::fabs(x * w);
          dx_terms[from] += std::fabs(g * w);
          d_weight_terms[by] += std::fabs(g * x);
        }
      }
    }
    close(y_, y, y_terms, "y");
    close(dx_, dx, dx_terms, "dx");
    close(d_weight_, d_weight, d_weight_terms, "d_weight");
  }

  void close(const Tensor& found, const std::vector<double>& truth, const std::vector<double>& terms,
             const char* name) const {
    for (int64_t i = 0; i < found.numbers; ++i) {
      if (!(std::fabs(numbers_of(found)[i] - truth[i]) <= tolerance(kFloat32) * terms[i])) fail(name);
    }
  }

  [[noreturn]] void fail(const char* name) const {
    std::fprintf(stderr, "Winograd, %s: %d x %d x %d x %d, %d results, padding %d, %d\n", name, static_cast<int>(n_),
                 static_cast<int>(in_), static_cast<int>(x_sides_[0]), static_cast<int>(x_sides_[1]),
                 static_cast<int>(out_), static_cast<int>(padding_[0]), static_cast<int>(padding_[1]));
    std::abort();
  }

  Random& random_;
  int64_t n_ = 0, in_ = 0, out_ = 0;
  int64_t padding_[2] = {}, x_sides_[2] = {}, y_sides_[2] = {}, patches_[2] = {};  // rows, columns
  Tensor x_, weight_, bias_, grad_, y_, dx_, d_weight_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 && count != 4) {
    std::fprintf(stderr, "usage: norm_test CASES SEED [LEVEL]\n");
    return 2;
  }
  const int64_t cases = std::atoll(arguments[1]), seed = std::atoll(arguments[2]);
  std::istringstream levels(count == 4 ? arguments[3] : vologan_levels());
  for (std::string level; levels >> level;) {
    if (vologan_use_level(level.c_str()) != 0) {
      std::fprintf(stderr, "no level %s here, only %s\n", level.c_str(), vologan_levels());
      return 2;
    }
    std::printf("%s\n", level.c_str());
    std::fflush(stdout);
    for (int64_t i = 0; i < cases; ++i) {
      Random random(seed + i);
      Case(random).run();
      nadam(random);
      Convolution(random).run();
    }
  }
  return vologan_use_level("no such level") == 1 ? 0 : 1;
}
