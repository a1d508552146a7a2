// mask_pool on CUDA: a block for each mask and up to 1024 channels, backward a warp for each 8 tokens and 128 channels;
// the bodies are in detail/mask_pool_block.h. Each sum is made in the order of tokens or masks: no atomics, the same
// bits every time.
#include "launch.h"
#include "ovsdino/detail/mask_pool_block.h"
#include "ovsdino/mask_pool.h"

namespace ovsdino {
namespace {

template <typename T, bool kSoft>
__global__ void __launch_bounds__(kPoolThreads, 4) mask_pool_kernel(MaskPool op, int64_t jobs) {
  using Block = CudaBlock<kPoolThreads>;
  __shared__ alignas(16) unsigned char shared[PoolLayout<Block, kSoft>::kBytes];
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    mask_pool_block<T, kSoft>(op, job, Block(shared));
    __syncthreads();  // the next job's list overwrites this one's sums
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
  constexpr int64_t kMost = 1 << 20;
  using Block = CudaBlock<kPoolThreads>;
  const int64_t jobs = op.batch * op.mask_count * pool_jobs(op, Block::kLanes, Block::kWarps);
  if (jobs == 0) return;
  const auto blocks = static_cast<unsigned>(jobs < kMost ? jobs : kMost);
  if (op.masks_dtype == DType::kFloat32) {
    mask_pool_kernel<T, true><<<blocks, kPoolThreads, 0, stream>>>(op, jobs);
  } else {
    mask_pool_kernel<T, false><<<blocks, kPoolThreads, 0, stream>>>(op, jobs);
  }
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
