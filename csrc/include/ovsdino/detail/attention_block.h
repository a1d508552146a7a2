// The second pass of structure_attention: one block of queries against all keys of its head, flash-attention style.
// Logits are in the units of attention_layout.h; what a lane holds of each matrix is said in attention_lanes.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/attention_layout.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/structure_attention.h"

namespace ovsdino {

struct alignas(8) FloatPair {
  float x, y;
};

// Copies one tile of keys after another into shared memory. A lane keeps to one 16-byte chunk of the rows, and to every
// so many-th row.
template <typename Tile>
class TileCopy {
 public:
  using T = typename Tile::Element;

  OVSDINO_HD_MEMBER TileCopy(const StructureAttention& op, const Head& head, uint32_t lane) : lane_(lane) {
    f_ = reinterpret_cast<const char*>(key_rows<T>(op, head.index));
    column_ = reinterpret_cast<const char*>(key_columns<T>(op, head.index));
    const char* k = bytes(op.k, head.offset(op.k_strides));
    const char* v = bytes(op.v, head.offset(op.v_strides));
    const uint32_t key_chunk = lane % kKeyChunks, value_chunk = lane % kValueChunks;
    const bool is_f = key_chunk >= kFirstF;
    key_step_ = (is_f ? kStructure : op.k_strides[2]) * int64_t{sizeof(T)};
    key_ = (is_f ? f_ + (key_chunk - kFirstF) * 16 : k + key_chunk * 16) + lane / kKeyChunks * key_step_;
    value_step_ = op.v_strides[2] * int64_t{sizeof(T)};
    value_ = v + value_chunk * 16 + lane / kValueChunks * value_step_;
    // A lane whose chunk is past the row's end fills it with zeros: no keys are left for it.
    const int32_t keys = static_cast<int32_t>(op.keys);
    key_left_ = is_f || key_chunk * 8 < op.head_dim ? keys - static_cast<int32_t>(lane / kKeyChunks) : kNone;
    value_left_ = value_chunk * 8 < op.value_dim ? keys - static_cast<int32_t>(lane / kValueChunks) : kNone;
  }

  // The next tile, into the stage at `to`. Keys past the last become zeros; f and the column are padded.
  template <typename Lanes>
  OVSDINO_HD_MEMBER void issue(Lanes& lanes, uint32_t to) {
    const uint32_t lane = lane_;
    const uint32_t key_to = to + lane / kKeyChunks * Tile::kKeyBytes + lane % kKeyChunks * 16u;
    OVSDINO_UNROLL
    for (int32_t row = 0; row < Tile::kKeys; row += int32_t{kKeyRows}) {
      const uint32_t at = key_to + static_cast<uint32_t>(row) * Tile::kKeyBytes;
      lanes.copy_row(at, key_ + row * key_step_, row < key_left_);
    }
    if (kFirstF == kKeyChunks && lane < 2 * Tile::kKeys) {
      lanes.copy_row(to + lane / 2u * Tile::kKeyBytes + (kFirstF + lane % 2u) * 16u, f_ + lane * 16u, true);
    }
    if (lane % kValueChunks < 2 * Tile::kValueSteps) {
      const uint32_t value_to =
          to + Tile::kValuesAt + lane / kValueChunks * Tile::kValueBytes + lane % kValueChunks * 16u;
      OVSDINO_UNROLL
      for (int32_t row = 0; row < Tile::kKeys; row += int32_t{kValueRows}) {
        const uint32_t at = value_to + static_cast<uint32_t>(row) * Tile::kValueBytes;
        lanes.copy_row(at, value_ + row * value_step_, row < value_left_);
      }
    }
    if (lane < Tile::kKeys / 4) lanes.copy_row(to + Tile::kColumnAt + lane * 16u, column_ + lane * 16u, true);
    lanes.commit();
    key_left_ -= Tile::kKeys;
    value_left_ -= Tile::kKeys;
    key_ += Tile::kKeys * key_step_;
    value_ += Tile::kKeys * value_step_;
    f_ += Tile::kKeys * kStructure * int64_t{sizeof(T)};
    column_ += Tile::kKeys * sizeof(float);
  }

 private:
  // Lanes of a row of [k | f] and of v. With 8 chunks of k the two of f are a pass of their own.
  static constexpr uint32_t kKeyChunks = 8, kKeyRows = Tile::kThreads / kKeyChunks, kFirstF = 2 * Tile::kHeadSteps;
  static constexpr uint32_t kValueChunks = Tile::kValueSteps <= 2 ? 4 : Tile::kValueSteps <= 4 ? 8 : 16;
  static constexpr uint32_t kValueRows = Tile::kThreads / kValueChunks;
  static constexpr int32_t kNone = -(1 << 30);  // stays below 0 for all the keys that the check lets through
  static_assert(kFirstF == 6 || kFirstF == 8, "f is next to k, or by itself");

  OVSDINO_HD_MEMBER static const char* bytes(const void* base, int64_t elements) {
    return static_cast<const char*>(base) + elements * int64_t{sizeof(T)};
  }

  uint32_t lane_;
  int32_t key_left_, value_left_;  // keys from the lane's next row on
  int64_t key_step_, value_step_;
  const char *key_, *value_, *f_, *column_;
};

// What a lane holds of 16 kRows queries: [q | f], the sums, and two rows' running maxima and sums for each 16.
template <typename Tile>
struct QueryState {
  uint32_t query[Tile::kRows][Tile::kSteps][4];
  float out[Tile::kRows][2 * Tile::kValueSteps][4];
  float top[Tile::kRows][2], sum[Tile::kRows][2];
};

// first: the warp's first query.
template <typename Tile, typename Lanes>
OVSDINO_HD void load_queries(const StructureAttention& op, const Head& head, int64_t first, Lanes& lanes,
                             QueryState<Tile>* state) {
  using T = typename Tile::Element;
  const int32_t group = lanes.index() % 32 / 4, pair = lanes.index() % 4 * 2;
  const Scaling scaling = scaling_of(op.scale);
  const T* q = static_cast<const T*>(op.q) + head.offset(op.q_strides);
  const T* f = query_rows<T>(op, head.index);
  OVSDINO_UNROLL
  for (int32_t i = 0; i < Tile::kRows; ++i) {
    OVSDINO_UNROLL
    for (int32_t part = 0; part < 4; ++part) {
      const int64_t row = first + 16 * i + group + part % 2 * 8;
      OVSDINO_UNROLL
      for (int32_t step = 0; step < Tile::kSteps; ++step) {
        uint32_t word = 0;
        const int32_t column = 16 * step + pair + part / 2 * 8;
        if (row < op.tokens) {
          if (step == Tile::kHeadSteps) {
            word = lanes.load_global(reinterpret_cast<const uint32_t*>(f + row * kStructure + pair + part / 2 * 8));
          } else if (column < op.head_dim) {
            word = lanes.load_global(reinterpret_cast<const uint32_t*>(q + row * op.q_strides[2] + column));
            word = (word & scaling.keep) ^ scaling.negated;
          }
        }
        state->query[i][step][part] = word;
      }
    }
    OVSDINO_UNROLL
    for (int32_t n = 0; n < 2 * Tile::kValueSteps; ++n) {
      state->out[i][n][0] = state->out[i][n][1] = state->out[i][n][2] = state->out[i][n][3] = 0.0f;
    }
    state->top[i][0] = state->top[i][1] = -INFINITY;
    state->sum[i][0] = state->sum[i][1] = 0.0f;
  }
}

// The logits of a tile: the columns are where the sums start.
template <typename Tile, typename Lanes>
OVSDINO_HD void tile_logits(const QueryState<Tile>& state, uint32_t stage, Lanes& lanes,
                            float (&logits)[Tile::kRows][Tile::kKeys / 8][4]) {
  const uint32_t lane = static_cast<uint32_t>(lanes.index()) % 32u;
  OVSDINO_UNROLL
  for (int32_t n = 0; n < Tile::kKeys / 8; ++n) {
    const uint32_t key = static_cast<uint32_t>(8 * n) + lane % 4u * 2u;
    const FloatPair column = lanes.template load_shared<FloatPair>(stage + Tile::kColumnAt + key * 4u);
    OVSDINO_UNROLL
    for (int32_t i = 0; i < Tile::kRows; ++i) {
      logits[i][n][0] = logits[i][n][2] = column.x;
      logits[i][n][1] = logits[i][n][3] = column.y;
    }
  }
  // Matrices: keys 0-7 and elements 0-7, keys 0-7 and 8-15, keys 8-15 and 0-7, keys 8-15 and 8-15.
  const uint32_t from = stage + (lane / 16u * 8u + lane % 8u) * Tile::kKeyBytes + lane / 8u % 2u * 16u;
  OVSDINO_UNROLL
  for (int32_t step = 0; step < Tile::kSteps; ++step) {
    OVSDINO_UNROLL
    for (int32_t n = 0; n < Tile::kKeys / 8; n += 2) {
      uint32_t keys[4];
      lanes.load_matrices(from + static_cast<uint32_t>(8 * n) * Tile::kKeyBytes + static_cast<uint32_t>(step) * 32u,
                          keys);
      OVSDINO_UNROLL
      for (int32_t i = 0; i < Tile::kRows; ++i) {
        lanes.template multiply_add<typename Tile::Element>(logits[i][n], state.query[i][step], keys[0], keys[1]);
        lanes.template multiply_add<typename Tile::Element>(logits[i][n + 1], state.query[i][step], keys[2], keys[3]);
      }
    }
  }
}

// Turns logits into probabilities relative to the new maximum, and rescales what was summed under the old one.
template <typename Tile, typename Lanes>
OVSDINO_HD void online_softmax(QueryState<Tile>* state, float factor, Lanes& lanes,
                               float (&logits)[Tile::kRows][Tile::kKeys / 8][4]) {
  OVSDINO_UNROLL
  for (int32_t i = 0; i < Tile::kRows; ++i) {
    OVSDINO_UNROLL
    for (int32_t half = 0; half < 2; ++half) {
      float top = state->top[i][half];
      OVSDINO_UNROLL
      for (int32_t n = 0; n < Tile::kKeys / 8; ++n) {
        top = fmaxf(top, fmaxf(logits[i][n][2 * half], logits[i][n][2 * half + 1]));
      }
      top = fmaxf(top, lanes.shuffle_xor(top, 1));
      top = fmaxf(top, lanes.shuffle_xor(top, 2));
      // All logits so far -infinity: their weights must be 0, and the difference of two infinities is none.
      const float shift = top == -INFINITY ? 0.0f : top * factor;
      const float rescale = lanes.exp2(fmaf(state->top[i][half], factor, -shift));
      state->top[i][half] = top;
      float sum = 0.0f;
      OVSDINO_UNROLL
      for (int32_t n = 0; n < Tile::kKeys / 8; ++n) {
        OVSDINO_UNROLL
        for (int32_t c = 2 * half; c < 2 * half + 2; ++c) {
          logits[i][n][c] = lanes.exp2(fmaf(logits[i][n][c], factor, -shift));
          sum += logits[i][n][c];
        }
      }
      state->sum[i][half] = fmaf(state->sum[i][half], rescale, sum);
      OVSDINO_UNROLL
      for (int32_t n = 0; n < 2 * Tile::kValueSteps; ++n) {
        state->out[i][n][2 * half] *= rescale;
        state->out[i][n][2 * half + 1] *= rescale;
      }
    }
  }
}

// out += probabilities v. Two accumulators side by side are, rounded, the first operand of a product over 16 keys.
template <typename Tile, typename Lanes>
OVSDINO_HD void add_values(QueryState<Tile>* state, uint32_t stage, Lanes& lanes,
                           const float (&weights)[Tile::kRows][Tile::kKeys / 8][4]) {
  using T = typename Tile::Element;
  const uint32_t lane = static_cast<uint32_t>(lanes.index()) % 32u;
  // Matrices: keys 0-7 and elements 0-7, keys 8-15 and 0-7, keys 0-7 and 8-15, keys 8-15 and 8-15.
  const uint32_t from = stage + Tile::kValuesAt + lane % 16u * Tile::kValueBytes + lane / 16u * 16u;
  OVSDINO_UNROLL
  for (int32_t step = 0; step < Tile::kKeys / 16; ++step) {
    uint32_t weight[Tile::kRows][4];
    OVSDINO_UNROLL
    for (int32_t i = 0; i < Tile::kRows; ++i) {
      OVSDINO_UNROLL
      for (int32_t part = 0; part < 4; ++part) {
        const float (&w)[4] = weights[i][2 * step + part / 2];
        weight[i][part] = lanes.template pack<T>(w[part % 2 * 2], w[part % 2 * 2 + 1]);
      }
    }
    OVSDINO_UNROLL
    for (int32_t n = 0; n < 2 * Tile::kValueSteps; n += 2) {
      uint32_t values[4];
      lanes.load_transposed(
          from + static_cast<uint32_t>(16 * step) * Tile::kValueBytes + static_cast<uint32_t>(n) * 16u, values);
      OVSDINO_UNROLL
      for (int32_t i = 0; i < Tile::kRows; ++i) {
        lanes.template multiply_add<T>(state->out[i][n], weight[i], values[0], values[1]);
        lanes.template multiply_add<T>(state->out[i][n + 1], weight[i], values[2], values[3]);
      }
    }
  }
}

template <typename Tile, typename Lanes>
OVSDINO_HD void write_queries(const StructureAttention& op, const Head& head, int64_t first, float factor, Lanes& lanes,
                              const QueryState<Tile>& state) {
  using T = typename Tile::Element;
  const int32_t group = lanes.index() % 32 / 4, pair = lanes.index() % 4 * 2;
  float sums[Tile::kRows][2];  // all of them before the first branch that lanes take differently
  OVSDINO_UNROLL
  for (int32_t i = 0; i < Tile::kRows; ++i) {
    OVSDINO_UNROLL
    for (int32_t half = 0; half < 2; ++half) {
      sums[i][half] = state.sum[i][half];
      sums[i][half] += lanes.shuffle_xor(sums[i][half], 1);
      sums[i][half] += lanes.shuffle_xor(sums[i][half], 2);
    }
  }
  OVSDINO_UNROLL
  for (int32_t i = 0; i < Tile::kRows; ++i) {
    OVSDINO_UNROLL
    for (int32_t half = 0; half < 2; ++half) {
      const int64_t row = first + 16 * i + 8 * half + group;
      if (row >= op.tokens) continue;
      const float sum = sums[i][half];
      float share = 1.0f / sum;
      if (op.gate) {
        const int64_t at = head.offset(op.gate_strides) + row * op.gate_strides[2];
        share *= to_float(lanes.load_global(static_cast<const T*>(op.gate) + at));
      }
      T* out = static_cast<T*>(op.out) + head.offset(op.out_strides) + row * op.out_strides[2];
      OVSDINO_UNROLL
      for (int32_t n = 0; n < 2 * Tile::kValueSteps; ++n) {
        const float (&values)[4] = state.out[i][n];
        if (8 * n + pair < op.value_dim) {
          const uint32_t word = lanes.template pack<T>(values[2 * half] * share, values[2 * half + 1] * share);
          lanes.store_global(reinterpret_cast<uint32_t*>(out + 8 * n + pair), word);
        }
      }
    }
  }
}

// block: which tile of queries, counted through all heads.
template <typename Tile, typename Lanes>
OVSDINO_HD void attention_block(const StructureAttention& op, uint32_t block, Lanes& lanes) {
  const uint32_t tiles = static_cast<uint32_t>(ceil_div(op.tokens, Tile::kQueries));
  const Head head = head_at(op, block / tiles);
  const int64_t first = int64_t{block % tiles} * Tile::kQueries + lanes.index() / 32 * (16 * Tile::kRows);
  const float factor = scaling_of(op.scale).factor;
  TileCopy<Tile> copy(op, head, static_cast<uint32_t>(lanes.index()));
  copy.issue(lanes, 0);
  QueryState<Tile> state;
  load_queries(op, head, first, lanes, &state);
  uint32_t stage = 0;
  const int32_t key_tiles = static_cast<int32_t>(ceil_div(op.keys, Tile::kKeys));
  for (int32_t tile = 0; tile < key_tiles; ++tile) {
    lanes.template wait<0>();
    // This tile is there for all warps, and all have read the one before, so that the next may take its place.
    lanes.sync();
    if (tile + 1 < key_tiles) copy.issue(lanes, Tile::kStageBytes - stage);
    float logits[Tile::kRows][Tile::kKeys / 8][4];
    tile_logits(state, stage, lanes, logits);
    online_softmax(&state, factor, lanes, logits);
    add_values(&state, stage, lanes, logits);
    stage = Tile::kStageBytes - stage;
  }
  write_queries(op, head, first, factor, lanes, state);
}

}  // namespace ovsdino
