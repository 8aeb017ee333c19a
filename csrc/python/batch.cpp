// vologan_fast._batch: makes batches from decoded images, for vologan_fast/data; and takes images to the planes of a
// network and back, for vologan_fast/translation.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "batch_memory.h"
#include "pack_image.h"
#include "pixel_rows.h"
#include "translated_rows.h"

namespace py = pybind11;
using namespace vologan::data;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

constexpr py::ssize_t kCodes = 1 << 16;

struct Draw {
  int64_t index;
  Augmentation augmentation;
};

std::vector<Draw> checked_draws(const Array<int32_t>& draws, int64_t images, Shape size) {
  const auto values = draws.unchecked<2>();
  std::vector<Draw> result;
  for (py::ssize_t i = 0; i < values.shape(0); ++i) {
    const int64_t index = values(i, 0), top = values(i, 2), left = values(i, 3);
    if (index < 0 || index >= images || top < 0 || top > size.height || left < 0 || left > size.width) {
      throw std::out_of_range("a draw lies outside of the images");
    }
    result.push_back({index, {values(i, 1) != 0, top, left}});
  }
  return result;
}

// Returns an array (count, height, width, channels), which belongs to the caller and is not initialised.
py::array_t<float> empty(const std::shared_ptr<BatchMemory>& memory, py::ssize_t count, py::ssize_t height,
                         py::ssize_t width, py::ssize_t channels) {
  if (count < 0 || std::min({height, width, channels}) < 1) {
    throw std::invalid_argument("expected a count of images, and the size and the channels of one");
  }
  const size_t values = std::max<size_t>(count * height * width * channels, 1);
  auto* owner = new std::shared_ptr<void>(memory->take(values * sizeof(float)));
  const py::capsule keep(owner, [](void* pointer) { delete static_cast<std::shared_ptr<void>*>(pointer); });
  return py::array_t<float>({count, height, width, channels}, static_cast<float*>(owner->get()), keep);
}

// Fills `batch` with augmented images. They have depth if `depth` is given, and their other channels are colour: red,
// green and blue, or grey.
//   color   (n, H, W, 3), or none
//   depth   (n, H, W), normalised float32, or codes; `levels` then holds the normalised depth of each code. Or none
//   draws   N rows of index, flip, top, left
//   batch   (N, H, W, channels)
void pack(const std::optional<Array<uint8_t>>& color, const std::optional<py::array>& depth,
          const std::optional<Array<float>>& levels, const Array<int32_t>& draws, Array<float>& batch) {
  if (color ? color->ndim() != 4 || color->shape(3) != 3 : !depth || depth->ndim() != 3) {
    throw std::invalid_argument("expected colour (n, H, W, 3), depth (n, H, W), or both");
  }
  const auto shape = [&](int axis) { return color ? color->shape(axis) : depth->shape(axis); };
  const int64_t images = shape(0);
  const Shape size{shape(1), shape(2)};
  const int64_t width = size.width, pixels = size.pixels();
  const bool fits = !depth || (depth->ndim() == 3 && depth->shape(0) == images && depth->shape(1) == size.height &&
                               depth->shape(2) == width);
  const bool typed =
      !depth || (levels ? Array<uint16_t>::check_(*depth) && levels->size() == kCodes : Array<float>::check_(*depth));
  if (!fits || !typed || draws.ndim() != 2 || draws.shape(1) != 4) {
    throw std::invalid_argument("expected depth (n, H, W), float32 or codes with their 65536 levels, and draws (N, 4)");
  }
  if (batch.ndim() != 4 || batch.shape(0) != draws.shape(0) || batch.shape(1) != size.height ||
      batch.shape(2) != width) {
    throw std::invalid_argument("expected room for (N, H, W, channels)");
  }
  const Channels channels{static_cast<int>(batch.shape(3)) - depth.has_value(), depth.has_value()};
  channels.check();
  if (color.has_value() != (channels.color > 0))
    throw std::invalid_argument("expected room for colour if there is any");
  if (channels.is_rgbd() && reinterpret_cast<uintptr_t>(batch.data()) % (4 * sizeof(float)) != 0) {
    throw std::invalid_argument("expected room for (N, H, W, 4), aligned to a pixel");
  }
  const std::vector<Draw> todo = checked_draws(draws, images, size);
  const uint8_t* colors = color ? color->data() : nullptr;
  const void* depths = depth ? depth->data() : nullptr;
  const float* table = levels ? levels->data() : nullptr;
  float* out = batch.mutable_data();
  const py::gil_scoped_release release;
  std::vector<float> row(width);
  for (const auto& [index, augmentation] : todo) {
    const int64_t first = index * pixels;
    const auto color_row = [=](int64_t y) { return colors + 3 * (first + y * width); };
    if (table) {
      const auto decoded_row = [&, codes = static_cast<const uint16_t*>(depths)](int64_t pixel, int64_t count) {
        look_up_row(codes + first + pixel, table, count, row.data());
        return row.data();
      };
      pack_image(color_row, width * 3, decoded_row, size, augmentation, channels, out);
    } else {
      const auto kept_row = [=, kept = static_cast<const float*>(depths)](int64_t pixel, int64_t count) {
        const float* row = kept + first + pixel;
        prefetch(row, 2 * width * sizeof(float), count * sizeof(float));
        return row;
      };
      pack_image(color_row, width * 3, kept_row, size, augmentation, channels, out);
    }
    out += pixels * channels.count();
  }
}

// Applies normalize_depth to each value of depth (h, w), in place.
void normalize(Array<float>& depth, float gain, float offset, float background, float floor,
               const std::vector<float>& invalid) {
  const DepthRule rule{gain, offset, background, floor, invalid.data(), static_cast<int>(invalid.size())};
  float* values = depth.mutable_data();
  const py::ssize_t count = depth.size();
  const py::gil_scoped_release release;
  normalize_row(values, count, rule);
}

// Checks that arrays have the shape (h, w), the colour (h, w, 3), and the planes (count, h, w).
bool fit(const py::array& planes, py::ssize_t count, const Array<uint8_t>& color, const py::array& depth) {
  return depth.ndim() == 2 && color.ndim() == 3 && color.shape(0) == depth.shape(0) &&
         color.shape(1) == depth.shape(1) && color.shape(2) == 3 && planes.ndim() == 3 && planes.shape(0) == count &&
         planes.shape(1) == depth.shape(0) && planes.shape(2) == depth.shape(1);
}

// Fills planes (4, h, w) with the colour (h, w, 3) and the normalised depth (h, w) of an image.
void split(const Array<uint8_t>& color, const Array<float>& depth, Array<float>& planes) {
  if (!fit(planes, 4, color, depth)) {
    throw std::invalid_argument("expected colour (h, w, 3), depth (h, w) and room for (4, h, w)");
  }
  float* const to = planes.mutable_data();
  const int64_t pixels = depth.size();
  const py::gil_scoped_release release;
  split_row(color.data(), depth.data(), pixels, {to, to + pixels, to + 2 * pixels, to + 3 * pixels});
}

// Fills joined (h, w, 4) with the first three planes (4, h, w), and with 255. Background keeps its colour (h, w, 3).
// Returns whether all planes are finite.
bool join(const Array<float>& planes, const Array<uint8_t>& color, const Array<float>& depth, Array<uint8_t>& joined) {
  if (!fit(planes, 4, color, depth) || joined.ndim() != 3 || joined.shape(2) != 4 ||
      joined.size() != 4 * depth.size() || joined.shape(0) != depth.shape(0)) {
    throw std::invalid_argument("expected planes (4, h, w), colour (h, w, 3), depth (h, w) and a result (h, w, 4)");
  }
  const float* const from = planes.data();
  uint8_t* const to = joined.mutable_data();
  const int64_t pixels = depth.size();
  const py::gil_scoped_release release;
  return join_row({from, from + pixels, from + 2 * pixels, from + 3 * pixels}, color.data(), depth.data(), pixels,
                  reinterpret_cast<uint32_t*>(to));
}

template <class T>
void restore_as(const Array<float>& z, const Array<float>& file, const Array<float>& before, float gain, float offset,
                const py::array& missing, const py::array& codes, py::array& restored) {
  const FileRule<T> rule{
      gain,
      offset,
      *static_cast<const T*>(missing.data()),
      {static_cast<const typename FileRule<T>::Code*>(codes.data()), static_cast<size_t>(codes.shape(0))}};
  T* const to = static_cast<T*>(restored.mutable_data());
  const int64_t pixels = z.size();
  const py::gil_scoped_release release;
  restore_row(z.data(), file.data(), before.data(), pixels, rule, to);
}

// Fills restored (h, w) by FileRule. Its type is float32, float16 or uint16. missing (1,) and codes (n, 2) have the
// same type. The other arrays are float32.
void restore(const Array<float>& z, const Array<float>& file, const Array<float>& before, float gain, float offset,
             const py::array& missing, const py::array& codes, py::array& restored) {
  const py::dtype type = restored.dtype();
  const bool typed = missing.dtype().equal(type) && codes.dtype().equal(type);
  const bool whole = (missing.flags() & codes.flags() & restored.flags() & py::array::c_style) != 0;
  if (!typed || !whole || missing.size() != 1 || codes.ndim() != 2 || codes.shape(1) != 2 || file.size() != z.size() ||
      before.size() != z.size() || restored.size() != z.size()) {
    throw std::invalid_argument("expected arrays of one size, and missing (1,) and codes (n, 2) of the result's type");
  }
  const char kind = type.char_();
  const auto as = kind == 'f'   ? restore_as<float>
                  : kind == 'e' ? restore_as<Half>
                  : kind == 'H' ? restore_as<uint16_t>
                                : nullptr;
  if (!as) throw std::invalid_argument("expected a result of float32, float16 or uint16");
  as(z, file, before, gain, offset, missing, codes, restored);
}

}  // namespace

PYBIND11_MODULE(_batch, m) {
  m.attr("simd_level") = pack_row_level();
  py::class_<BatchMemory, std::shared_ptr<BatchMemory>>(m, "BatchMemory", "Memory of batches, used again.")
      .def(py::init<>())
      .def("empty", &empty, py::arg("count"), py::arg("height"), py::arg("width"), py::arg("channels") = 4);
  m.def("normalize", &normalize, py::arg("depth").noconvert(), py::arg("gain"), py::arg("offset"),
        py::arg("background"), py::arg("floor"), py::arg("invalid"));
  m.def("pack", &pack, py::arg("color").noconvert(), py::arg("depth").noconvert(), py::arg("levels").noconvert(),
        py::arg("draws").noconvert(), py::arg("batch").noconvert());
  m.def("split", &split, py::arg("color").noconvert(), py::arg("depth").noconvert(), py::arg("planes").noconvert());
  m.def("join", &join, py::arg("planes").noconvert(), py::arg("color").noconvert(), py::arg("depth").noconvert(),
        py::arg("joined").noconvert());
  m.def("restore", &restore, py::arg("z").noconvert(), py::arg("file").noconvert(), py::arg("before").noconvert(),
        py::arg("gain"), py::arg("offset"), py::arg("missing"), py::arg("codes"), py::arg("restored"));
}
