// vologan_fast._image_loader: loads files as images of a batch, for vologan_fast/data.
#include "image_loader.h"
#include "jpeg.h"
#include "pixel_rows.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;
using namespace vologan::data;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

// Converts bytes, (path, offset, size, CRC-32 or −1), or None.
ImageFile to_file(const py::object& object) {
  if (object.is_none()) return {};
  if (py::isinstance<py::bytes>(object)) {
    const std::string_view bytes = py::reinterpret_borrow<py::bytes>(object);  // the caller holds them
    return {"", 0, 0, std::span(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size())};
  }
  const auto [path, offset, size, crc] = object.cast<std::tuple<std::string, int64_t, int64_t, int64_t>>();
  return {path, offset, size, std::nullopt, crc};
}

// Fills `images` with N augmented images. Returns the indices of the images that were not loaded.
//   colors, depths   N files each; None for files that the channels do not need
//   draws            N times flip, top, left
//   images           (N, H, W, channels)
std::vector<size_t> load(ImageLoader& loader, const std::vector<py::object>& colors,
                         const std::vector<py::object>& depths,
                         const std::vector<std::tuple<bool, int64_t, int64_t>>& draws, Floats& images) {
  const auto [height, width] = loader.size();
  const Channels channels = loader.channels();
  const int64_t values = height * width * channels.count();  // of an image
  const size_t count = colors.size();
  if (depths.size() != count || draws.size() != count || images.ndim() != 4 ||
      images.shape(0) != static_cast<py::ssize_t>(count) || images.shape(1) != height || images.shape(2) != width ||
      images.shape(3) != channels.count() ||
      (channels.is_rgbd() && reinterpret_cast<uintptr_t>(images.data()) % (4 * sizeof(float)) != 0)) {
    throw std::invalid_argument(
        "expected N files of both kinds, N draws, and room for (N, H, W, channels), RGBD aligned to a pixel");
  }
  struct Todo {
    ImageFile color, depth;
    Augmentation augmentation;
  };
  std::vector<Todo> todo;
  for (size_t i = 0; i < count; ++i) {
    const auto [flip, top, left] = draws[i];
    if (top < 0 || top > height || left < 0 || left > width)
      throw std::out_of_range("a crop lies outside of the image");
    todo.push_back({to_file(colors[i]), to_file(depths[i]), {flip, top, left}});
  }
  float* out = images.mutable_data();
  std::vector<size_t> missed;
  const py::gil_scoped_release release;
  for (size_t i = 0; i < count; ++i) {
    if (!loader.load(todo[i].color, todo[i].depth, todo[i].augmentation, out + i * values)) missed.push_back(i);
  }
  return missed;
}

// Fills rgb (N, H, W, 3) with the colours of N files. Returns the indices of the images that were not loaded.
std::vector<size_t> load_colors(ImageLoader& loader, const std::vector<py::object>& colors, Bytes& rgb) {
  const auto [height, width] = loader.size();
  if (rgb.ndim() != 4 || rgb.shape(0) != static_cast<py::ssize_t>(colors.size()) || rgb.shape(1) != height ||
      rgb.shape(2) != width || rgb.shape(3) != 3) {
    throw std::invalid_argument("expected N files, and room for (N, H, W, 3)");
  }
  std::vector<ImageFile> files;
  for (const py::object& color : colors) files.push_back(to_file(color));
  uint8_t* out = rgb.mutable_data();
  std::vector<size_t> missed;
  const py::gil_scoped_release release;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!loader.load_color(files[i], out + i * height * width * 3)) missed.push_back(i);
  }
  return missed;
}

// Returns the pixels (h, w, 3) of a JPEG of up to max_pixels. None for a file that ImageLoader would not load.
py::object decode_jpeg(const py::bytes& file, int64_t max_pixels) {
  thread_local Jpeg jpeg;  // keeps its memory
  const std::string_view bytes = file;
  if (!jpeg.open({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()})) return py::none();
  const int64_t height = jpeg.height(), width = jpeg.width();
  if (width > max_pixels / height) return py::none();
  Bytes rgb({height, width, int64_t{3}});
  uint8_t* out = rgb.mutable_data();
  const auto decode = [&] {
    const py::gil_scoped_release release;
    if (!jpeg.start({0, 0, height, width})) return false;
    for (int64_t y = 0; y < height; ++y, out += 3 * width) {
      const uint8_t* const row = jpeg.row();
      if (!row) return false;
      std::copy_n(row, 3 * width, out);
    }
    return jpeg.finish();
  };
  return decode() ? py::object(rgb) : py::none();
}

}  // namespace

PYBIND11_MODULE(_image_loader, m) {
  py::class_<ImageLoader>(m, "ImageLoader", "Two files to one image of a batch, where it knows their kinds.")
      .def(py::init([](std::pair<int64_t, int64_t> size, const std::string& channel, float gain, float offset,
                       float background, float floor, const std::vector<float>& invalid, int types,
                       std::pair<int, bool> channels, int64_t max_pixels, double max_nan) {
             const Shape shape{size.first, size.second};
             if (std::min(shape.height, shape.width) < 1) throw std::invalid_argument("expected height and width");
             return std::make_unique<ImageLoader>(
                 shape, channel, DepthRule{gain, offset, background, floor, nullptr, 0}, invalid, types,
                 Channels{channels.first, channels.second}, max_pixels, max_nan);
           }),
           py::arg("size"), py::arg("channel"), py::arg("gain"), py::arg("offset"), py::arg("background"),
           py::arg("floor"), py::arg("invalid"), py::arg("types") = 7, py::arg("channels") = std::pair(3, true),
           py::arg("max_pixels") = int64_t{1} << 26, py::arg("max_nan") = 2.0)
      .def("load", &load, py::arg("colors"), py::arg("depths"), py::arg("draws"), py::arg("images").noconvert())
      .def("load_colors", &load_colors, py::arg("colors"), py::arg("rgb").noconvert());
  m.def("decode_jpeg", &decode_jpeg, py::arg("file"), py::arg("max_pixels") = int64_t{1} << 26);
  m.attr("jpeg_backend") = jpeg_backend();
  m.attr("simd_level") = pack_row_level();
}
