// The gather kernel of mask_pool; compiled once per instruction set (see simd.h).
//
// A mask is a few runs of neighboring tokens. So the rows of a block are copied, or widened to float32, together with
// the sums of each aligned two and four of them, and a run of twelve rows costs about four additions. This is done for
// kSpan vectors of channels at a time, 28 KB that stay in the level 1 cache while each set adds its slots in
// registers. Where they lie, rows of 768 channels would share half of that cache's sets and push each other out. A sum
// is thus made of short partial sums, which also keeps its rounding error below a plain loop's.
#include "gather_kernel.h"

#include "ovsdino/detail/number.h"
#include "simd.h"

namespace ovsdino {
namespace OVSDINO_ISA {
namespace {

constexpr int kSpan = 8;
constexpr int64_t kSpanChannels = kSpan * kLanes;
static_assert(kSpanChannels <= kMostSpanChannels, "the block is too small");

// Slots of rows are 0 to 31; that of rows r and r + 1 is 32 + r, that of r to r + 3 is 33 + r.
OVSDINO_INLINE uint64_t slots_of(uint32_t rows) {
  const uint32_t two = rows & (rows >> 1) & 0x55555555u;
  const uint32_t four = two & (two >> 2) & 0x11111111u;
  const uint32_t ones = rows & ~(two | two << 1), twos = two & ~(four | four << 2);
  return static_cast<uint64_t>(twos | four << 1) << 32 | ones;
}

// Where the slots of a block lie: slot s, channel 0 of the span, at data + s * stride. The weight of slot s in set i is
// weight[i * set_stride + s * row_stride]; null: all 1.
struct Slots {
  const float* data;
  int64_t stride;
  const float* weight;
  int64_t set_stride, row_stride;
};

template <int kVectors>
OVSDINO_INLINE void add_slots(const Piece& piece, const Slots& from, float* out) {
  Floats sum[kVectors] = {};
  if (from.weight) {
    const float* weights = from.weight + piece.set * from.set_stride;
    for (uint64_t left = piece.slots; left; left &= left - 1) {
      const int64_t slot = __builtin_ctzll(left);
      const float weight = weights[slot * from.row_stride];
      for (int v = 0; v < kVectors; ++v) sum[v] += load(from.data + slot * from.stride + v * kLanes) * weight;
    }
  } else {
    for (uint64_t left = piece.slots; left; left &= left - 1) {
      const float* row = from.data + __builtin_ctzll(left) * from.stride;
      for (int v = 0; v < kVectors; ++v) sum[v] += load(row + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, load(out + v * kLanes) + sum[v]);
}

OVSDINO_INLINE void add_slots_scalar(const Piece& piece, const Slots& from, float* out) {
  float sum = 0.0f;
  for (uint64_t left = piece.slots; left; left &= left - 1) {
    const int64_t slot = __builtin_ctzll(left);
    const float weight = from.weight ? from.weight[piece.set * from.set_stride + slot * from.row_stride] : 1.0f;
    sum += from.data[slot * from.stride] * weight;
  }
  *out += sum;
}

// The rows of the next block, asked for line by line while this one's are added: reading them and adding then take as
// long as the longer of the two.
struct Ahead {
  const char* row;
  int64_t rows, stride, width, at;  // bytes

  OVSDINO_LAMBDA_INLINE void ask(int64_t lines) {
    for (; lines > 0 && rows > 0; --lines) {
      __builtin_prefetch(row + at, 0, 2);  // not into level 1, which holds a span
      at += 64;
      if (at >= width) at = 0, row += stride, --rows;
    }
  }
};

struct Pieces {
  const Piece* piece;
  int64_t count;
};

// out: the sets' sums at the first of the channels.
template <int kVectors>
OVSDINO_INLINE void add_pieces(const Pieces& pieces, const Slots& from, float* out, int64_t out_stride, Ahead& ahead,
                               int64_t lines) {
  for (int64_t p = 0; p < pieces.count; ++p) {
    const Piece& piece = pieces.piece[p];
    ahead.ask(lines);
    if (kVectors > 0) {
      add_slots<kVectors>(piece, from, out + piece.set * out_stride);
    } else {
      add_slots_scalar(piece, from, out + piece.set * out_stride);
    }
  }
}

// The same of `channels`, kSpanChannels at most.
OVSDINO_INLINE void add_span(const Pieces& pieces, Slots from, int64_t channels, float* out, int64_t out_stride,
                             Ahead& ahead, int64_t lines) {
  if (channels == kSpanChannels) return add_pieces<kSpan>(pieces, from, out, out_stride, ahead, lines);
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes, from.data += kLanes)
    add_pieces<1>(pieces, from, out + c, out_stride, ahead, lines);
  for (; c < channels; ++c, ++from.data) add_pieces<0>(pieces, from, out + c, out_stride, ahead, lines);
}

// Rows r to r + 3, or fewer at the end, and their sums.
template <typename T>
OVSDINO_INLINE void copy_four(const T* from, int64_t stride, int64_t count, int64_t channels, float* row, float* sum) {
  if (count == 4) {
    for (int64_t c = 0; c < channels; ++c) {
      const float a = to_float(from[c]), b = to_float(from[stride + c]);
      const float d = to_float(from[2 * stride + c]), e = to_float(from[3 * stride + c]);
      row[c] = a;
      row[kSpanChannels + c] = b;
      row[2 * kSpanChannels + c] = d;
      row[3 * kSpanChannels + c] = e;
      sum[c] = a + b;
      sum[2 * kSpanChannels + c] = d + e;
      sum[kSpanChannels + c] = (a + b) + (d + e);
    }
    return;
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < channels; ++c) row[r * kSpanChannels + c] = to_float(from[r * stride + c]);
  }
  if (count < 2) return;
  for (int64_t c = 0; c < channels; ++c) sum[c] = row[c] + row[kSpanChannels + c];
}

template <typename T>
OVSDINO_INLINE void copy_rows(const T* from, int64_t stride, int64_t rows, int64_t channels, float* block) {
  for (int64_t r = 0; r < rows; r += 4) {
    float* row = block + r * kSpanChannels;
    float* sum = row + kBlockRows * kSpanChannels;
    const int64_t count = rows - r < 4 ? rows - r : 4;
    if (channels == kSpanChannels) {
      copy_four(from + r * stride, stride, count, kSpanChannels, row, sum);
    } else {
      copy_four(from + r * stride, stride, count, channels, row, sum);
    }
  }
}

template <typename T>
OVSDINO_INLINE void divide_and_store(const Gather& g, const float* sums, int64_t sums_stride) {
  for (int64_t i = 0; i < g.sets.count; ++i) {
    const float divisor = g.divisor ? g.divisor[i] : 1.0f;
    T* out = static_cast<T*>(g.out) + i * g.out_stride;
    for (int64_t c = 0; c < g.channels; ++c) from_float(sums[i * sums_stride + c] / divisor, out + c);
  }
}

template <typename T>
OVSDINO_INLINE Ahead rows_ahead(const Gather& g, int64_t first) {
  const int64_t size = sizeof(T), rows = g.rows - first < kBlockRows ? g.rows - first : kBlockRows;
  return {static_cast<const char*>(g.in) + first * g.in_stride * size, rows, g.in_stride * size, g.channels * size, 0};
}

// Lists the sets that hold rows of a block, each with its rows; returns how many, and adds up their rows.
OVSDINO_INLINE int64_t list_pieces(const RowSets& sets, const uint32_t* words, Piece* pieces, int64_t& rows) {
  int64_t count = 0;
  for (int64_t i = 0; i < sets.count; i += kSetGroup) {
    uint32_t any = 0;
    for (int64_t j = 0; j < kSetGroup; j += kLanes) {
      Ints group;
      memcpy(&group, words + i + j, sizeof(group));
      any |= negative(group != Ints{}) << j;
    }
    for (; any; any &= any - 1) {
      const int64_t set = i + __builtin_ctz(any);
      pieces[count++] = {set, words[set]};
      rows += __builtin_popcount(words[set]);
    }
  }
  return count;
}

template <typename T>
OVSDINO_INLINE void gather(const Gather& g) {
  constexpr bool kIsFloat = sizeof(T) == sizeof(float);
  const RowSets& sets = g.sets;
  float* sums = kIsFloat ? static_cast<float*>(g.out) : g.sums;
  const int64_t sums_stride = kIsFloat ? g.out_stride : g.channels;
  for (int64_t i = 0; i < sets.count; ++i) {
    for (int64_t c = 0; c < g.channels; ++c) sums[i * sums_stride + c] = 0.0f;
  }
  for (int64_t first = 0; first < g.rows; first += kBlockRows) {
    const int64_t end = first + kBlockRows < g.rows ? first + kBlockRows : g.rows;
    int64_t entries = 0;
    const int64_t count = list_pieces(sets, sets.words + first / kBlockRows * sets.stride, g.pieces, entries);
    if (count == 0) continue;
    const Pieces pieces = {g.pieces, count};
    const T* from = static_cast<const T*>(g.in) + first * g.in_stride;
    const bool copied = !kIsFloat || entries > end - first;  // a row that is added once is not worth a copy
    if (copied && !sets.weight) {
      for (int64_t p = 0; p < count; ++p) g.pieces[p].slots = slots_of(static_cast<uint32_t>(g.pieces[p].slots));
    }
    Ahead ahead = rows_ahead<T>(g, end);
    const int64_t spans = (g.channels + kSpanChannels - 1) / kSpanChannels;
    const int64_t lines = (ahead.rows * ((ahead.width + 63) / 64) + count * spans - 1) / (count * spans);
    for (int64_t c = 0; c < g.channels; c += kSpanChannels) {
      const int64_t channels = c + kSpanChannels < g.channels ? kSpanChannels : g.channels - c;
      if (copied) copy_rows(from + c, g.in_stride, end - first, channels, g.block);
      const Slots slots = {
          copied ? g.block : reinterpret_cast<const float*>(from) + c, copied ? kSpanChannels : g.in_stride,
          sets.weight ? sets.weight + first * sets.row_stride : nullptr, sets.set_stride, sets.row_stride};
      add_span(pieces, slots, channels, sums + c, sums_stride, ahead, lines);
    }
  }
  if (g.divisor || !kIsFloat) divide_and_store<T>(g, sums, sums_stride);
}

void run(const Gather& g) {
  if (g.dtype == DType::kFloat32) gather<float>(g);
  if (g.dtype == DType::kFloat16) gather<Half>(g);
  if (g.dtype == DType::kBFloat16) gather<BFloat16>(g);
}

constexpr int64_t kBytes = 64;  // looked at together

// Bit i is set where from[i] is not 0, of kBytes.
OVSDINO_INLINE uint64_t set_bits(const uint8_t* from) {
#if defined(__AVX512BW__)
  const __m512i bytes = _mm512_loadu_si512(from);
  return _mm512_test_epi8_mask(bytes, bytes);
#elif defined(__AVX2__)
  uint64_t clear = 0;
  for (int i = 0; i < 2; ++i) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32 * i));
    const int equal = _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256()));
    clear |= static_cast<uint64_t>(static_cast<uint32_t>(equal)) << 32 * i;
  }
  return ~clear;
#elif defined(__SSE2__)
  uint64_t clear = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
    const int equal = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
    clear |= static_cast<uint64_t>(equal) << 16 * i;
  }
  return ~clear;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t word;
    memcpy(&word, from + 8 * i, sizeof(word));
    if (word == 0) continue;
    for (int j = 8 * i; j < 8 * i + 8; ++j) bits |= static_cast<uint64_t>(from[j] != 0) << j;
  }
  return bits;
#endif
}

OVSDINO_INLINE uint64_t last_bits(const uint8_t* from, int64_t count) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint64_t>(from[i] != 0) << i;
  return bits;
}

int64_t read_set(const uint8_t* bytes, int64_t count, uint32_t* words, int64_t stride) {
  static_assert(kBytes == 2 * kBlockRows, "two words at a time");
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += kBytes) {
    const uint64_t bits = i + kBytes <= count ? set_bits(bytes + i) : last_bits(bytes + i, count - i);
    found += __builtin_popcountll(bits);
    *words = static_cast<uint32_t>(bits);
    words += stride;
    if (i + kBlockRows < count) {
      *words = static_cast<uint32_t>(bits >> kBlockRows);
      words += stride;
    }
  }
  return found;
}

}  // namespace

const GatherKernel kGather = {run, read_set};

}  // namespace OVSDINO_ISA
}  // namespace ovsdino
