// The bodies of the CUDA kernels on the CPU, one lane doing all: tests compare them where there is no GPU.
#include "ovsdino/detail/mask_pool_block.h"
#include "ovsdino/detail/upsample_block.h"
#include "ovsdino/mask_pool.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino {
namespace {

template <typename T, typename Label>
void all_cells(const UpsampleArgmax& op) {
  const int64_t lines = op.batch * op.in_h;
  unsigned char shared[TileLayout<OneThread>::kBytes];
  const OneThread block(shared);
  if (few_pixels(op)) {
    for (int64_t i = 0; i < lines * strips_of_row(op, 1); ++i) upsample_strip<T, Label>(op, i, block);
  } else {
    for (int64_t i = 0; i < lines * tiles_of_row(op, 1); ++i) upsample_tile<T, Label>(op, i, block);
  }
}

template <typename T>
void all_cells(const UpsampleArgmax& op) {
  if (op.labels_dtype == DType::kUint8) all_cells<T, uint8_t>(op);
  if (op.labels_dtype == DType::kInt16) all_cells<T, int16_t>(op);
  if (op.labels_dtype == DType::kInt32) all_cells<T, int32_t>(op);
}

template <typename T, bool kSoft>
void all_masks(const MaskPool& op) {
  unsigned char shared[PoolLayout<OneThread, kSoft>::kBytes];
  const int64_t jobs = op.batch * op.mask_count * pool_jobs(op, OneThread::kLanes, OneThread::kWarps);
  for (int64_t job = 0; job < jobs; ++job) mask_pool_block<T, kSoft>(op, job, OneThread(shared));
}

template <typename T>
void all_masks(const MaskPool& op) {
  op.masks_dtype == DType::kFloat32 ? all_masks<T, true>(op) : all_masks<T, false>(op);
}

}  // namespace

void upsample_argmax_host(const UpsampleArgmax& op) {
  check_upsample_argmax(op);
  if (op.logits_dtype == DType::kFloat32) all_cells<float>(op);
  if (op.logits_dtype == DType::kFloat16) all_cells<Half>(op);
  if (op.logits_dtype == DType::kBFloat16) all_cells<BFloat16>(op);
}

void mask_pool_host(const MaskPool& op) {
  check_mask_pool(op, false);
  if (op.features_dtype == DType::kFloat32) all_masks<float>(op);
  if (op.features_dtype == DType::kFloat16) all_masks<Half>(op);
  if (op.features_dtype == DType::kBFloat16) all_masks<BFloat16>(op);
}

void mask_pool_backward_host(const MaskPool& op) {
  check_mask_pool(op, true);
  for (int64_t b = 0; b < op.batch; ++b) {
    for (int64_t group = 0; group * kTokensPerLane < op.tokens; ++group) {
      for (int64_t slice = 0; slice * kChannelsPerLane < op.channels; ++slice) {
        mask_pool_backward_slice(op, b, group, slice, OneLane());
      }
    }
  }
}

}  // namespace ovsdino
