// Where structure_attention keeps things: the workspace of a call, the shared memory of a block.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/structure_attention.h"
#include "ovsdino/types.h"

namespace ovsdino {

constexpr int64_t kStructure = 16;  // elements of a structure row: r of e, then zeros
constexpr int64_t kMostHeadDim = 64, kMostValueDim = 128;
constexpr int64_t kTokenTile = 64;  // the workspace ends on a whole tile of keys

OVSDINO_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
OVSDINO_HD int64_t padded_tokens(int64_t tokens) { return ceil_div(tokens, kTokenTile) * kTokenTile; }

// With f = sqrt(2 lam / |scale|) (e - mean), rounded, and column_j = -|f_j|^2 / 2 the logits in units of log2 are
//   factor (sign(scale) q_i.k_j + f_i.f_j + column_j),   factor = |scale| log2(e),
// up to a term constant in j. The mean is that of the keys, for queries too. So q and k are used as they are, and the
// rounding of f moves tokens in the structure space but leaves the bias a squared distance: 0 for a token to itself.
struct Scaling {
  float factor;      // of the logits, > 0
  float structure;   // 2 lam times this is the square of f's factor
  uint32_t keep;     // bits of a pair of q's elements to keep: none for scale 0
  uint32_t negated;  // bits to flip: the signs for scale < 0
};

OVSDINO_HD Scaling scaling_of(float scale) {
  constexpr float kLog2E = 1.4426950408889634f;
  if (scale == 0.0f) return {kLog2E, 1.0f, 0u, 0u};
  return {fabsf(scale) * kLog2E, 1.0f / fabsf(scale), ~0u, scale < 0.0f ? 0x80008000u : 0u};
}

// One head of the batch. Divided in 32 bits: a 64-bit division is a call of some hundred instructions.
struct Head {
  int64_t index, batch, number;
  OVSDINO_HD_MEMBER int64_t offset(const int64_t* strides) const { return batch * strides[0] + number * strides[1]; }
};

OVSDINO_HD Head head_at(const StructureAttention& op, uint32_t index) {
  const uint32_t heads = static_cast<uint32_t>(op.heads);
  return {index, index / heads, index % heads};
}

// f of the keys: (batch * heads, padded keys, kStructure), zero in the padding.
template <typename T>
OVSDINO_HD T* key_rows(const StructureAttention& op, int64_t head) {
  return static_cast<T*>(op.workspace) + head * padded_tokens(op.keys) * kStructure;
}

// (batch * heads, padded keys): -|f|^2 / 2, and -infinity in the padding, so that no key there has a weight.
template <typename T>
OVSDINO_HD float* key_columns(const StructureAttention& op, int64_t head) {
  return reinterpret_cast<float*>(key_rows<T>(op, op.batch * op.heads)) + head * padded_tokens(op.keys);
}

// f of the queries, which is that of the keys where these are the same tokens.
template <typename T>
OVSDINO_HD T* query_rows(const StructureAttention& op, int64_t head) {
  if (!op.key_e) return key_rows<T>(op, head);
  T* begin = reinterpret_cast<T*>(key_columns<T>(op, op.batch * op.heads));
  return begin + head * padded_tokens(op.tokens) * kStructure;
}

// One block: kQueries queries of one head, a warp for 16 kRows of them, against tiles of kKeys keys.
//
// A tile in shared memory is rows of [k | f], rows of v, and the column. The rows hold one 16-byte chunk more than
// their contents, an odd number in all: eight rows of one chunk, which is what ldmatrix reads at a time, then lie in
// all 32 banks, and each address is a lane's base plus a constant (with XOR swizzling an instruction or a register for
// every chunk). The eighth more of shared memory costs no block on any multiprocessor from sm_80 on.
template <typename T, int kHeadDim16, int kValueDim16, int kRowTiles>
struct AttentionTile {
  using Element = T;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kSteps = kHeadDim16 + 1;  // of 16 elements: those of k, and f
  static constexpr int kHeadSteps = kHeadDim16, kValueSteps = kValueDim16, kRows = kRowTiles;
  static constexpr int kQueries = 16 * kRows * kWarps;
  static constexpr int kKeys = kValueSteps > 4 || kRows* kSteps > 8 ? 32 : 64;  // 48 KB for two stages; 255 registers
  static constexpr uint32_t kKeyBytes = (2 * kSteps + 1) * 16, kValueBytes = (2 * kValueSteps + 1) * 16;
  static constexpr uint32_t kValuesAt = kKeys * kKeyBytes, kColumnAt = kValuesAt + kKeys * kValueBytes;
  static constexpr uint32_t kStageBytes = kColumnAt + kKeys * sizeof(float);
  static constexpr uint32_t kSharedBytes = 2 * kStageBytes;
  static_assert(kSharedBytes <= 48 * 1024, "more needs an opt-in at launch");
};

}  // namespace ovsdino
