// guided_upsample on CUDA: in 16 bits a warp for 16 pixels of a cell, on tensor cores (detail/guided_block.h); else,
// and for the gradients, a thread a fine pixel, or a cell and four channels (detail/guided_pixel.h), where neighboring
// threads lie along x, so that fine rows are read and written whole.
#include <type_traits>

#include "launch.h"
#include "ovsdino/detail/attention_lanes.h"
#include "ovsdino/detail/guided_block.h"
#include "ovsdino/detail/guided_pixel.h"
#include "ovsdino/guided_upsample.h"

namespace ovsdino {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) guided_kernel(GuidedUpsample op, int64_t pixels) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pixels; i += step) guided_pixel<T>(op, i);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) guided_pixel_grad_kernel(GuidedUpsampleBackward op, int64_t pixels) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pixels; i += step) guided_backward_pixel<T>(op, i);
}

template <bool kGuide, typename T>
__global__ void __launch_bounds__(kThreads) guided_cell_grad_kernel(GuidedUpsampleBackward op, int64_t jobs) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < jobs; i += step) {
    guided_backward_cell<kGuide, T>(op, i);
  }
}

template <typename T>
__global__ void __launch_bounds__(32 * kGuidedWarps, 4) guided_tensor_kernel(GuidedUpsample op) {
  __shared__ alignas(16) unsigned char shared[kGuidedShared];
  BlockLanes lanes(shared);
  guided_block<T>(op, blockIdx.x, lanes);
}

unsigned blocks_of_threads(int64_t jobs) {
  constexpr int64_t kMost = 1 << 20;
  const int64_t blocks = (jobs + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

template <typename T>
void forward(const GuidedUpsample& op, cudaStream_t stream) {
  const int64_t pixels = op.batch * op.h * op.w * op.scale * op.scale;
  if (pixels == 0 || op.classes == 0) return;
  if constexpr (!std::is_same_v<T, float>) {
    constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
    const int64_t blocks = (guided_jobs(op) + kGuidedWarps - 1) / kGuidedWarps;
    if (op.scale >= kLeastTensorScale && blocks <= kMostBlocks) {
      guided_tensor_kernel<T><<<static_cast<unsigned>(blocks), 32 * kGuidedWarps, 0, stream>>>(op);
      return check_launch("guided_upsample");
    }
  }
  guided_kernel<T><<<blocks_of_threads(pixels), kThreads, 0, stream>>>(op, pixels);
  check_launch("guided_upsample");
}

template <typename T>
void backward(const GuidedUpsampleBackward& op, cudaStream_t stream) {
  const GuidedUpsample& in = op.forward;
  const int64_t cells = in.batch * in.h * in.w, pixels = cells * in.scale * in.scale;
  if (pixels == 0) return;
  guided_pixel_grad_kernel<T><<<blocks_of_threads(pixels), kThreads, 0, stream>>>(op, pixels);
  check_launch("guided_upsample, fine gradients");
  const int64_t of_logits = cells * channel_groups(in.classes), of_guide = cells * channel_groups(in.channels);
  if (of_logits > 0) {
    guided_cell_grad_kernel<false, T><<<blocks_of_threads(of_logits), kThreads, 0, stream>>>(op, of_logits);
  }
  if (of_guide > 0) {
    guided_cell_grad_kernel<true, T><<<blocks_of_threads(of_guide), kThreads, 0, stream>>>(op, of_guide);
  }
  check_launch("guided_upsample, coarse gradients");
}

}  // namespace

void guided_upsample_cuda(const GuidedUpsample& op, void* stream) {
  check_guided(op);
  check_guided_layout(op);
  if (op.logits.dtype == DType::kFloat32) forward<float>(op, static_cast<cudaStream_t>(stream));
  if (op.logits.dtype == DType::kFloat16) forward<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.logits.dtype == DType::kBFloat16) forward<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

void guided_upsample_backward_cuda(const GuidedUpsampleBackward& op, void* stream) {
  check_guided_backward(op);
  check_guided_layout(op.forward);
  if (op.forward.logits.dtype == DType::kFloat32) backward<float>(op, static_cast<cudaStream_t>(stream));
  if (op.forward.logits.dtype == DType::kFloat16) backward<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.forward.logits.dtype == DType::kBFloat16) backward<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

}  // namespace ovsdino
