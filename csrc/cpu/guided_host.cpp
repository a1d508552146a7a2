// The bodies of the CUDA kernels of guided_upsample on the CPU, one by one: tests compare them where there is no GPU.
#include "ovsdino/detail/guided_pixel.h"
#include "ovsdino/guided_upsample.h"

namespace ovsdino {
namespace {

template <typename T>
void forward(const GuidedUpsample& op) {
  const int64_t pixels = op.batch * op.h * op.w * op.scale * op.scale;
  for (int64_t i = 0; i < pixels; ++i) guided_pixel<T>(op, i);
}

template <typename T>
void backward(const GuidedUpsampleBackward& op) {
  const GuidedUpsample& in = op.forward;
  const int64_t cells = in.batch * in.h * in.w, pixels = cells * in.scale * in.scale;
  for (int64_t i = 0; i < pixels; ++i) guided_backward_pixel<T>(op, i);
  for (int64_t i = 0; i < cells * channel_groups(in.classes); ++i) guided_backward_cell<false, T>(op, i);
  for (int64_t i = 0; i < cells * channel_groups(in.channels); ++i) guided_backward_cell<true, T>(op, i);
}

}  // namespace

void guided_upsample_host(const GuidedUpsample& op) {
  check_guided(op);
  check_guided_layout(op);
  if (op.logits.dtype == DType::kFloat32) forward<float>(op);
  if (op.logits.dtype == DType::kFloat16) forward<Half>(op);
  if (op.logits.dtype == DType::kBFloat16) forward<BFloat16>(op);
}

void guided_upsample_backward_host(const GuidedUpsampleBackward& op) {
  check_guided_backward(op);
  check_guided_layout(op.forward);
  if (op.forward.logits.dtype == DType::kFloat32) backward<float>(op);
  if (op.forward.logits.dtype == DType::kFloat16) backward<Half>(op);
  if (op.forward.logits.dtype == DType::kBFloat16) backward<BFloat16>(op);
}

}  // namespace ovsdino
