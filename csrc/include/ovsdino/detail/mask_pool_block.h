// One mask and a slice of channels of mask_pool by one group of lanes: lanes over tokens to find the set ones (8 each),
// then over channels to add those tokens' features.
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
  if (op.masks_dtype == DType::kBits) {
    const uint32_t bits = static_cast<const uint8_t*>(row)[token >> 3];
    return op.tokens - token < 8 ? bits & ((1u << (op.tokens - token)) - 1u) : bits;
  }
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

}  // namespace ovsdino
