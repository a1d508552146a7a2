// mask_pool on CUDA: a warp for each mask and 128 channels, backward for each 8 tokens and 128 channels; the bodies are
// in detail/mask_pool_block.h. Each sum is made by one warp in the order of tokens or masks: no atomics, the same bits
// every time.
#include "launch.h"
#include "ovsdino/detail/mask_pool_block.h"
#include "ovsdino/mask_pool.h"

namespace ovsdino {
namespace {

template <typename T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, 4) mask_pool_kernel(MaskPool op, int64_t slices) {
  const int64_t jobs = op.batch * op.mask_count * slices;
  const int64_t step = int64_t{gridDim.x} * kWarpsPerBlock;
  for (int64_t job = int64_t{blockIdx.x} * kWarpsPerBlock + (threadIdx.x >> 5); job < jobs; job += step) {
    const int64_t mask = job / slices;
    mask_pool_slice<T>(op, mask / op.mask_count, mask % op.mask_count, job % slices, Warp());
  }
}

__global__ void __launch_bounds__(32 * kWarpsPerBlock, 3)
    mask_pool_backward_kernel(MaskPool op, int64_t groups, int64_t slices) {
  const int64_t jobs = op.batch * groups * slices;
  const int64_t step = int64_t{gridDim.x} * kWarpsPerBlock;
  for (int64_t job = int64_t{blockIdx.x} * kWarpsPerBlock + (threadIdx.x >> 5); job < jobs; job += step) {
    const int64_t group = job / slices;
    mask_pool_backward_slice(op, group / groups, group % groups, job % slices, Warp());
  }
}

template <typename T>
void launch(const MaskPool& op, cudaStream_t stream) {
  constexpr int64_t kSlice = Warp::kSize * kChannelsPerLane;
  const int64_t slices = op.channels > 0 ? (op.channels + kSlice - 1) / kSlice : 1;  // slice 0 writes the areas
  const int64_t jobs = op.batch * op.mask_count * slices;
  if (jobs == 0) return;
  mask_pool_kernel<T><<<blocks_for(jobs), 32 * kWarpsPerBlock, 0, stream>>>(op, slices);
  check_launch("mask_pool");
}

}  // namespace

void mask_pool_cuda(const MaskPool& op, void* stream) {
  check_mask_pool(op, false);
  if (op.features_dtype == DType::kFloat32) launch<float>(op, static_cast<cudaStream_t>(stream));
  if (op.features_dtype == DType::kFloat16) launch<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.features_dtype == DType::kBFloat16) launch<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

void mask_pool_backward_cuda(const MaskPool& op, void* stream) {
  check_mask_pool(op, true);
  constexpr int64_t kSlice = Warp::kSize * kChannelsPerLane;
  const int64_t groups = (op.tokens + kTokensPerLane - 1) / kTokensPerLane;
  const int64_t slices = (op.channels + kSlice - 1) / kSlice;
  const int64_t jobs = op.batch * groups * slices;
  if (jobs == 0) return;
  mask_pool_backward_kernel<<<blocks_for(jobs), 32 * kWarpsPerBlock, 0, static_cast<cudaStream_t>(stream)>>>(op, groups,
                                                                                                             slices);
  check_launch("mask_pool_backward");
}

}  // namespace ovsdino
