// Between mask_pool.cpp (reading the masks, memory, threads) and gather_kernel.cpp (one instruction set each).
#pragma once

#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

// Room for a vector of the widest instruction set.
constexpr int64_t kListPad = 16;

// Sparse lists of weighted rows: list i is entries begin[i] .. begin[i + 1], in ascending order of `row`.
struct RowLists {
  int64_t count;
  const int64_t* begin;
  const int32_t* row;   // kListPad more may be read
  const float* weight;  // null: all 1
};

// Rows that are added together, and how many of their channels at most: 24 KB fit the level 1 cache.
constexpr int64_t kBlockRows = 48, kMostSpanChannels = 128;

// What a list holds of one block of rows.
struct Piece {
  int64_t list, first, count;
};

// out(i, c) = (sum over list i of weight * in(row, c)) / divisor[i], for `channels` channels.
struct Gather {
  RowLists lists;
  const void* in;  // (rows, channels), stride in_stride between rows, channels contiguous
  DType dtype;     // of in and out: float32, float16 or bfloat16
  int64_t rows, in_stride, channels;
  void* out;
  int64_t out_stride;
  const float* divisor;  // null: all 1
  float* sums;           // scratch, count * channels; null for float32, whose sums are made in `out`
  float* block;          // scratch, kBlockRows * (channels, rounded up to kMostSpanChannels), 64-byte aligned
  int64_t* cursor;       // scratch, count
  int32_t* head;         // scratch, count + kListPad: the next row of each list
  Piece* pieces;         // scratch, count
};

struct GatherKernel {
  void (*run)(const Gather& gather);
  // How many of `count` bytes are not 0, and their places: from `first` on, in order.
  int64_t (*count_set)(const uint8_t* bytes, int64_t count);
  void (*list_set)(const uint8_t* bytes, int64_t count, int32_t first, int32_t* places);
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
