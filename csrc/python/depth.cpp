// vologan_fast._depth: the functions that vologan_fast/depth.py calls. That file checks the arguments and does
// everything that NumPy can do itself.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <system_error>
#include <tuple>

#include "batch.h"
#include "chunk_batch.h"
#include "decode.h"
#include "rows.h"

#ifdef VOLOGAN_CUDA
#include "gpu_decoder.h"
#endif

namespace py = pybind11;
using namespace vologan::depth;

namespace {

// File names and channel names are bytes. Python's strings hold any bytes in the way of os.fsdecode.
py::str to_str(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeFSDefaultAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size())));
}

std::string to_path(const py::handle& path) {
  PyObject* bytes = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &bytes)) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(bytes);
}

std::optional<std::string> to_channel(const py::object& channel) {
  if (channel.is_none()) return std::nullopt;
  return to_path(channel);
}

// The exception types. They are created at import and live as long as the process, as a module's exceptions do.
PyObject* error_type = nullptr;
PyObject* not_native_type = nullptr;

template <class... Arguments>
py::object new_exception(PyObject* type, const Arguments&... arguments) {
  return py::reinterpret_borrow<py::object>(type)(arguments...);
}

// Returns the Python exception for a C++ one, without raising it.
py::object to_exception(const std::exception_ptr& error, const std::string& name) {
  try {
    std::rethrow_exception(error);
  } catch (const NotNative& e) {
    return new_exception(not_native_type, to_str(e.what()));
  } catch (const Error& e) {
    return new_exception(error_type, to_str(e.what()));
  } catch (const std::system_error& e) {  // OSError(errno) becomes FileNotFoundError, IsADirectoryError, …
    return new_exception(PyExc_OSError, e.code().value(), std::strerror(e.code().value()), to_str(name));
  } catch (const std::bad_alloc&) {
    return new_exception(PyExc_MemoryError, to_str(name + ": not enough memory to decode it"));
  } catch (const std::exception& e) {
    return new_exception(PyExc_RuntimeError, to_str(name + ": " + e.what()));
  }
}

[[noreturn]] void raise(const std::exception_ptr& error, const std::string& name) {
  const py::object exception = to_exception(error, name);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  throw py::error_already_set();
}

// Sources in the form that the decoder takes. It keeps the memory of bytes-like objects exported as long as it
// lives.
class Sources {
 public:
  Sources() = default;
  Sources(const Sources&) = delete;
  Sources& operator=(const Sources&) = delete;
  ~Sources() {
    for (Py_buffer& view : views_) PyBuffer_Release(&view);
  }

  void add(const py::handle& source, const std::string& name_of_bytes) {
    if (PyUnicode_Check(source.ptr()) || !PyObject_CheckBuffer(source.ptr())) {  // np.str_ has a buffer, too
      list.push_back({to_path(source), std::nullopt});
      return;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(source.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    views_.push_back(view);
    list.push_back({name_of_bytes, {{static_cast<const uint8_t*>(view.buf), static_cast<size_t>(view.len)}}});
  }

  std::vector<Source> list;

 private:
  std::vector<Py_buffer> views_;
};

// Calls `work` without the GIL. An exception that it throws becomes a Python exception.
template <class Work>
void without_gil(const std::string& name, const Work& work) {
  std::exception_ptr error;
  {
    const py::gil_scoped_release release;
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (error) raise(error, name);
}

py::list to_list(const std::vector<Channel>& channels) {
  py::list list;
  for (const Channel& channel : channels) list.append(py::make_tuple(to_str(channel.name), sample_name(channel.type)));
  return list;
}

py::tuple to_tuple(const Window& window) {
  return py::make_tuple(window.x, window.y, window.x + (window.width - 1), window.y + (window.height - 1));
}

// `place` is None, or where the chosen channel is: the name of its part (None if there is only one), its name there,
// and the names there of the channels that must equal it.
py::dict probe_source(const py::object& object, const py::object& channel, const Limits& limits,
                      const py::object& name_of_bytes) {
  Sources sources;
  sources.add(object, to_path(name_of_bytes));
  const Source& source = sources.list[0];
  const std::optional<std::string> wanted = to_channel(channel);
  Info info;
  without_gil(source.name, [&] {
    std::vector<uint8_t> file;
    if (!source.bytes) read_file(source.name, limits, file);
    info = probe(source.bytes.value_or(file), source.name, wanted, limits);
  });
  py::dict result;
  result["format"] = info.format;
  result["compression"] = info.compression;
  result["width"] = info.width;
  result["height"] = info.height;
  result["data_window"] = to_tuple({info.x, info.y, info.width, info.height});
  result["display_window"] = to_tuple(info.display);
  result["channels"] = to_list(info.channels);
  result["chosen"] = py::cast(info.choice.channel);
  result["why"] = to_str(info.choice.why);
  result["place"] = py::none();
  if (info.choice.channel) {
    const Channel& chosen = info.channels[*info.choice.channel];
    py::list equal;
    for (const size_t i : info.choice.equal) equal.append(to_str(info.channels[i].own_name));
    const bool one_part = info.channels.back().part == 0;
    const py::object part = one_part ? py::object(py::none()) : py::object(to_str(chosen.part_name));
    result["place"] = py::make_tuple(part, to_str(chosen.own_name), equal);
  }
  result["not_native"] = info.not_native;
  return result;
}

py::array_t<float> decode_source(const py::object& object, const py::object& channel, const Limits& limits,
                                 const py::object& name_of_bytes) {
  Sources sources;
  sources.add(object, to_path(name_of_bytes));
  const Source& source = sources.list[0];
  const std::optional<std::string> wanted = to_channel(channel);
  std::vector<uint8_t> file;
  std::span<const uint8_t> bytes;
  Info info;
  without_gil(source.name, [&] {
    if (!source.bytes) read_file(source.name, limits, file);
    bytes = source.bytes.value_or(file);
    info = probe(bytes, source.name, wanted, limits);
  });
  py::array_t<float> image({info.height, info.width});
  const Plane plane = Plane::packed(image.mutable_data(), info.height, info.width);
  without_gil(source.name, [&] {
    thread_local Decoder decoder;
    decoder.decode(bytes, source.name, wanted, plane, limits);
  });
  return image;
}

// Decodes sources into `out`: float32 (N, H, W), aligned, any strides. Returns a list: for each source None, or the
// exception that it caused.
py::list decode_sources(const std::vector<py::object>& objects, py::array& out, int threads, const py::object& channel,
                        const Limits& limits) {
  Sources sources;
  for (size_t i = 0; i < objects.size(); ++i) sources.add(objects[i], "<bytes of source " + std::to_string(i) + ">");
  const std::optional<std::string> wanted = to_channel(channel);
  constexpr py::ssize_t item = sizeof(float);
  std::vector<Plane> planes;
  for (size_t i = 0; i < objects.size(); ++i) {
    float* data = static_cast<float*>(out.mutable_data()) + static_cast<py::ssize_t>(i) * (out.strides(0) / item);
    planes.push_back({data, out.shape(1), out.shape(2), out.strides(1) / item, out.strides(2) / item});
  }
  std::vector<std::exception_ptr> errors;
  without_gil("depth images", [&] { errors = decode_batch(sources.list, planes, wanted, threads, limits); });
  py::list result;
  for (size_t i = 0; i < errors.size(); ++i) {
    result.append(errors[i] ? to_exception(errors[i], sources.list[i].name) : py::none());
  }
  return result;
}

// (gain, offset, background, floor, invalid), the fields of vologan_fast.data.pixels.DepthRule.
using Rule = std::tuple<float, float, float, float, std::vector<float>>;

// Decodes EXR files by run(batch), image i to target_of(i). Returns a list: for each source whether any of its depth
// is valid, or the exception that it caused. Validity has a meaning only if the target normalises.
template <class TargetOf, class Run>
py::list run_chunks(const std::vector<py::object>& objects, const py::object& channel, const Limits& limits,
                    const TargetOf& target_of, const Run& run) {
  Sources sources;
  for (size_t i = 0; i < objects.size(); ++i) sources.add(objects[i], "<bytes of source " + std::to_string(i) + ">");
  const std::optional<std::string> wanted = to_channel(channel);
  std::vector<std::exception_ptr> errors(objects.size());
  std::vector<char> valid(objects.size());
  without_gil("depth images", [&] {
    ChunkBatch batch;
    std::vector<std::vector<uint8_t>> files(objects.size());
    std::vector<size_t> added;
    for (size_t i = 0; i < objects.size(); ++i) {
      const Source& source = sources.list[i];
      try {
        if (!source.bytes) read_file(source.name, limits, files[i]);
        batch.add(source.bytes.value_or(files[i]), source.name, wanted, target_of(i), limits);
        added.push_back(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
    const std::vector<ChunkResult> results = run(batch);
    for (size_t k = 0; k < added.size(); ++k) {
      try {
        valid[added[k]] = batch.check(k, results.data());
      } catch (...) {
        errors[added[k]] = std::current_exception();
      }
    }
  });
  py::list result;
  for (size_t i = 0; i < errors.size(); ++i) {
    result.append(errors[i] ? to_exception(errors[i], sources.list[i].name) : py::bool_(valid[i]));
  }
  return result;
}

// Decodes EXR files on the CPU with the code that GPUs run (team_chunk.h), for tests.
//
// `out` is (N, H, W), or (N, H, W, 4) for RGBD pixels, in float32, float16, or uint16 for bfloat16. It is aligned
// and may have any strides, but the four elements of a pixel are adjacent. With a rule, depth is normalised.
py::list decode_chunks(const std::vector<py::object>& objects, py::array& out, const py::object& channel,
                       const std::optional<Rule>& rule, const Limits& limits) {
  const py::ssize_t item = out.itemsize(), image_bytes = out.strides(0);
  ImageTarget target{nullptr, out.shape(1), out.shape(2), out.strides(1) / item, out.strides(2) / item};
  target.type = out.dtype().kind() == 'u' ? PixelType::Bfloat16 : item == 2 ? PixelType::Float16 : PixelType::Float32;
  target.rgbd = out.ndim() == 4;
  target.normalize = rule.has_value();
  if (rule) {
    const auto& [gain, offset, background, floor, invalid] = *rule;
    target.rule = {gain, offset, background, floor, invalid.data(), static_cast<int>(invalid.size())};
  }
  uint8_t* const data = static_cast<uint8_t*>(out.mutable_data());
  const auto target_of = [&](size_t i) {
    target.data = data + static_cast<py::ssize_t>(i) * image_bytes;
    return target;
  };
  return run_chunks(objects, channel, limits, target_of,
                    [](const ChunkBatch& batch) { return HostChunkDecoder().decode(batch); });
}

#ifdef VOLOGAN_CUDA

using Triple = std::array<int64_t, 3>;

// Decodes EXR files to float32 (N, H, W) in the memory of a GPU, with any strides, counted in elements. Waits for
// the stream.
py::list decode_chunks_on_gpu(const std::vector<py::object>& objects, uintptr_t data, const Triple& shape,
                              const Triple& strides, const py::object& channel, const Limits& limits, int device,
                              uintptr_t stream) {
  const auto target_of = [&](size_t i) {
    float* const image = reinterpret_cast<float*>(data) + static_cast<int64_t>(i) * strides[0];
    return ImageTarget{image, shape[1], shape[2], strides[1], strides[2]};
  };
  const auto run = [&](const ChunkBatch& batch) {
    // Both are never destroyed: at the end of the process, CUDA may be gone before them.
    static std::mutex& mutex = *new std::mutex;
    static auto& decoders = *new std::map<int, GpuChunkDecoder>;
    const std::lock_guard lock(mutex);
    use_gpu(device);
    return decoders[device].decode(batch, reinterpret_cast<Stream>(stream));
  };
  return run_chunks(objects, channel, limits, target_of, run);
}

#endif

// Returns the index of the chosen name, or None, and the reason.
py::tuple choose(const std::vector<py::object>& names, const py::object& wanted) {
  std::vector<std::string> arrays;
  for (const py::object& name : names) arrays.push_back(to_path(name));
  const Choice choice = choose_array(arrays, to_channel(wanted));
  return py::make_tuple(choice.channel, to_str(choice.why));
}

}  // namespace

PYBIND11_MODULE(_depth, m) {
  error_type = PyErr_NewExceptionWithDoc(
      "vologan_fast.depth.DecodeError",
      "A depth file is broken, of an unknown kind, or larger than the limits: \"FILE: part: expected …, found …\".",
      PyExc_ValueError, nullptr);
  not_native_type = PyErr_NewException("vologan_fast._depth.NotNative", error_type, nullptr);
  if (!error_type || !not_native_type) throw py::error_already_set();
  m.attr("DecodeError") = py::handle(error_type);
  m.attr("NotNative") = py::handle(not_native_type);

  const Limits defaults;
  py::class_<Limits>(m, "Limits", "Caps that hold before anything is allocated.")
      .def(py::init([](int64_t max_pixels, int64_t max_bytes) { return Limits{max_pixels, max_bytes}; }), py::kw_only(),
           py::arg("max_pixels") = defaults.max_pixels, py::arg("max_bytes") = defaults.max_bytes)
      .def_readonly("max_pixels", &Limits::max_pixels, "Most pixels of an image.")
      .def_readonly("max_bytes", &Limits::max_bytes, "Most bytes of a file, and of all its channels decoded.");
  m.attr("simd_level") = row_kernels().level;
  m.def("probe", &probe_source);
  m.def("decode", &decode_source);
  m.def("choose_array", &choose);
  m.def("decode_batch", &decode_sources);
  m.def("decode_chunks", &decode_chunks);
#ifdef VOLOGAN_CUDA
  m.def("decode_chunks_on_gpu", &decode_chunks_on_gpu);
#endif
}
