// The gather kernel of mask_pool; compiled once per instruction set (see simd.h).
//
// Each block of rows is copied, or widened to float32, span of kSpan vectors of channels by span; then each list adds
// its rows of the block in registers, one span after the other, which fits the level 1 cache. Where they lie, rows of
// 768 channels would share half of that cache's sets and push each other out: 3 cycles a vector and not 1. A sum is
// thus made of short partial sums, which also keeps its rounding error below a plain loop's.
#include "gather_kernel.h"

#include "ovsdino/detail/number.h"
#include "simd.h"

namespace ovsdino {
namespace OVSDINO_ISA {
namespace {

constexpr int kSpan = 8;
constexpr int64_t kSpanChannels = kSpan * kLanes;
static_assert(kSpanChannels <= kMostSpanChannels, "the block is too small");

struct Entries {
  const int32_t* row;
  const float* weight;
  int64_t count;
};

template <int kVectors>
OVSDINO_INLINE void add_rows(const Entries& entries, const float* in, int64_t stride, float* out) {
  Floats sum[kVectors] = {};
  if (entries.weight) {
    for (int64_t e = 0; e < entries.count; ++e) {
      const float* from = in + entries.row[e] * stride;
      const float weight = entries.weight[e];
      for (int v = 0; v < kVectors; ++v) sum[v] += load(from + v * kLanes) * weight;
    }
  } else {
    for (int64_t e = 0; e < entries.count; ++e) {
      const float* from = in + entries.row[e] * stride;
      for (int v = 0; v < kVectors; ++v) sum[v] += load(from + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, load(out + v * kLanes) + sum[v]);
}

OVSDINO_INLINE void add_rows_scalar(const Entries& entries, const float* in, int64_t stride, float* out) {
  float sum = 0.0f;
  for (int64_t e = 0; e < entries.count; ++e) {
    sum += in[entries.row[e] * stride] * (entries.weight ? entries.weight[e] : 1.0f);
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

// in: row 0 of all rows, at the first of the channels; out: the lists' sums there.
template <int kVectors>
OVSDINO_INLINE void add_pieces(const Pieces& pieces, const RowLists& lists, const float* in, int64_t stride, float* out,
                               int64_t out_stride, Ahead& ahead, int64_t lines) {
  for (int64_t p = 0; p < pieces.count; ++p) {
    const Piece& piece = pieces.piece[p];
    ahead.ask(lines);
    const Entries entries = {lists.row + piece.first, lists.weight ? lists.weight + piece.first : nullptr, piece.count};
    if (kVectors > 0) {
      add_rows<kVectors>(entries, in, stride, out + piece.list * out_stride);
    } else {
      add_rows_scalar(entries, in, stride, out + piece.list * out_stride);
    }
  }
}

// The same of `channels`, kSpanChannels at most.
OVSDINO_INLINE void add_span(const Pieces& pieces, const RowLists& lists, const float* in, int64_t stride,
                             int64_t channels, float* out, int64_t out_stride, Ahead& ahead, int64_t lines) {
  if (channels == kSpanChannels) return add_pieces<kSpan>(pieces, lists, in, stride, out, out_stride, ahead, lines);
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes)
    add_pieces<1>(pieces, lists, in + c, stride, out + c, out_stride, ahead, lines);
  for (; c < channels; ++c) add_pieces<0>(pieces, lists, in + c, stride, out + c, out_stride, ahead, lines);
}

// Rows in order, as they lie in memory; each span of channels goes to a place of its own.
template <typename T>
OVSDINO_INLINE void copy_rows(const T* from, int64_t stride, int64_t rows, int64_t channels, float* block) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; c += kSpanChannels) {
      const int64_t count = c + kSpanChannels < channels ? kSpanChannels : channels - c;
      float* to = block + c * kBlockRows + r * kSpanChannels;
      for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[r * stride + c + i]);
    }
  }
}

template <typename T>
OVSDINO_INLINE void divide_and_store(const Gather& g, const float* sums, int64_t sums_stride) {
  for (int64_t i = 0; i < g.lists.count; ++i) {
    const float divisor = g.divisor ? g.divisor[i] : 1.0f;
    T* out = static_cast<T*>(g.out) + i * g.out_stride;
    for (int64_t c = 0; c < g.channels; ++c) from_float(sums[i * sums_stride + c] / divisor, out + c);
  }
}

constexpr int32_t kNone = 0x7fffffff;

// Bit i is set where row[i] < end, of kLanes.
OVSDINO_INLINE uint32_t below(const int32_t* row, int64_t end) {
  return negative(load(row) - splat(static_cast<int32_t>(end)));
}

// How many of `count` ascending rows are below `end`.
OVSDINO_INLINE int64_t count_below(const int32_t* row, int64_t count, int64_t end) {
  int64_t found = 0;
  for (int step = kLanes; step == kLanes && found < count; found += step) {
    const uint32_t whole = count - found < kLanes ? (1u << (count - found)) - 1u : ~0u;
    step = __builtin_popcount(below(row + found, end) & whole);
  }
  return found;
}

template <typename T>
OVSDINO_INLINE Ahead rows_ahead(const Gather& g, int64_t first) {
  const int64_t size = sizeof(T), rows = g.rows - first < kBlockRows ? g.rows - first : kBlockRows;
  return {static_cast<const char*>(g.in) + first * g.in_stride * size, rows, g.in_stride * size, g.channels * size, 0};
}

template <typename T>
OVSDINO_INLINE void gather(const Gather& g) {
  constexpr bool kIsFloat = sizeof(T) == sizeof(float);
  const RowLists& lists = g.lists;
  float* sums = kIsFloat ? static_cast<float*>(g.out) : g.sums;
  const int64_t sums_stride = kIsFloat ? g.out_stride : g.channels;
  for (int64_t i = 0; i < lists.count; ++i) {
    for (int64_t c = 0; c < g.channels; ++c) sums[i * sums_stride + c] = 0.0f;
    g.cursor[i] = lists.begin[i];
    g.head[i] = lists.begin[i] < lists.begin[i + 1] ? lists.row[lists.begin[i]] : kNone;
  }
  for (int64_t i = lists.count; i % kLanes; ++i) g.head[i] = kNone;
  for (int64_t first = 0; first < g.rows; first += kBlockRows) {
    const int64_t end = first + kBlockRows < g.rows ? first + kBlockRows : g.rows;
    int64_t count = 0, entries = 0;
    for (int64_t i = 0; i < lists.count; i += kLanes) {
      for (uint32_t bits = below(g.head + i, end); bits; bits &= bits - 1) {
        const int64_t list = i + __builtin_ctz(bits), begin = g.cursor[list], stop = lists.begin[list + 1];
        const int64_t found = count_below(lists.row + begin, stop - begin, end);
        g.cursor[list] = begin + found;
        g.head[list] = begin + found < stop ? lists.row[begin + found] : kNone;
        g.pieces[count++] = {list, begin, found};
        entries += found;
      }
    }
    if (count == 0) continue;
    const Pieces pieces = {g.pieces, count};
    const T* from = static_cast<const T*>(g.in) + first * g.in_stride;
    const bool copied = !kIsFloat || entries > end - first;  // a row that is added once is not worth a copy
    if (copied) copy_rows(from, g.in_stride, end - first, g.channels, g.block);
    Ahead ahead = rows_ahead<T>(g, end);
    const int64_t spans = (g.channels + kSpanChannels - 1) / kSpanChannels;
    const int64_t lines = (ahead.rows * ((ahead.width + 63) / 64) + count * spans - 1) / (count * spans);
    for (int64_t c = 0; c < g.channels; c += kSpanChannels) {
      const int64_t channels = c + kSpanChannels < g.channels ? kSpanChannels : g.channels - c;
      // Row 0 of all rows, which may lie before those held.
      const float* in = copied ? g.block + c * kBlockRows - first * kSpanChannels
                               : reinterpret_cast<const float*>(from) - first * g.in_stride + c;
      const int64_t stride = copied ? kSpanChannels : g.in_stride;
      add_span(pieces, lists, in, stride, channels, sums + c, sums_stride, ahead, lines);
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

int64_t count_set(const uint8_t* bytes, int64_t count) {
  int64_t found = 0, i = 0;
  for (; i + kBytes <= count; i += kBytes) found += __builtin_popcountll(set_bits(bytes + i));
  return found + __builtin_popcountll(last_bits(bytes + i, count - i));
}

OVSDINO_INLINE int32_t* list_bits(uint64_t bits, int32_t first, int32_t* to) {
#if defined(__AVX512F__)
  const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; bits; bits >>= 16, first += 16) {
    const auto mask = static_cast<__mmask16>(bits);
    const int found = __builtin_popcount(mask);
    // Not the compressing store, which is microcoded on Zen 4, and not a whole one: the next list is another thread's.
    const __m512i packed = _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(_mm512_set1_epi32(first), steps));
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << found) - 1u), packed);
    to += found;
  }
#else
  for (; bits; bits &= bits - 1) *to++ = first + __builtin_ctzll(bits);
#endif
  return to;
}

void list_set(const uint8_t* bytes, int64_t count, int32_t first, int32_t* places) {
  int64_t i = 0;
  for (; i + kBytes <= count; i += kBytes)
    places = list_bits(set_bits(bytes + i), first + static_cast<int32_t>(i), places);
  list_bits(last_bits(bytes + i, count - i), first + static_cast<int32_t>(i), places);
}

}  // namespace

const GatherKernel kGather = {run, count_set, list_set};

}  // namespace OVSDINO_ISA
}  // namespace ovsdino
