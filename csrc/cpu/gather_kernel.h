// Between mask_pool.cpp (reading the masks, memory, threads) and gather_kernel.cpp (one instruction set each).
#pragma once

#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

// Rows that are added together, one bit of a word each, and how many of their channels at most.
constexpr int64_t kBlockRows = 32, kMostSpanChannels = 128;

// A row's channels, the sums of two and the sums of four neighbors of a block have a slot each.
constexpr int64_t kSlots = 2 * kBlockRows;

// Sets are looked at this many at a time: a line of the cache.
constexpr int64_t kSetGroup = 16;

// Sets of weighted rows. Bit r of words[b * stride + i] says that set i holds row b * kBlockRows + r.
struct RowSets {
  int64_t count;
  const uint32_t* words;
  int64_t stride;       // a multiple of kSetGroup; the words past `count` are 0
  const float* weight;  // of row n in set i: weight[i * set_stride + n * row_stride]; null: all 1
  int64_t set_stride, row_stride;
};

// What a set holds of one block: slots to add.
struct Piece {
  int64_t set;
  uint64_t slots;
};

// out(i, c) = (sum over set i of weight * in(row, c)) / divisor[i], for `channels` channels.
struct Gather {
  RowSets sets;
  const void* in;  // (rows, channels), stride in_stride between rows, channels contiguous
  DType dtype;     // of in and out: float32, float16 or bfloat16
  int64_t rows, in_stride, channels;
  void* out;
  int64_t out_stride;
  const float* divisor;  // null: all 1
  float* sums;           // scratch, sets.count * channels; null for float32, whose sums are made in `out`
  float* block;          // scratch, kSlots * kMostSpanChannels, 64-byte aligned
  Piece* pieces;         // scratch, sets.count
};

struct GatherKernel {
  void (*run)(const Gather& gather);
  // Writes which of `count` bytes are not 0, a bit each, to words[0], words[stride], ...; returns how many.
  int64_t (*read_set)(const uint8_t* bytes, int64_t count, uint32_t* words, int64_t stride);
};

namespace baseline {
extern const GatherKernel kGather;
}
namespace avx2 {
extern const GatherKernel kGather;
}
namespace avx512 {
extern const GatherKernel kGather;
}

}  // namespace ovsdino
