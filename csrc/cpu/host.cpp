// The bodies of the CUDA kernels on the CPU, one lane doing all: tests compare them where there is no GPU.
#include "ovsdino/detail/mask_pool_block.h"
#include "ovsdino/detail/upsample_block.h"
#include "ovsdino/mask_pool.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino {
namespace {

template <typename T, typename Label>
void all_cells(const UpsampleArgmax& op) {
  if (few_pixels(op)) {
    for (int64_t i = 0; i < op.batch * op.out_h * op.out_w; ++i) {
      const int64_t line = i / op.out_w;
      upsample_pixel<T, Label>(op, line / op.out_h, static_cast<int32_t>(line % op.out_h),
                               static_cast<int32_t>(i % op.out_w));
    }
    return;
  }
  Survivor list[kMaxSurvivors];
  for (int64_t cell = 0; cell < op.batch * op.in_h * op.in_w; ++cell)
    upsample_cell<T, Label>(op, cell, OneLane(), list);
}

template <typename T>
void all_cells(const UpsampleArgmax& op) {
  if (op.labels_dtype == DType::kUint8) all_cells<T, uint8_t>(op);
  if (op.labels_dtype == DType::kInt16) all_cells<T, int16_t>(op);
  if (op.labels_dtype == DType::kInt32) all_cells<T, int32_t>(op);
}

template <typename T>
void all_slices(const MaskPool& op) {
  for (int64_t b = 0; b < op.batch; ++b) {
    for (int64_t m = 0; m < op.mask_count; ++m) {
      for (int64_t slice = 0; slice * kChannelsPerLane < op.channels; ++slice) {
        mask_pool_slice<T>(op, b, m, slice, OneLane());
      }
    }
  }
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
  if (op.features_dtype == DType::kFloat32) all_slices<float>(op);
  if (op.features_dtype == DType::kFloat16) all_slices<Half>(op);
  if (op.features_dtype == DType::kBFloat16) all_slices<BFloat16>(op);
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
