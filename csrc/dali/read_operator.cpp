// fn.vologan.read: reads the bytes of a file, or of a part of it.
//
// Inputs: the path of the file (uint8), and offset, size and CRC-32 (int64, 3 values). Size −1 means all bytes from the
// offset on. CRC-32 −1 means that it is unknown; else other bytes are an error. Output: the bytes, uint8 (size). With
// the argument `color`, files that no loader reads as colour are an error, and so are images of more than `max_pixels`.
#include <string>
#include <vector>

#include "color_kind.h"
#include "dali/pipeline/operator/operator.h"
#include "file_part.h"

namespace vologan::data {

class ReadOperator : public dali::Operator<dali::CPUBackend> {
 public:
  explicit ReadOperator(const dali::OpSpec& spec)
      : Operator(spec), color_(spec.GetArgument<bool>("color")), max_pixels_(spec.GetArgument<int>("max_pixels")) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc>&, const dali::Workspace& ws) override {
    const auto& spans = ws.GetInputShape(1);
    for (int i = 0; i < spans.num_samples(); ++i) {
      DALI_ENFORCE(spans[i] == dali::TensorShape<>{3}, "vologan.read expects offset, size and CRC-32");
    }
    return false;
  }

  void RunImpl(dali::Workspace& ws) override {
    const auto& paths = ws.Input<dali::CPUBackend>(0);
    const auto& spans = ws.Input<dali::CPUBackend>(1);
    const int batch = paths.num_samples();
    auto& pool = ws.GetThreadPool();
    std::vector<FilePart> parts(batch);
    for (int i = 0; i < batch; ++i) {
      pool.AddWork([&, i](int) {
        const auto* path = reinterpret_cast<const char*>(paths.tensor<uint8_t>(i));
        const int64_t* span = spans.tensor<int64_t>(i);
        parts[i].open({path, static_cast<size_t>(paths[i].shape().num_elements())}, span[0], span[1], span[2]);
      });
    }
    pool.RunAll();
    dali::TensorListShape<> shape(batch, 1);
    for (int i = 0; i < batch; ++i) shape.set_tensor_shape(i, dali::TensorShape<>{parts[i].size()});
    auto& output = ws.Output<dali::CPUBackend>(0);
    output.Resize(shape, DALI_UINT8);
    for (int i = 0; i < batch; ++i) {
      const auto work = [&, i](int) {
        auto* const bytes = output.mutable_tensor<uint8_t>(i);
        parts[i].read(bytes);
        if (color_) parts[i].refuse(refused_color({bytes, static_cast<size_t>(parts[i].size())}, max_pixels_));
      };
      pool.AddWork(work, parts[i].size());
    }
    pool.RunAll();
  }

 private:
  const bool color_;
  const int max_pixels_;
};

}  // namespace vologan::data

DALI_REGISTER_OPERATOR(vologan__Read, ::vologan::data::ReadOperator, ::dali::CPU);

DALI_SCHEMA(vologan__Read)
    .DocStr(
        "Reads a part of a file: its path, and (offset, size, CRC-32), where size -1 means all from the offset on, and "
        "CRC-32 -1 that it is unknown.")
    .NumInput(2)
    .NumOutput(1)
    .AddOptionalArg("color", "Refuse files that no loader reads as colour.", false)
    .AddOptionalArg("max_pixels", "Largest number of pixels of a colour file.", 1 << 26);
