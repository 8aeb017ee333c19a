// fn.vologan.depth: decodes a depth file to the normalised depth of a training image.
//
// Inputs: the bytes of the file (uint8), its path (uint8), which errors name, and the shape of the colour image
// (int64: height, width, channels), or zeros without a colour image. The depth is taken under the rectangle in that
// image's centre that has the aspect ratio of the output. Output: float32 (height, width, 1), normalised as in
// pixels.h.
//
// The device "mixed" exists if the plugin was built with CUDA. Its output is memory of the GPU. EXR files whose data
// window is the output are decoded on the GPU. All other files are decoded by the CPU's threads, to the same bits, and
// copied.
#include <optional>

#include "cropped_depth.h"
#include "dali/pipeline/operator/operator.h"

#ifdef VOLOGAN_CUDA
#include "gpu_decoder.h"
#endif

namespace vologan::data {

template <class Backend>
class DepthOperatorBase : public dali::Operator<Backend> {
 public:
  explicit DepthOperatorBase(const dali::OpSpec& spec)
      : dali::Operator<Backend>(spec),
        depth_({spec.GetArgument<int>("height"), spec.GetArgument<int>("width")},
               spec.GetArgument<std::string>("channel"),
               {spec.GetArgument<float>("gain"), spec.GetArgument<float>("offset"),
                spec.GetArgument<float>("background"), spec.GetArgument<float>("floor"), nullptr, 0},
               spec.GetRepeatedArgument<float>("invalid"), spec.GetArgument<int>("types"),
               spec.GetArgument<int>("max_pixels"), 2.0),
        threads_(this->num_threads_) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>& outputs, const dali::Workspace& ws) override {
    const auto& shapes = ws.GetInputShape(2);
    for (int i = 0; i < shapes.num_samples(); ++i) {
      DALI_ENFORCE(shapes[i] == dali::TensorShape<>{3}, "vologan.depth expects the shape of a colour image (H, W, C)");
    }
    outputs.resize(1);
    outputs[0].type = DALI_FLOAT;
    outputs[0].shape = dali::uniform_list_shape(ws.GetInputBatchSize(0),
                                                dali::TensorShape<>{depth_.size().height, depth_.size().width, 1});
    return true;
  }

  CroppedDepth::File open(const dali::Workspace& ws, int i) const {
    const auto path = bytes(ws.Input<dali::CPUBackend>(1), i);
    const int64_t* shape = ws.Input<dali::CPUBackend>(2).tensor<int64_t>(i);
    const auto color = shape[0] ? std::optional(Shape{shape[0], shape[1]}) : std::nullopt;
    return depth_.open(bytes(ws.Input<dali::CPUBackend>(0), i), {path.begin(), path.end()}, color);
  }

  const CroppedDepth depth_;
  std::vector<CroppedDepth::Scratch> threads_;

 private:
  static std::span<const uint8_t> bytes(const dali::TensorList<dali::CPUBackend>& list, int i) {
    return {list.tensor<uint8_t>(i), static_cast<size_t>(list[i].shape().num_elements())};
  }
};

class DepthOperator : public DepthOperatorBase<dali::CPUBackend> {
 public:
  using DepthOperatorBase::DepthOperatorBase;

 protected:
  void RunImpl(dali::Workspace& ws) override {
    auto& output = ws.Output<dali::CPUBackend>(0);
    output.SetLayout("HWC");
    auto& pool = ws.GetThreadPool();
    for (int i = 0; i < output.num_samples(); ++i) {
      pool.AddWork([this, &ws, &output, i](int thread) {
        depth_.read(open(ws, i), threads_[thread], output.mutable_tensor<float>(i));
      });
    }
    pool.RunAll();
  }
};

#ifdef VOLOGAN_CUDA

class MixedDepthOperator : public DepthOperatorBase<dali::MixedBackend> {
 public:
  using DepthOperatorBase::DepthOperatorBase;

 protected:
  void RunImpl(dali::Workspace& ws) override {
    auto& output = ws.Output<dali::GPUBackend>(0);
    output.SetLayout("HWC");
    auto& pool = ws.GetThreadPool();
    const auto [height, width] = depth_.size();
    const int64_t pixels = height * width;
    std::vector<CroppedDepth::File> files, of_cpu;
    std::vector<float*> to;  // the place of each file in of_cpu
    batch_.clear();
    for (int i = 0; i < output.num_samples(); ++i) {
      CroppedDepth::File file = this->open(ws, i);
      float* const place = output.mutable_tensor<float>(i);
      if (file.info.format == "exr" && file.info.not_native.empty() && file.info.choice.equal.empty() &&
          depth_.is_result(file)) {
        depth::ImageTarget target{place, height, width, width, 1};
        target.normalize = true;
        target.rule = depth_.rule();
        batch_.add(file.data, file.name, depth_.channel(), target);
        files.push_back(std::move(file));
      } else {
        of_cpu.push_back(std::move(file));
        to.push_back(place);
      }
    }
    float* const images = reinterpret_cast<float*>(staging_.reserve(of_cpu.size() * pixels * sizeof(float)));
    for (size_t k = 0; k < of_cpu.size(); ++k) {
      pool.AddWork([this, &of_cpu, images, pixels, k](int thread) {
        depth_.read(of_cpu[k], threads_[thread], images + k * pixels);
      });
    }
    pool.RunAll();
    const depth::WaitAtEnd wait(ws.stream());  // the next batch overwrites the images, also after an error
    for (size_t k = 0; k < of_cpu.size(); ++k) {
      depth::copy_to_gpu(to[k], images + k * pixels, pixels * sizeof(float), ws.stream());
    }
    const std::vector<depth::ChunkResult>& results = decoder_.decode(batch_, ws.stream());
    depth::wait_for(ws.stream());
    for (size_t k = 0; k < files.size(); ++k) {
      if (!batch_.check(k, results.data())) CroppedDepth::fail_without_depth(files[k]);
    }
  }

 private:
  depth::ChunkBatch batch_;
  depth::GpuChunkDecoder decoder_;
  depth::GpuBuffer staging_{depth::GpuBuffer::Kind::Pinned};
};

#endif

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Depth, ::vologan::data::DepthOperator, ::dali::CPU);
#ifdef VOLOGAN_CUDA
DALI_REGISTER_OPERATOR(vologan__Depth, ::vologan::data::MixedDepthOperator, ::dali::Mixed);
#endif

DALI_SCHEMA(vologan__Depth)
    .DocStr(
        "Decodes a depth file (EXR, grey PNG, NPY, PFM) and normalises the part that a colour image's centre "
        "crop leaves: 0 missing, -1 background, else [1/1024, 1].")
    .NumInput(3)
    .NumOutput(1)
    .AddArg("height", "Height of the output, in pixels.", DALI_INT32)
    .AddArg("width", "Width of the output, in pixels.", DALI_INT32)
    .AddArg("gain", "A valid value d becomes d · gain + offset.", DALI_FLOAT)
    .AddArg("offset", "See `gain`.", DALI_FLOAT)
    .AddArg("background", "File value of the background; NaN: none.", DALI_FLOAT)
    .AddArg("floor", "A value d with d · gain up to this is missing; NaN: none is.", DALI_FLOAT)
    .AddOptionalArg("invalid", "File values that mean \"not measured\".", std::vector<float>{})
    .AddOptionalArg("types", "Accepted values: 1 floats + 2 integers of more than 8 bits + 4 of 8 bits.", 7)
    .AddOptionalArg("max_pixels", "Largest number of pixels of a file.", 1 << 26)
    .AddOptionalArg("channel", "EXR channel; empty: the one whose name says depth.", "");
