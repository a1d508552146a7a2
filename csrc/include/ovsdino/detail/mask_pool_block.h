// mask_pool by groups of lanes, each with a slice of channels. Forward, one mask: lanes over tokens to find the set
// ones (8 each), then over channels to add those tokens' features. Backward, 8 tokens: lanes over masks to find those
// that hold any of them, then over channels to add those masks' gradients.
#pragma once

#include <cstdint>

#include "ovsdino/detail/lanes.h"
#include "ovsdino/detail/mask_tokens.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/mask_pool.h"

namespace ovsdino {

constexpr int32_t kChannelsPerLane = 4;
constexpr int32_t kTokensPerLane = 8;

// Bit i is set where token + i has a weight.
OVSDINO_HD uint32_t set_tokens(const MaskPool& op, const void* row, int64_t token) {
  if (token >= op.tokens) return 0;
  uint32_t bits = 0;
  for (int32_t i = 0; i < kTokensPerLane && token + i < op.tokens; ++i) {
    if (mask_weight(row, op.masks_dtype, op.masks_stride_n, token + i) != 0.0f) bits |= 1u << i;
  }
  return bits;
}

// slice: channels slice * kSize * kChannelsPerLane and on. Sums are made of the partial sums of 8 * kSize tokens each.
template <typename T, typename Lanes>
OVSDINO_HD void mask_pool_slice(const MaskPool& op, int64_t batch, int64_t mask, int64_t slice, const Lanes& lanes) {
  const void* row = mask_row(op.masks, op.masks_dtype, batch * op.masks_stride_b + mask * op.masks_stride_m);
  const int64_t first_channel = slice * Lanes::kSize * kChannelsPerLane + lanes.index();
  const T* features = static_cast<const T*>(op.features) + batch * op.features_stride_b + first_channel;
  const bool soft = op.masks_dtype == DType::kFloat32;
  float sum[kChannelsPerLane] = {}, area = 0.0f;
  for (int64_t token = 0; token < op.tokens; token += kTokensPerLane * Lanes::kSize) {
    const uint32_t mine = set_tokens(op, row, token + lanes.index() * kTokensPerLane);
    float part[kChannelsPerLane] = {}, part_area = 0.0f;
    for (uint32_t busy = lanes.ballot(mine != 0); busy; busy &= busy - 1) {
      const int32_t lane = lowest_bit(busy);
      for (uint32_t bits = lanes.broadcast(mine, lane); bits; bits &= bits - 1) {
        const int64_t n = token + lane * kTokensPerLane + lowest_bit(bits);
        const float weight = soft ? mask_weight(row, op.masks_dtype, op.masks_stride_n, n) : 1.0f;
        part_area += weight;
        for (int32_t c = 0; c < kChannelsPerLane; ++c) {
          if (first_channel + c * Lanes::kSize < op.channels) {
            part[c] += weight * to_float(features[n * op.features_stride_n + c * Lanes::kSize]);
          }
        }
      }
    }
    for (int32_t c = 0; c < kChannelsPerLane; ++c) sum[c] += part[c];
    area += part_area;
  }
  const int64_t to = batch * op.mask_count + mask;
  if (slice == 0 && lanes.index() == 0) op.areas[to] = area;
  T* means = static_cast<T*>(op.means) + to * op.channels + first_channel;
  for (int32_t c = 0; c < kChannelsPerLane; ++c) {
    if (first_channel + c * Lanes::kSize < op.channels) {
      from_float(area == 0.0f ? 0.0f : sum[c] / area, means + c * Lanes::kSize);
    }
  }
}

// grad_features(n, c) = sum_m w(m, n) g(m, c) for kTokensPerLane tokens, from token group * kTokensPerLane on: `means`
// is read as g, `features` is written, both float32 and contiguous. slice as above.
template <typename Lanes>
OVSDINO_HD void mask_pool_backward_slice(const MaskPool& op, int64_t batch, int64_t group, int64_t slice,
                                         const Lanes& lanes) {
  const int64_t token = group * kTokensPerLane;
  const int64_t first_channel = slice * Lanes::kSize * kChannelsPerLane + lanes.index();
  const float* grad = static_cast<const float*>(op.means) + batch * op.mask_count * op.channels + first_channel;
  const bool soft = op.masks_dtype == DType::kFloat32;
  float sum[kTokensPerLane][kChannelsPerLane] = {};
  for (int64_t first = 0; first < op.mask_count; first += Lanes::kSize) {
    const int64_t mine = first + lanes.index();
    uint32_t held = 0;
    if (mine < op.mask_count) {
      held = set_tokens(op, mask_row(op.masks, op.masks_dtype, batch * op.masks_stride_b + mine * op.masks_stride_m),
                        token);
    }
    for (uint32_t busy = lanes.ballot(held != 0); busy; busy &= busy - 1) {
      const int32_t lane = lowest_bit(busy);
      const uint32_t bits = lanes.broadcast(held, lane);
      const int64_t mask = first + lane;
      float value[kChannelsPerLane];
      OVSDINO_UNROLL
      for (int32_t c = 0; c < kChannelsPerLane; ++c) {
        const bool inside = first_channel + c * Lanes::kSize < op.channels;
        value[c] = inside ? grad[mask * op.channels + c * Lanes::kSize] : 0.0f;
      }
      const void* row = mask_row(op.masks, op.masks_dtype, batch * op.masks_stride_b + mask * op.masks_stride_m);
      OVSDINO_UNROLL
      for (int32_t t = 0; t < kTokensPerLane; ++t) {
        if (bits >> t & 1u) {
          const float weight = soft ? mask_weight(row, op.masks_dtype, op.masks_stride_n, token + t) : 1.0f;
          OVSDINO_UNROLL
          for (int32_t c = 0; c < kChannelsPerLane; ++c) sum[t][c] += weight * value[c];
        }
      }
    }
  }
  float* out = const_cast<float*>(static_cast<const float*>(op.features)) + batch * op.tokens * op.channels;
  OVSDINO_UNROLL
  for (int32_t t = 0; t < kTokensPerLane; ++t) {
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kChannelsPerLane; ++c) {
      const int64_t channel = first_channel + c * Lanes::kSize;
      if (token + t < op.tokens && channel < op.channels) {
        out[(token + t) * op.channels + channel] = sum[t][c];
      }
    }
  }
}

}  // namespace ovsdino
