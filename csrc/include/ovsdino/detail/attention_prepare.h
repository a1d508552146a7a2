// The first pass of structure_attention: rows f and columns of the workspace (attention_layout.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/attention_layout.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/structure_attention.h"

namespace ovsdino {

constexpr int kPrepareThreads = 512;
constexpr int kPrepareRows = kPrepareThreads / kStructure;
constexpr uint32_t kPrepareSharedBytes = kPrepareThreads * sizeof(float);

// Tokens a block writes. Each reads all tokens of its head for their mean, so that one launch does, with the sum in the
// same order everywhere; no more than 16 blocks a head keep that at 2 % of the attention's own reads.
OVSDINO_HD int64_t prepare_tokens(int64_t tokens) {
  const int64_t sixteenth = ceil_div(padded_tokens(tokens), 16);
  return sixteenth < 256 ? 256 : ceil_div(sixteenth, kPrepareRows) * kPrepareRows;
}

// Blocks a head.
OVSDINO_HD uint32_t prepare_blocks(const StructureAttention& op) {
  return static_cast<uint32_t>(padded_tokens(op.tokens) - 1) / static_cast<uint32_t>(prepare_tokens(op.tokens)) + 1;
}

// block: which chunk of tokens, counted through all heads. A lane works on one coordinate of a row of tokens.
template <typename T, typename Lanes>
OVSDINO_HD void prepare_structure(const StructureAttention& op, uint32_t block, Lanes& lanes) {
  const uint32_t chunks = prepare_blocks(op);
  const Head head = head_at(op, block / chunks);
  const int32_t coordinate = lanes.index() % kStructure, row = lanes.index() / kStructure;
  const bool used = coordinate < op.rank;
  const int64_t step = op.e_strides[2];
  const T* e = static_cast<const T*>(op.e) + head.offset(op.e_strides) + coordinate * op.e_strides[3];
  const float lam = lanes.load_global(op.lam + head.number);
  const float factor = sqrtf(2.0f * lam * scaling_of(op.scale).structure);
  float sum = 0.0f;
  if (used) {
    OVSDINO_UNROLL_BY(8)
    for (int64_t token = row; token < op.tokens; token += kPrepareRows) {
      sum += to_float(lanes.load_global(e + token * step));
    }
  }
  lanes.store_shared(lanes.index() * static_cast<uint32_t>(sizeof(float)), sum);
  lanes.sync();
  float mean = 0.0f;
  for (int32_t other = 0; other < kPrepareRows; ++other) {
    const uint32_t from = static_cast<uint32_t>(other * kStructure + coordinate);
    mean += lanes.template load_shared<float>(from * static_cast<uint32_t>(sizeof(float)));
  }
  mean /= static_cast<float>(op.tokens);

  T* rows = structure_rows<T>(op, head.index);
  float* columns = structure_columns<T>(op, head.index);
  const int64_t begin = block % chunks * prepare_tokens(op.tokens), padded = padded_tokens(op.tokens);
  const int64_t end = begin + prepare_tokens(op.tokens) < padded ? begin + prepare_tokens(op.tokens) : padded;
  for (int64_t token = begin + row; token < end; token += kPrepareRows) {  // end is a multiple of kPrepareRows
    float value = 0.0f;
    if (used && token < op.tokens) value = factor * (to_float(lanes.load_global(e + token * step)) - mean);
    T rounded;
    from_float(value, &rounded);
    float squared = to_float(rounded) * to_float(rounded);
    for (int32_t mask = kStructure / 2; mask > 0; mask >>= 1) squared += lanes.shuffle_xor(squared, mask);
    lanes.store_global(rows + token * kStructure + coordinate, rounded);
    if (coordinate == 0) lanes.store_global(columns + token, token < op.tokens ? -0.5f * squared : -INFINITY);
  }
}

}  // namespace ovsdino
