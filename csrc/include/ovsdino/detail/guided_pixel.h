// guided_upsample by element: a fine pixel (its output; or its weights and its share of the gradients), or a coarse
// cell and some channels (the sum over the fine pixels that see it). One CUDA thread each; nothing is shared.
//
// logits and guides have one dtype T here, and a coarse tensor's neighbouring columns neighbour in memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/number.h"
#include "ovsdino/guided_upsample.h"

namespace ovsdino {

constexpr int32_t kGuideReach = 2;
constexpr int32_t kGuideSide = 2 * kGuideReach + 1;
constexpr int32_t kGuideNear = kGuideSide * kGuideSide;
constexpr int32_t kCellChannels = 4;  // of a coarse cell's gradient by one thread

struct FinePixel {
  int64_t batch;
  int32_t y, x;              // in the fine grid
  int32_t cell_y, cell_x;    // the cell it lies in
  int32_t phase_y, phase_x;  // its place in the cell
};

OVSDINO_HD FinePixel fine_pixel(const GuidedUpsample& op, int64_t index) {
  const int64_t width = op.w * op.scale, height = op.h * op.scale;
  const auto x = static_cast<int32_t>(index % width), y = static_cast<int32_t>(index / width % height);
  const auto scale = static_cast<int32_t>(op.scale);
  return {index / width / height, y, x, y / scale, x / scale, y % scale, x % scale};
}

// The 5 x 5 values around a cell of one channel's plane; kWhole: all of them lie in the grid.
template <bool kWhole, typename T>
struct Around {
  const T* corner;  // the first neighbour's place, in the grid or not
  int64_t stride_y;
  int32_t cell_y, cell_x, h, w;

  OVSDINO_HD_MEMBER bool inside(int32_t dy, int32_t dx) const {
    const int32_t y = cell_y + dy - kGuideReach, x = cell_x + dx - kGuideReach;
    return kWhole || (y >= 0 && y < h && x >= 0 && x < w);
  }
  // 0 outside the grid.
  OVSDINO_HD_MEMBER float value(int64_t plane, int32_t dy, int32_t dx) const {
    return inside(dy, dx) ? to_float(corner[plane + dy * stride_y + dx]) : 0.0f;
  }
};

template <bool kWhole, typename T>
OVSDINO_HD Around<kWhole, T> around(const GuidedUpsample& op, const GuidedUpsample::View& view, const FinePixel& p) {
  const int64_t offset = p.batch * view.stride_b + (p.cell_y - kGuideReach) * view.stride_y + p.cell_x - kGuideReach;
  return {static_cast<const T*>(view.data) + offset,
          view.stride_y,
          p.cell_y,
          p.cell_x,
          static_cast<int32_t>(op.h),
          static_cast<int32_t>(op.w)};
}

template <typename T>
OVSDINO_HD const T* fine_value(const GuidedUpsample::View& view, const FinePixel& p) {
  return static_cast<const T*>(view.data) + p.batch * view.stride_b + p.y * view.stride_y + p.x * view.stride_x;
}

// Along one axis, in cells: from the fine pixel `phase` (0 .. scale - 1) of a cell to its neighbour `near`.
OVSDINO_HD float squared_offset(int32_t phase, int32_t near, float scale) {
  const float offset = (static_cast<float>(phase) + 0.5f) / scale - 0.5f - static_cast<float>(near - kGuideReach);
  return offset * offset;
}

// weight[j] = w_ij
template <bool kWhole, typename T>
OVSDINO_HD void pixel_weights(const GuidedUpsample& op, const FinePixel& p, float* weight) {
  const auto low = around<kWhole, T>(op, op.guide_lo, p);
  const T* high = fine_value<T>(op.guide_hi, p);
  float distance[kGuideNear] = {};
  for (int64_t c = 0; c < op.channels; ++c) {
    const float value = to_float(high[c * op.guide_hi.stride_c]);
    OVSDINO_UNROLL
    for (int32_t j = 0; j < kGuideNear; ++j) {
      const float offset = value - low.value(c * op.guide_lo.stride_c, j / kGuideSide, j % kGuideSide);
      distance[j] += offset * offset;
    }
  }
  const float beta = *op.beta, scale = static_cast<float>(op.scale);
  float best = -INFINITY, sum = 0.0f;
  OVSDINO_UNROLL
  for (int32_t j = 0; j < kGuideNear; ++j) {
    const int32_t dy = j / kGuideSide, dx = j % kGuideSide;
    const float score =
        -beta * distance[j] - squared_offset(p.phase_y, dy, scale) - squared_offset(p.phase_x, dx, scale);
    weight[j] = low.inside(dy, dx) ? score : -INFINITY;
    best = fmaxf(best, weight[j]);
  }
  OVSDINO_UNROLL
  for (int32_t j = 0; j < kGuideNear; ++j) {
    const float score = weight[j] - best;
    weight[j] = score < -87.0f ? 0.0f : expf(score);
    sum += weight[j];
  }
  const float inverse = 1.0f / sum;
  OVSDINO_UNROLL
  for (int32_t j = 0; j < kGuideNear; ++j) weight[j] *= inverse;
}

template <bool kWhole, typename T>
OVSDINO_HD void guided_pixel(const GuidedUpsample& op, const FinePixel& p) {
  float weight[kGuideNear];
  pixel_weights<kWhole, T>(op, p, weight);
  const auto logits = around<kWhole, T>(op, op.logits, p);
  const int64_t width = op.w * op.scale, plane = op.h * op.scale * width;
  T* out = static_cast<T*>(op.out) + p.batch * op.classes * plane + p.y * width + p.x;
  for (int64_t k = 0; k < op.classes; ++k) {
    float sum = 0.0f;
    OVSDINO_UNROLL
    for (int32_t j = 0; j < kGuideNear; ++j) {
      sum += weight[j] * logits.value(k * op.logits.stride_c, j / kGuideSide, j % kGuideSide);
    }
    from_float(sum, out + k * plane);
  }
}

// Writes the pixel's weights and ds_j = w_j (dw_j - sum_j w_j dw_j), dw_j = grad . logits_j, to the workspace; its row
// of the guide's gradient, 2 beta sum_j ds_j (lo_j - hi); and its share of d beta, -sum_j ds_j |hi - lo_j|^2.
template <bool kWhole, typename T>
OVSDINO_HD void guided_backward_pixel(const GuidedUpsampleBackward& op, const FinePixel& p) {
  const GuidedUpsample& in = op.forward;
  float weight[kGuideNear], dscore[kGuideNear] = {};
  pixel_weights<kWhole, T>(in, p, weight);
  const auto logits = around<kWhole, T>(in, in.logits, p);
  const T* grad = fine_value<T>(op.grad, p);
  for (int64_t k = 0; k < in.classes; ++k) {
    const float outer = to_float(grad[k * op.grad.stride_c]);
    OVSDINO_UNROLL
    for (int32_t j = 0; j < kGuideNear; ++j) {
      dscore[j] += outer * logits.value(k * in.logits.stride_c, j / kGuideSide, j % kGuideSide);
    }
  }
  float mean = 0.0f;
  OVSDINO_UNROLL
  for (int32_t j = 0; j < kGuideNear; ++j) mean += weight[j] * dscore[j];
  const int64_t width = in.w * in.scale, plane = in.h * in.scale * width;
  const int64_t at = p.y * width + p.x;
  float* weights = op.workspace + p.batch * 2 * kGuideNear * plane + at;
  OVSDINO_UNROLL
  for (int32_t j = 0; j < kGuideNear; ++j) {
    dscore[j] = weight[j] * (dscore[j] - mean);
    weights[j * plane] = weight[j];
    weights[(kGuideNear + j) * plane] = dscore[j];
  }
  const auto low = around<kWhole, T>(in, in.guide_lo, p);
  const T* high = fine_value<T>(in.guide_hi, p);
  T* out = static_cast<T*>(op.grad_guide_hi) + p.batch * in.channels * plane + at;
  const float factor = 2.0f * *in.beta;
  float dbeta = 0.0f;  // by its channels, so that the 25 distances need not be kept in registers
  for (int64_t c = 0; c < in.channels; ++c) {
    const float value = to_float(high[c * in.guide_hi.stride_c]);
    float sum = 0.0f;
    OVSDINO_UNROLL
    for (int32_t j = 0; j < kGuideNear; ++j) {
      const float offset = low.value(c * in.guide_lo.stride_c, j / kGuideSide, j % kGuideSide) - value;
      const float product = dscore[j] * offset;
      sum += product;
      dbeta -= product * offset;
    }
    from_float(factor * sum, out + c * plane);
  }
  op.grad_beta[p.batch * plane + at] = dbeta;
}

OVSDINO_HD bool whole_neighbourhood(const GuidedUpsample& op, const FinePixel& p) {
  return p.cell_y >= kGuideReach && p.cell_y < op.h - kGuideReach && p.cell_x >= kGuideReach &&
         p.cell_x < op.w - kGuideReach;
}

// index: into (batch, scale * h, scale * w).
template <typename T>
OVSDINO_HD void guided_pixel(const GuidedUpsample& op, int64_t index) {
  const FinePixel p = fine_pixel(op, index);
  whole_neighbourhood(op, p) ? guided_pixel<true, T>(op, p) : guided_pixel<false, T>(op, p);
}

template <typename T>
OVSDINO_HD void guided_backward_pixel(const GuidedUpsampleBackward& op, int64_t index) {
  const FinePixel p = fine_pixel(op.forward, index);
  whole_neighbourhood(op.forward, p) ? guided_backward_pixel<true, T>(op, p) : guided_backward_pixel<false, T>(op, p);
}

OVSDINO_HD int64_t channel_groups(int64_t channels) { return (channels + kCellChannels - 1) / kCellChannels; }

// A cell's gradient of kCellChannels classes of the logits, or with kGuide channels of the coarse guide.
// index: into (batch, channel_groups, h, w).
template <bool kGuide, typename T>
OVSDINO_HD void guided_backward_cell(const GuidedUpsampleBackward& op, int64_t index) {
  const GuidedUpsample& in = op.forward;
  const int64_t channels = kGuide ? in.channels : in.classes, groups = channel_groups(channels);
  const auto h = static_cast<int32_t>(in.h), w = static_cast<int32_t>(in.w);
  const auto scale = static_cast<int32_t>(in.scale);
  const auto cell_x = static_cast<int32_t>(index % w), cell_y = static_cast<int32_t>(index / w % h);
  const int64_t first = index / w / h % groups * kCellChannels, batch = index / w / h / groups;
  const int64_t width = in.w * scale, plane = in.h * scale * width;
  const GuidedUpsample::View& fine = kGuide ? in.guide_hi : op.grad;
  const T* values = static_cast<const T*>(fine.data) + batch * fine.stride_b + first * fine.stride_c;
  const float* factors = op.workspace + (batch * 2 + (kGuide ? 1 : 0)) * kGuideNear * plane;
  const int32_t count = channels - first < kCellChannels ? static_cast<int32_t>(channels - first) : kCellChannels;
  float own[kCellChannels] = {}, sum[kCellChannels] = {};
  if (kGuide) {
    const T* low = static_cast<const T*>(in.guide_lo.data) + batch * in.guide_lo.stride_b +
                   first * in.guide_lo.stride_c + cell_y * in.guide_lo.stride_y + cell_x;
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kCellChannels; ++c) {
      if (c < count) own[c] = to_float(low[c * in.guide_lo.stride_c]);
    }
  }
  for (int32_t j = 0; j < kGuideNear; ++j) {
    // The cell whose neighbour j this is.
    const int32_t from_y = cell_y + kGuideReach - j / kGuideSide, from_x = cell_x + kGuideReach - j % kGuideSide;
    if (from_y < 0 || from_y >= h || from_x < 0 || from_x >= w) continue;
    // Short partial sums: one running sum of 25 * scale^2 terms has 4 times the error of a matrix product.
    float part[kCellChannels] = {};
    for (int32_t i = 0; i < scale * scale; ++i) {
      const int64_t y = int64_t{from_y} * scale + i / scale, x = int64_t{from_x} * scale + i % scale;
      const float factor = factors[j * plane + y * width + x];
      const T* value = values + y * fine.stride_y + x * fine.stride_x;
      OVSDINO_UNROLL
      for (int32_t c = 0; c < kCellChannels; ++c) {
        if (c < count) part[c] += factor * (to_float(value[c * fine.stride_c]) - own[c]);
      }
    }
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kCellChannels; ++c) sum[c] += part[c];
  }
  const float scaled = kGuide ? 2.0f * *in.beta : 1.0f;
  T* out = static_cast<T*>(kGuide ? op.grad_guide_lo : op.grad_logits) + ((batch * channels + first) * h + cell_y) * w +
           cell_x;
  OVSDINO_UNROLL
  for (int32_t c = 0; c < kCellChannels; ++c) {
    if (c < count) from_float(scaled * sum[c], out + c * in.h * in.w);
  }
}

}  // namespace ovsdino
