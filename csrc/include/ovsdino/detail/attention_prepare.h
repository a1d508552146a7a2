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

// Tokens a block writes. Each reads all keys of its head for their mean, so that one launch does, with the sum in the
// same order everywhere; no more than 16 blocks a head keep that at 2 % of the attention's own reads.
OVSDINO_HD int64_t prepare_tokens(int64_t tokens) {
  const int64_t sixteenth = ceil_div(padded_tokens(tokens), 16);
  return sixteenth < 256 ? 256 : ceil_div(sixteenth, kPrepareRows) * kPrepareRows;
}

OVSDINO_HD uint32_t prepare_chunks(int64_t tokens) {
  return static_cast<uint32_t>(padded_tokens(tokens) - 1) / static_cast<uint32_t>(prepare_tokens(tokens)) + 1;
}

// Blocks a head: for the keys, then for the queries where these are other tokens.
OVSDINO_HD uint32_t prepare_blocks(const StructureAttention& op) {
  return prepare_chunks(op.keys) + (op.key_e ? prepare_chunks(op.tokens) : 0);
}

// block: which chunk of tokens, counted through all heads. A lane works on one coordinate of a row of tokens.
template <typename T, typename Lanes>
OVSDINO_HD void prepare_structure(const StructureAttention& op, uint32_t block, Lanes& lanes) {
  const uint32_t chunks = prepare_blocks(op), key_chunks = prepare_chunks(op.keys);
  const Head head = head_at(op, block / chunks);
  const int32_t coordinate = lanes.index() % kStructure, row = lanes.index() / kStructure;
  const bool used = coordinate < op.rank;
  const int64_t* key_strides = op.key_e ? op.key_e_strides : op.e_strides;
  const T* keys = static_cast<const T*>(op.key_e ? op.key_e : op.e) + head.offset(key_strides);
  const float lam = lanes.load_global(op.lam + head.number);
  const float factor = sqrtf(2.0f * lam * scaling_of(op.scale).structure);
  float sum = 0.0f;
  if (used) {
    const T* from = keys + coordinate * key_strides[3];
    const int64_t step = key_strides[2];
    OVSDINO_UNROLL_BY(8)
    for (int64_t token = row; token < op.keys; token += kPrepareRows) {
      sum += to_float(lanes.load_global(from + token * step));
    }
  }
  lanes.store_shared(lanes.index() * static_cast<uint32_t>(sizeof(float)), sum);
  lanes.sync();
  float mean = 0.0f;
  for (int32_t other = 0; other < kPrepareRows; ++other) {
    const uint32_t from = static_cast<uint32_t>(other * kStructure + coordinate);
    mean += lanes.template load_shared<float>(from * static_cast<uint32_t>(sizeof(float)));
  }
  mean /= static_cast<float>(op.keys);

  uint32_t chunk = block % chunks;
  const bool of_queries = chunk >= key_chunks;
  if (of_queries) chunk -= key_chunks;
  const int64_t tokens = of_queries ? op.tokens : op.keys;
  const int64_t* strides = of_queries ? op.e_strides : key_strides;
  const T* e = of_queries ? static_cast<const T*>(op.e) + head.offset(strides) : keys;
  T* rows = of_queries ? query_rows<T>(op, head.index) : key_rows<T>(op, head.index);
  float* columns = key_columns<T>(op, head.index);
  const int64_t begin = chunk * prepare_tokens(tokens), padded = padded_tokens(tokens);
  const int64_t end = begin + prepare_tokens(tokens) < padded ? begin + prepare_tokens(tokens) : padded;
  const int64_t step = strides[2];
  e += coordinate * strides[3];
  for (int64_t token = begin + row; token < end; token += kPrepareRows) {  // end is a multiple of kPrepareRows
    float value = 0.0f;
    if (used && token < tokens) value = factor * (to_float(lanes.load_global(e + token * step)) - mean);
    T rounded;
    from_float(value, &rounded);
    float squared = to_float(rounded) * to_float(rounded);
    for (int32_t mask = kStructure / 2; mask > 0; mask >>= 1) squared += lanes.shuffle_xor(squared, mask);
    lanes.store_global(rows + token * kStructure + coordinate, rounded);
    if (coordinate == 0 && !of_queries) {
      lanes.store_global(columns + token, token < tokens ? -0.5f * squared : -INFINITY);
    }
  }
}

}  // namespace ovsdino
