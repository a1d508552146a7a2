#include <tuple>

#include "bindings.h"
#include "ovsdino/guided_upsample.h"

namespace ovsdino::bind {
namespace {

using Tensor = std::tuple<uintptr_t, std::string, std::array<int64_t, 4>>;  // address, dtype, strides
using Sizes = std::array<int64_t, 6>;

GuidedUpsample::View view_of(const Tensor& tensor, const char* what) {
  GuidedUpsample::View view{};
  view.data = pointer<const void>(std::get<0>(tensor));
  view.dtype = one_of(std::get<1>(tensor), {DType::kFloat32, DType::kFloat16, DType::kBFloat16}, what);
  const std::array<int64_t, 4>& strides = std::get<2>(tensor);
  view.stride_b = strides[0], view.stride_c = strides[1], view.stride_y = strides[2], view.stride_x = strides[3];
  return view;
}

GuidedUpsample forward_of(Tensor logits, Tensor guide_lo, Tensor guide_hi, Sizes sizes, uintptr_t beta, uintptr_t out) {
  GuidedUpsample op{};
  op.logits = view_of(logits, "logits");
  op.guide_lo = view_of(guide_lo, "guide_lo");
  op.guide_hi = view_of(guide_hi, "guide_hi");
  op.batch = sizes[0], op.classes = sizes[1], op.channels = sizes[2];
  op.h = sizes[3], op.w = sizes[4], op.scale = sizes[5];
  op.beta = pointer<const float>(beta);
  op.out = pointer<void>(out);
  return op;
}

GuidedUpsampleBackward backward_of(Tensor logits, Tensor guide_lo, Tensor guide_hi, Sizes sizes, uintptr_t beta,
                                   Tensor grad, std::array<uintptr_t, 4> grads, uintptr_t workspace) {
  GuidedUpsampleBackward op{};
  op.forward = forward_of(logits, guide_lo, guide_hi, sizes, beta, 0);
  op.grad = view_of(grad, "grad");
  op.grad_logits = pointer<void>(grads[0]);
  op.grad_guide_lo = pointer<void>(grads[1]);
  op.grad_guide_hi = pointer<void>(grads[2]);
  op.grad_beta = pointer<float>(grads[3]);
  op.workspace = pointer<float>(workspace);
  return op;
}

#ifdef OVSDINO_WITH_CUDA
void forward_on_stream(const GuidedUpsample& op, uintptr_t stream) { guided_upsample_cuda(op, pointer<void>(stream)); }

void backward_on_stream(const GuidedUpsampleBackward& op, uintptr_t stream) {
  guided_upsample_backward_cuda(op, pointer<void>(stream));
}
#endif

constexpr const char* kArguments =
    "(logits, guide_lo, guide_hi: each (address, dtype, strides[4]); "
    "(batch, classes, channels, h, w, scale), beta: address of a float32, ";

}  // namespace

void bind_guided_upsample(pybind11::module_& m) {
  const std::string forward = std::string(kArguments) + "out";
  const std::string backward =
      std::string(kArguments) + "grad like logits, addresses of the gradients[4], workspace or 0";
  define(m, "guided_upsample_cpu", forward + ", threads)", forward_of, guided_upsample_cpu);
  define(m, "guided_upsample_backward_cpu", backward + ", threads)", backward_of, guided_upsample_backward_cpu);
  define(m, "guided_upsample_host", forward + "): the CUDA kernel's body on the CPU, for tests", forward_of,
         guided_upsample_host);
  define(m, "guided_upsample_backward_host", backward + "): the CUDA kernels' bodies on the CPU, for tests",
         backward_of, guided_upsample_backward_host);
#ifdef OVSDINO_WITH_CUDA
  define(m, "guided_upsample_cuda", forward + ", stream)", forward_of, forward_on_stream);
  define(m, "guided_upsample_backward_cuda", backward + ", stream)", backward_of, backward_on_stream);
#endif
}

}  // namespace ovsdino::bind
