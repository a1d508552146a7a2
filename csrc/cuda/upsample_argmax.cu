// upsample_argmax on CUDA: a warp for each cell, or a thread for each pixel where cells are small; the bodies are in
// detail/upsample_block.h.
#include "launch.h"
#include "ovsdino/detail/upsample_block.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino {
namespace {

template <typename T, typename Label>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 3) upsample_argmax_kernel(UpsampleArgmax op, int64_t cells) {
  __shared__ Survivor lists[kWarpsPerBlock][kMaxSurvivors];
  const int32_t warp = static_cast<int32_t>(threadIdx.x >> 5);
  const int64_t step = int64_t{gridDim.x} * kWarpsPerBlock;
  for (int64_t cell = int64_t{blockIdx.x} * kWarpsPerBlock + warp; cell < cells; cell += step) {
    upsample_cell<T, Label>(op, cell, Warp(), lists[warp]);
    __syncwarp();  // the next cell's list overwrites this one's
  }
}

template <typename T, typename Label>
__global__ void __launch_bounds__(kPixelsX* kPixelsY, 4) upsample_argmax_pixel_kernel(UpsampleArgmax op) {
  const PixelGrid grid(op.batch, op.out_h, op.out_w);
  grid.for_each([&](int64_t batch, int32_t y, int32_t x) { upsample_pixel<T, Label>(op, batch, y, x); });
}

template <typename T, typename Label>
void launch(const UpsampleArgmax& op, cudaStream_t stream) {
  const int64_t cells = op.batch * op.in_h * op.in_w;
  if (cells == 0) return;
  if (few_pixels(op)) {
    const PixelGrid grid(op.batch, op.out_h, op.out_w);
    upsample_argmax_pixel_kernel<T, Label><<<grid.blocks(), dim3(kPixelsX, kPixelsY), 0, stream>>>(op);
  } else {
    upsample_argmax_kernel<T, Label><<<blocks_for(cells), 32 * kWarpsPerBlock, 0, stream>>>(op, cells);
  }
  check_launch("upsample_argmax");
}

template <typename T>
void launch(const UpsampleArgmax& op, cudaStream_t stream) {
  if (op.labels_dtype == DType::kUint8) launch<T, uint8_t>(op, stream);
  if (op.labels_dtype == DType::kInt16) launch<T, int16_t>(op, stream);
  if (op.labels_dtype == DType::kInt32) launch<T, int32_t>(op, stream);
}

}  // namespace

void upsample_argmax_cuda(const UpsampleArgmax& op, void* stream) {
  check_upsample_argmax(op);
  if (op.logits_dtype == DType::kFloat32) launch<float>(op, static_cast<cudaStream_t>(stream));
  if (op.logits_dtype == DType::kFloat16) launch<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.logits_dtype == DType::kBFloat16) launch<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

}  // namespace ovsdino
