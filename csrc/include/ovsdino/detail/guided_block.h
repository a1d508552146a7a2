// guided_upsample on tensor cores, for 16-bit tensors: a warp makes 16 fine pixels of one coarse cell, which all have
// the same 25 neighbors. Their scores are a product of 16 pixels, the channels and 32 neighbors (the last 7 are zeros
// of weight 0), by |hi - lo|^2 = |hi|^2 - 2 hi.lo + |lo|^2 without the first term, which changes no softmax; what
// they blend, a product of 16 pixels, those 32 neighbors and 8 classes after another. Products add up in float32, and a
// weight is a sum of 16-bit numbers that holds what float32 does: one alone is off by up to 1 part in 512 of bfloat16.
//
// Written against the lanes of detail/attention_lanes.h, whose layouts of fragments are used: with i = lane / 4 and
// j = lane % 4, a lane holds pixels i and i + 8, and of each 8 neighbors the two from 2 j on.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "ovsdino/detail/guided_pixel.h"

namespace ovsdino {

constexpr int32_t kGuidedWarps = 4;
constexpr int32_t kGuidedPixels = 16, kGuidedTiles = 4;  // of 8 neighbors
constexpr int32_t kGuidedColumns = 8 * kGuidedTiles;
constexpr uint32_t kGuidedShared = 4u * kGuidedWarps * kGuidedColumns;  // bytes: |lo|^2 of each warp's neighbors

// Below this scale too few of the 16 pixels lie in one cell.
constexpr int64_t kLeastTensorScale = 3;

OVSDINO_HD int64_t guided_groups(const GuidedUpsample& op) {
  return (op.scale * op.scale + kGuidedPixels - 1) / kGuidedPixels;
}

OVSDINO_HD int64_t guided_jobs(const GuidedUpsample& op) { return op.batch * op.h * op.w * guided_groups(op); }

struct GuidedCell {
  int64_t batch;
  int32_t y, x, h, w;

  // Where neighbor n lies in a channel's plane; -1 outside the grid, and for the columns past the last neighbor.
  OVSDINO_HD_MEMBER int64_t neighbor(int32_t n, int64_t stride_y) const {
    const int32_t row = y + n / kGuideSide - kGuideReach, column = x + n % kGuideSide - kGuideReach;
    const bool inside = n < kGuideNear && row >= 0 && row < h && column >= 0 && column < w;
    return inside ? row * stride_y + column : -1;
  }
};

// The bits of a channel's value at `at`, 0 where there is none.
template <typename T, typename Lanes>
OVSDINO_HD uint32_t guided_bits(const T* data, int64_t at, bool there, Lanes& lanes) {
  return there ? lanes.load_global(reinterpret_cast<const uint16_t*>(data + at)) : 0u;
}

// Channels c and c + 1 of a position.
template <typename T, typename Lanes>
OVSDINO_HD uint32_t channel_pair(const T* data, int64_t at, int64_t stride_c, int64_t c, int64_t channels,
                                 Lanes& lanes) {
  const uint32_t low = guided_bits(data, at + c * stride_c, at >= 0 && c < channels, lanes);
  return low | guided_bits(data, at + (c + 1) * stride_c, at >= 0 && c + 1 < channels, lanes) << 16;
}

// Numbers of T that add up to a weight: 11 bits each of float16, 8 of bfloat16.
template <typename T>
constexpr int32_t kWeightParts = std::is_same_v<T, Half> ? 2 : 3;

// A pair of T with 0 in place of what is infinite or NaN.
template <typename T>
OVSDINO_HD uint32_t finite_pair(uint32_t pair) {
  constexpr uint32_t kExponent = std::is_same_v<T, Half> ? 0x7c00u : 0x7f80u;
  const uint32_t low = (pair & kExponent) == kExponent ? 0u : pair & 0xffffu;
  return low | ((pair >> 16 & kExponent) == kExponent ? 0u : pair & 0xffff0000u);
}

template <typename T>
OVSDINO_HD float first_of(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <typename T>
OVSDINO_HD float second_of(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

template <typename T>
OVSDINO_HD float squares(uint32_t pair) {
  const float a = first_of<T>(pair), b = second_of<T>(pair);
  return a * a + b * b;
}

template <typename Lanes>
OVSDINO_HD float sum_of_four(float x, Lanes& lanes) {
  x += lanes.shuffle_xor(x, 1);
  return x + lanes.shuffle_xor(x, 2);
}

// product[t]: hi.lo of the lane's pixels and neighbors 8 t + 2 j, 8 t + 2 j + 1; square[t]: its part of |lo|^2 of
// neighbor 8 t + i.
template <typename T, typename Lanes>
OVSDINO_HD void guide_products(const GuidedUpsample& op, const GuidedCell& cell, const int64_t (&pixel)[2],
                               Lanes& lanes, float (&product)[kGuidedTiles][4], float (&square)[kGuidedTiles]) {
  const int32_t lane = lanes.index() % 32, i = lane / 4, j = lane % 4;
  const T* low = static_cast<const T*>(op.guide_lo.data) + cell.batch * op.guide_lo.stride_b;
  const T* high = static_cast<const T*>(op.guide_hi.data) + cell.batch * op.guide_hi.stride_b;
  int64_t key[kGuidedTiles];
  OVSDINO_UNROLL
  for (int32_t t = 0; t < kGuidedTiles; ++t) key[t] = cell.neighbor(8 * t + i, op.guide_lo.stride_y);
  for (int64_t first = 2 * j; first - 2 * j < op.channels; first += 16) {
    uint32_t a[4];
    OVSDINO_UNROLL
    for (int32_t p = 0; p < 4; ++p) {
      a[p] = channel_pair(high, pixel[p % 2], op.guide_hi.stride_c, first + p / 2 * 8, op.channels, lanes);
    }
    OVSDINO_UNROLL
    for (int32_t t = 0; t < kGuidedTiles; ++t) {
      const uint32_t b0 = channel_pair(low, key[t], op.guide_lo.stride_c, first, op.channels, lanes);
      const uint32_t b1 = channel_pair(low, key[t], op.guide_lo.stride_c, first + 8, op.channels, lanes);
      square[t] += squares<T>(b0) + squares<T>(b1);
      lanes.template multiply_add<T>(product[t], a, b0, b1);
    }
  }
}

// Turns scores into weights, the parts of each as pairs of T in the layout of a left factor, and returns 1 / their sum.
// They are 2^14 times as large as exp(score - best), and never rounded to 0 where that is not: 0 * inf is NaN.
template <typename T, typename Lanes>
OVSDINO_HD float pair_weights(float (&score)[kGuidedTiles][2], Lanes& lanes,
                              uint32_t (&weight)[kWeightParts<T>][kGuidedTiles]) {
  constexpr float kLog2e = 1.44269504f, kLeast = 5.9604645e-8f;  // 2^-24
  float best = -INFINITY, sum = 0.0f;
  OVSDINO_UNROLL
  for (int32_t t = 0; t < kGuidedTiles; ++t) best = fmaxf(best, fmaxf(score[t][0], score[t][1]));
  best = fmaxf(best, lanes.shuffle_xor(best, 1));
  best = fmaxf(best, lanes.shuffle_xor(best, 2));
  OVSDINO_UNROLL
  for (int32_t t = 0; t < kGuidedTiles; ++t) {
    OVSDINO_UNROLL
    for (int32_t e = 0; e < 2; ++e) {
      const float below = score[t][e] - best, power = lanes.exp2(below * kLog2e + 14.0f);
      score[t][e] = below < -87.0f ? 0.0f : power < kLeast ? kLeast : power;
      sum += score[t][e];
    }
    OVSDINO_UNROLL
    for (int32_t part = 0; part < kWeightParts<T>; ++part) {
      weight[part][t] = lanes.template pack<T>(score[t][0], score[t][1]);
      score[t][0] -= first_of<T>(weight[part][t]);  // exact
      score[t][1] -= second_of<T>(weight[part][t]);
    }
  }
  return 1.0f / sum_of_four(sum, lanes);
}

// Writes what the weights make of all classes. The smaller parts of a weight, which may be 0 or negative, meet finite
// logits alone: the first gives what the formula gives of the others.
template <typename T, typename Lanes>
OVSDINO_HD void blend_classes(const GuidedUpsample& op, const GuidedCell& cell,
                              const uint32_t (&weight)[kWeightParts<T>][2][4], const float (&inverse)[2],
                              const int64_t (&to)[2], Lanes& lanes) {
  const int32_t lane = lanes.index() % 32, i = lane / 4, j = lane % 4;
  const int64_t plane = op.h * op.w * op.scale * op.scale;
  const T* logits = static_cast<const T*>(op.logits.data) + cell.batch * op.logits.stride_b;
  T* out = static_cast<T*>(op.out) + cell.batch * op.classes * plane;
  int64_t from[kGuidedTiles][2];
  OVSDINO_UNROLL
  for (int32_t n = 0; n < 2 * kGuidedTiles; ++n) {
    from[n / 2][n % 2] = cell.neighbor(8 * (n / 2) + 2 * j + n % 2, op.logits.stride_y);
  }
  for (int64_t first = 0; first < op.classes; first += 8) {
    const T* mine = logits + (first + i) * op.logits.stride_c;
    uint32_t b[kGuidedTiles];
    OVSDINO_UNROLL
    for (int32_t t = 0; t < kGuidedTiles; ++t) {
      b[t] = guided_bits(mine, from[t][0], first + i < op.classes && from[t][0] >= 0, lanes);
      b[t] |= guided_bits(mine, from[t][1], first + i < op.classes && from[t][1] >= 0, lanes) << 16;
    }
    float sum[4] = {};
    OVSDINO_UNROLL
    for (int32_t part = 0; part < kWeightParts<T>; ++part) {
      lanes.template multiply_add<T>(sum, weight[part][0], b[0], b[1]);
      lanes.template multiply_add<T>(sum, weight[part][1], b[2], b[3]);
      if (part > 0) continue;
      OVSDINO_UNROLL
      for (int32_t t = 0; t < kGuidedTiles; ++t) b[t] = finite_pair<T>(b[t]);
    }
    OVSDINO_UNROLL
    for (int32_t c = 0; c < 4; ++c) {
      const int64_t k = first + 2 * j + c % 2;
      if (to[c / 2] < 0 || k >= op.classes) continue;
      T value;
      from_float(sum[c] * inverse[c / 2], &value);
      lanes.store_global(out + k * plane + to[c / 2], value);
    }
  }
}

// Jobs kGuidedWarps * block and on, one a warp.
template <typename T, typename Lanes>
OVSDINO_HD void guided_block(const GuidedUpsample& op, int64_t block, Lanes& lanes) {
  const int32_t warp = lanes.index() / 32, lane = lanes.index() % 32, i = lane / 4, j = lane % 4;
  const int64_t groups = guided_groups(op), jobs = guided_jobs(op), mine = block * kGuidedWarps + warp;
  const int64_t job = mine < jobs ? mine : jobs - 1;  // the barrier is for all warps
  const int64_t place = job / groups;
  const auto h = static_cast<int32_t>(op.h), w = static_cast<int32_t>(op.w), scale = static_cast<int32_t>(op.scale);
  const GuidedCell cell = {place / w / h, static_cast<int32_t>(place / w % h), static_cast<int32_t>(place % w), h, w};
  int32_t phase_y[2], phase_x[2];
  int64_t pixel[2], to[2];  // -1: none
  OVSDINO_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const auto phase = static_cast<int32_t>(job % groups) * kGuidedPixels + i + 8 * r;
    phase_y[r] = phase / scale;
    phase_x[r] = phase % scale;
    const int64_t y = int64_t{cell.y} * scale + phase_y[r], x = int64_t{cell.x} * scale + phase_x[r];
    pixel[r] = phase < scale * scale ? y * op.guide_hi.stride_y + x * op.guide_hi.stride_x : -1;
    to[r] = phase < scale * scale && mine < jobs ? y * w * scale + x : -1;
  }
  float product[kGuidedTiles][4] = {}, square[kGuidedTiles] = {};
  guide_products<T>(op, cell, pixel, lanes, product, square);
  const auto norms = 4u * static_cast<uint32_t>(warp * kGuidedColumns);
  OVSDINO_UNROLL
  for (int32_t t = 0; t < kGuidedTiles; ++t) {
    const float norm = sum_of_four(square[t], lanes);
    if (j == 0) lanes.store_shared(norms + 4u * static_cast<uint32_t>(8 * t + i), norm);
  }
  lanes.sync();
  const float beta = *op.beta;
  uint32_t left[kWeightParts<T>][2][4];
  float inverse[2];
  OVSDINO_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    float score[kGuidedTiles][2];
    OVSDINO_UNROLL
    for (int32_t t = 0; t < kGuidedTiles; ++t) {
      OVSDINO_UNROLL
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t n = 8 * t + 2 * j + e;
        const float apart = squared_offset(phase_y[r], n / kGuideSide, static_cast<float>(scale)) +
                            squared_offset(phase_x[r], n % kGuideSide, static_cast<float>(scale));
        const auto norm = lanes.template load_shared<float>(norms + 4u * static_cast<uint32_t>(n));
        const float value = beta * (2.0f * product[t][2 * r + e] - norm) - apart;
        score[t][e] = cell.neighbor(n, 1) >= 0 ? value : -INFINITY;
      }
    }
    uint32_t weight[kWeightParts<T>][kGuidedTiles];
    inverse[r] = pair_weights<T>(score, lanes, weight);
    OVSDINO_UNROLL
    for (int32_t t = 0; t < kWeightParts<T> * kGuidedTiles; ++t) {
      const int32_t part = t / kGuidedTiles, tile = t % kGuidedTiles;
      left[part][tile / 2][tile % 2 * 2 + r] = weight[part][tile];
    }
  }
  blend_classes<T>(op, cell, left, inverse, to, lanes);
}

}  // namespace ovsdino
