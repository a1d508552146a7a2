// preprocess on CUDA: a thread for each output pixel; the body is in detail/resize.h.
#include "launch.h"
#include "ovsdino/detail/resize.h"
#include "ovsdino/preprocess.h"

namespace ovsdino {
namespace {

template <typename T, typename Source>
__global__ void __launch_bounds__(kPixelsX* kPixelsY, 4) preprocess_pixel_kernel(Preprocess op) {
  const PixelGrid grid(op.batch, op.out_h, op.out_w);
  grid.for_each([&](int64_t batch, int32_t y, int32_t x) { resize_pixel<T>(op, Source(op, batch), batch, y, x); });
}

template <typename T, typename Source>
void launch(const Preprocess& op, cudaStream_t stream) {
  const PixelGrid grid(op.batch, op.out_h, op.out_w);
  preprocess_pixel_kernel<T, Source><<<grid.blocks(), dim3(kPixelsX, kPixelsY), 0, stream>>>(op);
  check_launch("preprocess");
}

template <typename T>
void launch(const Preprocess& op, cudaStream_t stream) {
  if (op.format == PixelFormat::kNv12) return launch<T, Nv12>(op, stream);
  if (op.stride_c == 1 && op.stride_x == 3) return launch<T, PackedRgb>(op, stream);
  launch<T, StridedRgb>(op, stream);
}

}  // namespace

void preprocess_cuda(const Preprocess& op, void* stream) {
  check_preprocess(op);
  if (op.batch == 0) return;
  if (op.out_dtype == DType::kFloat32) launch<float>(op, static_cast<cudaStream_t>(stream));
  if (op.out_dtype == DType::kFloat16) launch<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.out_dtype == DType::kBFloat16) launch<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

}  // namespace ovsdino
