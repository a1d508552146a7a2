// The body of the CUDA kernel of preprocess on the CPU: tests compare it where there is no GPU.
#include "ovsdino/detail/resize.h"
#include "ovsdino/preprocess.h"

namespace ovsdino {
namespace {

template <typename T, typename Source>
void resize(const Preprocess& op) {
  for (int64_t batch = 0; batch < op.batch; ++batch) {
    const Source source(op, batch);
    for (int32_t y = 0; y < op.out_h; ++y) {
      for (int32_t x = 0; x < op.out_w; ++x) resize_pixel<T>(op, source, batch, y, x);
    }
  }
}

template <typename T>
void resize(const Preprocess& op) {
  if (op.format == PixelFormat::kNv12) return resize<T, Nv12>(op);
  if (op.stride_c == 1 && op.stride_x == 3) return resize<T, PackedRgb>(op);
  resize<T, StridedRgb>(op);
}

}  // namespace

void preprocess_host(const Preprocess& op) {
  check_preprocess(op);
  if (op.out_dtype == DType::kFloat32) resize<float>(op);
  if (op.out_dtype == DType::kFloat16) resize<Half>(op);
  if (op.out_dtype == DType::kBFloat16) resize<BFloat16>(op);
}

}  // namespace ovsdino
