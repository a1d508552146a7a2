// upsample_argmax on CUDA: a block for each tile of 32 cells, or a warp for each strip of pixels where cells are small;
// the bodies are in detail/upsample_block.h.
#include "launch.h"
#include "ovsdino/detail/upsample_block.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino {
namespace {

using UpsampleBlock = CudaBlock<kUpsampleThreads>;

template <typename T, typename Label>
__global__ void __launch_bounds__(kUpsampleThreads, 2) upsample_argmax_kernel(UpsampleArgmax op, int64_t tiles) {
  __shared__ alignas(16) unsigned char shared[TileLayout<UpsampleBlock>::kBytes];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    upsample_tile<T, Label>(op, tile, UpsampleBlock(shared));
    __syncthreads();  // the next tile's survivors overwrite this one's
  }
}

template <typename T, typename Label>
__global__ void __launch_bounds__(kUpsampleThreads, 2) upsample_argmax_strip_kernel(UpsampleArgmax op, int64_t strips) {
  const int64_t step = int64_t{gridDim.x} * UpsampleBlock::kWarps;
  const UpsampleBlock block(nullptr);
  for (int64_t strip = int64_t{blockIdx.x} * UpsampleBlock::kWarps + block.warp(); strip < strips; strip += step) {
    upsample_strip<T, Label>(op, strip, block);
  }
}

template <typename T, typename Label>
void launch(const UpsampleArgmax& op, cudaStream_t stream) {
  constexpr int64_t kMost = 1 << 20;
  const int64_t lines = op.batch * op.in_h;
  if (lines == 0 || op.in_w == 0) return;
  if (few_pixels(op)) {
    const int64_t strips = lines * strips_of_row(op, UpsampleBlock::kLanes);
    upsample_argmax_strip_kernel<T, Label><<<blocks_for(strips), kUpsampleThreads, 0, stream>>>(op, strips);
  } else {
    const int64_t tiles = lines * tiles_of_row(op, UpsampleBlock::kLanes);
    const auto blocks = static_cast<unsigned>(tiles < kMost ? tiles : kMost);
    upsample_argmax_kernel<T, Label><<<blocks, kUpsampleThreads, 0, stream>>>(op, tiles);
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
