#include "bindings.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino::bind {
namespace {

UpsampleArgmax upsample_argmax_of(uintptr_t logits, const std::string& dtype, std::array<int64_t, 4> shape,
                                  std::array<int64_t, 4> strides, std::array<int64_t, 2> size, uintptr_t labels,
                                  const std::string& labels_dtype, uintptr_t confidence,
                                  std::optional<float> threshold) {
  UpsampleArgmax op{};
  op.logits = pointer<const void>(logits);
  op.logits_dtype = one_of(dtype, {DType::kFloat32, DType::kFloat16, DType::kBFloat16}, "logits");
  op.batch = shape[0], op.classes = shape[1], op.in_h = shape[2], op.in_w = shape[3];
  op.stride_b = strides[0], op.stride_k = strides[1], op.stride_y = strides[2], op.stride_x = strides[3];
  op.out_h = size[0], op.out_w = size[1];
  op.labels = pointer<void>(labels);
  op.labels_dtype = one_of(labels_dtype, {DType::kUint8, DType::kInt16, DType::kInt32}, "labels");
  op.confidence = pointer<float>(confidence);
  op.has_threshold = threshold.has_value();
  op.threshold = threshold.value_or(0.0f);
  return op;
}

#ifdef OVSDINO_WITH_CUDA
void upsample_argmax_on_stream(const UpsampleArgmax& op, uintptr_t stream) {
  upsample_argmax_cuda(op, pointer<void>(stream));
}
#endif

constexpr const char* kArguments =
    "(logits, dtype, shape[4], strides[4], size[2], labels, labels_dtype, confidence or 0, threshold or None";

}  // namespace

void bind_upsample_argmax(pybind11::module_& m) {
  const std::string args = kArguments;
  define(m, "upsample_argmax_cpu", args + ", threads)", upsample_argmax_of, upsample_argmax_cpu);
  define(m, "upsample_argmax_host", args + "): the CUDA kernel's body on the CPU, for tests", upsample_argmax_of,
         upsample_argmax_host);
#ifdef OVSDINO_WITH_CUDA
  define(m, "upsample_argmax_cuda", args + ", stream)", upsample_argmax_of, upsample_argmax_on_stream);
#endif
}

}  // namespace ovsdino::bind
