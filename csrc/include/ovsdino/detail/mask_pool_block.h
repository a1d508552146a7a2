// mask_pool. Forward, one mask and up to kWarps slices of channels by a block: its threads find the set tokens, 16 mask
// bytes each, and list them in shared memory; then each warp adds those tokens' features over a slice of 4 channels a
// lane, four tokens at a time. Backward, 8 tokens by a group of lanes: over masks to find those that hold any of them,
// then over channels to add those masks' gradients.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ovsdino/detail/block.h"
#include "ovsdino/detail/lanes.h"
#include "ovsdino/detail/mask_tokens.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/mask_pool.h"

namespace ovsdino {

constexpr int32_t kChannelsPerLane = 4;
constexpr int32_t kTokensPerLane = 8;     // backward
constexpr int32_t kTokensPerThread = 16;  // forward, of a chunk
constexpr int32_t kPoolThreads = 256;

OVSDINO_HD int64_t pool_slices(const MaskPool& op, int32_t lanes) {
  const int64_t slice = int64_t{lanes} * kChannelsPerLane;
  return op.channels > 0 ? (op.channels + slice - 1) / slice : 1;  // slice 0 writes the area
}

// Jobs of a mask: groups of as many slices as a block has warps.
OVSDINO_HD int64_t pool_jobs(const MaskPool& op, int32_t lanes, int32_t warps) {
  return (pool_slices(op, lanes) + warps - 1) / warps;
}

// Four channels of a token: one load where they lie aligned (8 bytes, or 16 of float32), else those there are.
template <bool kWhole, typename T, typename Block>
OVSDINO_HD void load_channels(const T* from, int64_t left, const Block& block, float (&to)[kChannelsPerLane]) {
  if constexpr (!kWhole) {
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kChannelsPerLane; ++c) to[c] = c < left ? to_float(block.load_global(from + c)) : 0.0f;
  } else if constexpr (sizeof(T) == 4) {
    const Words4 words = block.load_global(reinterpret_cast<const Words4*>(from));
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kChannelsPerLane; ++c) to[c] = bit_cast<float>(words.word[c]);
  } else {
    const Words2 words = block.load_global(reinterpret_cast<const Words2*>(from));
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kChannelsPerLane; ++c) {
      to[c] = to_float(T{static_cast<uint16_t>(words.word[c / 2] >> 16 * (c % 2))});
    }
  }
}

// Bit i is set where byte i of the word is not 0.
OVSDINO_HD uint32_t set_bytes(uint32_t word) {
  const uint32_t high = (word | ((word & 0x7f7f7f7fu) + 0x7f7f7f7fu)) & 0x80808080u;
  return ((high >> 7) * 0x01020408u) >> 24 & 0xfu;
}

// Bit i is set where token + i, of `count` tokens at most, has a weight.
OVSDINO_HD uint32_t set_tokens(const MaskPool& op, const void* row, int64_t token, int32_t count) {
  uint32_t bits = 0;
  for (int32_t i = 0; i < count && token + i < op.tokens; ++i) {
    if (mask_weight(row, op.masks_dtype, op.masks_stride_n, token + i) != 0.0f) bits |= 1u << i;
  }
  return bits;
}

// The same of kTokensPerThread tokens; one load of 16 bytes where they lie together.
template <bool kSoft, typename Block>
OVSDINO_HD uint32_t set_tokens_of_thread(const MaskPool& op, const void* row, int64_t token, const Block& block) {
  const auto* bytes = static_cast<const uint8_t*>(row) + token;
  const bool together = !kSoft && op.masks_stride_n == 1 && token + kTokensPerThread <= op.tokens &&
                        reinterpret_cast<uintptr_t>(bytes) % sizeof(Words4) == 0;
  if (!together) return set_tokens(op, row, token, kTokensPerThread);
  const Words4 words = block.load_global(reinterpret_cast<const Words4*>(bytes));
  uint32_t bits = 0;
  OVSDINO_UNROLL
  for (int32_t i = 0; i < 4; ++i) bits |= set_bytes(words.word[i]) << 4 * i;
  return bits;
}

// Shared memory of a block: the set tokens of a chunk, their weights, how many each warp found. The sums of warps that
// share a slice come over the lists at the end.
template <typename Block, bool kSoft>
struct PoolLayout {
  static constexpr int32_t kChunk = Block::kThreads * kTokensPerThread;
  static constexpr uint32_t kWeights = kChunk * 2u;
  static constexpr uint32_t kCounts = kWeights + (kSoft ? kChunk * 4u : 0u);
  static constexpr uint32_t kBytes = kCounts + Block::kWarps * 4u;
  static_assert(Block::kThreads * (kChannelsPerLane + 1) * 4 <= kChunk * 2, "the sums do not fit the list of tokens");
};

// Lists the chunk's set tokens, in order, and returns their number. Every thread calls it.
template <bool kSoft, typename Block>
OVSDINO_HD int32_t list_tokens(const MaskPool& op, const void* row, int64_t chunk, const Block& block) {
  using Layout = PoolLayout<Block, kSoft>;
  const int32_t first = block.index() * kTokensPerThread;
  uint32_t bits = set_tokens_of_thread<kSoft>(op, row, chunk + first, block);
  const int32_t mine = count_bits(bits);
  const uint32_t earlier_lanes = (1u << block.lane()) - 1u;
  int32_t at = 0, of_warp = 0;
  OVSDINO_UNROLL
  for (int32_t digit = 0; digit < 5; ++digit) {  // of `mine`, 0 to 16
    const uint32_t lanes = block.ballot((mine >> digit & 1) != 0);
    at += count_bits(lanes & earlier_lanes) << digit;
    of_warp += count_bits(lanes) << digit;
  }
  if (block.lane() == 0) block.store_shared(Layout::kCounts + 4u * static_cast<uint32_t>(block.warp()), of_warp);
  block.sync();
  int32_t count = 0;
  for (int32_t w = 0; w < Block::kWarps; ++w) {
    const auto found = block.template load_shared<int32_t>(Layout::kCounts + 4u * static_cast<uint32_t>(w));
    at += w < block.warp() ? found : 0;
    count += found;
  }
  for (; bits; bits &= bits - 1, ++at) {
    const int32_t token = first + lowest_bit(bits);
    block.store_shared(2u * static_cast<uint32_t>(at), static_cast<uint16_t>(token));
    if constexpr (kSoft) {
      const float weight = mask_weight(row, op.masks_dtype, op.masks_stride_n, chunk + token);
      block.store_shared(Layout::kWeights + 4u * static_cast<uint32_t>(at), weight);
    }
  }
  block.sync();
  return count;
}

struct PoolSum {
  float value[kChannelsPerLane] = {}, area = 0.0f;
};

// Adds tokens [begin, end) of the list; `features` is that of the chunk's first token at this lane's channels, of which
// `left` are there.
template <typename T, bool kSoft, bool kWhole, typename Block>
OVSDINO_HD void add_tokens(const MaskPool& op, const T* features, int64_t left, int32_t begin, int32_t end,
                           const Block& block, PoolSum* sum) {
  constexpr int32_t kAhead = 4;
  for (int32_t i = begin; i < end; i += kAhead) {
    float value[kAhead][kChannelsPerLane], weight[kAhead];
    OVSDINO_UNROLL
    for (int32_t t = 0; t < kAhead; ++t) {
      const bool inside = i + t < end;
      const auto at = static_cast<uint32_t>(inside ? i + t : i);
      const int64_t token = block.template load_shared<uint16_t>(2u * at);
      weight[t] = 1.0f;
      if constexpr (kSoft) weight[t] = block.template load_shared<float>(PoolLayout<Block, kSoft>::kWeights + 4u * at);
      if (!inside) weight[t] = 0.0f;
      OVSDINO_UNROLL
      for (int32_t c = 0; c < kChannelsPerLane; ++c) value[t][c] = 0.0f;
      if (left > 0 && inside) load_channels<kWhole>(features + token * op.features_stride_n, left, block, value[t]);
    }
    OVSDINO_UNROLL
    for (int32_t c = 0; c < kChannelsPerLane; ++c) {
      sum->value[c] +=
          (weight[0] * value[0][c] + weight[1] * value[1][c]) + (weight[2] * value[2][c] + weight[3] * value[3][c]);
    }
    sum->area += (weight[0] + weight[1]) + (weight[2] + weight[3]);
  }
}

// job: index into (batch, mask_count, pool_jobs).
template <typename T, bool kSoft, typename Block>
OVSDINO_HD void mask_pool_block(const MaskPool& op, int64_t job, const Block& block) {
  using Layout = PoolLayout<Block, kSoft>;
  const int64_t jobs = pool_jobs(op, Block::kLanes, Block::kWarps), slices = pool_slices(op, Block::kLanes);
  const int64_t to = job / jobs, batch = to / op.mask_count, mask = to % op.mask_count;
  const int64_t first_slice = job % jobs * Block::kWarps;
  const int32_t here =
      static_cast<int32_t>(slices - first_slice < Block::kWarps ? slices - first_slice : Block::kWarps);
  // Warps beyond the slices take parts of the list: of 384 channels two warps add each slice.
  const int32_t parts = Block::kWarps / here, part = block.warp() / here, slice = block.warp() % here;
  const int64_t channel = ((first_slice + slice) * Block::kLanes + block.lane()) * kChannelsPerLane;
  const int64_t left = part < parts ? op.channels - channel : 0;
  const void* row = mask_row(op.masks, op.masks_dtype, batch * op.masks_stride_b + mask * op.masks_stride_m);
  const T* features = static_cast<const T*>(op.features) + batch * op.features_stride_b + channel;
  const bool whole = (left <= 0 || left >= kChannelsPerLane) && op.features_stride_n % kChannelsPerLane == 0 &&
                     reinterpret_cast<uintptr_t>(features) % (kChannelsPerLane * sizeof(T)) == 0;

  PoolSum sum;
  for (int64_t chunk = 0; chunk < op.tokens; chunk += Layout::kChunk) {
    const int32_t count = list_tokens<kSoft>(op, row, chunk, block);
    const int32_t share = (count + 4 * parts - 1) / (4 * parts) * 4;
    const int32_t begin = part * share, end = begin + share < count ? begin + share : count;
    const T* from = features + chunk * op.features_stride_n;
    if (part < parts && whole) add_tokens<T, kSoft, true>(op, from, left, begin, end, block, &sum);
    if (part < parts && !whole) add_tokens<T, kSoft, false>(op, from, left, begin, end, block, &sum);
    block.sync();  // the next chunk's list, or the sums, overwrite this one's
  }

  if (parts > 1) {
    constexpr uint32_t kStep = Block::kThreads * 4u;  // one number of every thread after the other: no bank conflicts
    const uint32_t at = 4u * static_cast<uint32_t>(block.index());
    OVSDINO_UNROLL
    for (uint32_t c = 0; c < kChannelsPerLane; ++c) block.store_shared(at + c * kStep, sum.value[c]);
    block.store_shared(at + kChannelsPerLane * kStep, sum.area);
    block.sync();
    for (int32_t p = 1; part == 0 && p < parts; ++p) {
      const uint32_t other = at + 4u * static_cast<uint32_t>(p * here * Block::kLanes);
      OVSDINO_UNROLL
      for (uint32_t c = 0; c < kChannelsPerLane; ++c) {
        sum.value[c] += block.template load_shared<float>(other + c * kStep);
      }
      sum.area += block.template load_shared<float>(other + kChannelsPerLane * kStep);
    }
  }
  if (part > 0) return;
  if (channel == 0) block.store_global(op.areas + to, sum.area);
  T* means = static_cast<T*>(op.means) + to * op.channels + channel;
  OVSDINO_UNROLL
  for (int32_t c = 0; c < kChannelsPerLane; ++c) {
    if (c >= left) continue;
    T mean;
    from_float(sum.area == 0.0f ? 0.0f : sum.value[c] / sum.area, &mean);
    block.store_global(means + c, mean);
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
                        token, kTokensPerLane);
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
