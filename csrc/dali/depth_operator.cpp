// fn.vologan.depth: the bytes of a depth file to the normalised depth of a training square.
//
// Inputs: the file (uint8), its path, which errors name (uint8), and the shape of the colour image (int64: height,
// width, channels) whose centre square the depth must lie under. Output: float32 (size, size, 1) in pixels.h's
// terms.
#include "square_depth.h"

namespace vologan::data {

class DepthOperator : public dali::Operator<dali::CPUBackend> {
 public:
  explicit DepthOperator(const dali::OpSpec& spec) : Operator(spec), depth_(spec), threads_(num_threads_) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>& outputs, const dali::Workspace& ws) override {
    SquareDepth::check_inputs(ws);
    outputs.resize(1);
    outputs[0].type = DALI_FLOAT;
    outputs[0].shape =
        dali::uniform_list_shape(ws.GetInputBatchSize(0), dali::TensorShape<>{depth_.size(), depth_.size(), 1});
    return true;
  }

  void RunImpl(dali::Workspace& ws) override {
    auto& output = ws.Output<dali::CPUBackend>(0);
    output.SetLayout("HWC");
    auto& pool = ws.GetThreadPool();
    for (int i = 0; i < output.num_samples(); ++i) {
      pool.AddWork([this, &ws, &output, i](int thread) {
        depth_.read(ws, i, threads_[thread], output.mutable_tensor<float>(i));
      });
    }
    pool.RunAll();
  }

 private:
  const SquareDepth depth_;
  std::vector<SquareDepth::Scratch> threads_;
};

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Depth, ::vologan::data::DepthOperator, ::dali::CPU);

DALI_SCHEMA(vologan__Depth)
    .DocStr("Decodes a depth file (EXR, grey PNG, NPY, PFM) and normalises the square that a colour image's centre "
            "crop leaves: 0 missing, -1 background, else [1/1024, 1].")
    .NumInput(3)
    .NumOutput(1)
    .AddArg("size", "Side of the square, in pixels.", DALI_INT32)
    .AddArg("gain", "A valid value d becomes d · gain + offset.", DALI_FLOAT)
    .AddArg("offset", "See `gain`.", DALI_FLOAT)
    .AddArg("background", "File value of the background; NaN: none.", DALI_FLOAT)
    .AddOptionalArg("invalid", "File values that mean \"not measured\".", std::vector<float>{})
    .AddOptionalArg("channel", "EXR channel; empty: the one that names itself depth.", "");
