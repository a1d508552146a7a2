// mask_pool on the CPU. SAM's masks hold a few per cent of the tokens: each mask becomes a bit a token, and only the
// set tokens' features are added; a dense product adds them all. The inner sums are in gather_kernel.cpp.
#include "ovsdino/mask_pool.h"

#include <atomic>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "gather_kernel.h"
#include "isa.h"
#include "ovsdino/detail/mask_tokens.h"
#include "parallel.h"

namespace ovsdino {
namespace {

// Channels are split over threads in multiples of this (whole spans of the widest vectors).
constexpr int64_t kChannelGrain = 128;

// Sets whose sums of that many channels, 256 KB of float32, are a thread's share of a level 2 cache.
constexpr int64_t kTileSets = 512;
static_assert(kTileSets % kSetGroup == 0, "the words of a tile begin a group");

// Below this many additions a thread costs more than it brings.
constexpr int64_t kWorkPerThread = int64_t{1} << 19;

const GatherKernel& kernel() {
#if defined(OVSDINO_X86_VARIANTS)
  if (active_isa() == Isa::kAvx512) return avx512::kGather;
  if (active_isa() == Isa::kAvx2) return avx2::kGather;
#endif
  return baseline::kGather;
}

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The tokens of the masks of all images as bits, an eighth of the masks' bytes.
struct MaskWords {
  int64_t blocks, stride;  // of one image: blocks of tokens, and words of a block
  std::unique_ptr<uint32_t[]> words;
  int64_t set;  // bits, of all images

  const uint32_t* of(int64_t batch) const { return words.get() + batch * blocks * stride; }
};

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Words from one block of rows to the next, for `count` sets: an odd number of lines of the cache, as those of one
// group of sets would else fall on a few of its sets of lines (read_masks writes one group's words of all blocks).
int64_t word_stride(int64_t count) { return (round_up(count, kSetGroup) / kSetGroup | 1) * kSetGroup; }

const void* row_of(const MaskPool& op, int64_t batch, int64_t mask) {
  return mask_row(op.masks, op.masks_dtype, batch * op.masks_stride_b + mask * op.masks_stride_m);
}

// Sets the bits of one mask, and returns how many; adds its weights to `area`.
int64_t read_weights(const MaskPool& op, const void* row, uint32_t* words, int64_t stride, double* area) {
  int64_t found = 0;
  for (int64_t n = 0; n < op.tokens; ++n) {
    const float weight = mask_weight(row, op.masks_dtype, op.masks_stride_n, n);
    if (weight == 0.0f) continue;
    words[n / kBlockRows * stride] |= uint32_t{1} << n % kBlockRows;
    ++found;
    *area += weight;
  }
  return found;
}

// Writes the areas and the words of all masks; no words if the masks are denser than max_density.
MaskWords read_masks(const MaskPool& op, double max_density, int threads) {
  const int64_t work = op.batch * op.mask_count * op.tokens;
  if (threads > work / kWorkPerThread) threads = static_cast<int>(work / kWorkPerThread);
  const bool bytes = op.masks_dtype == DType::kUint8 && op.masks_stride_n == 1;
  MaskWords masks{(op.tokens + kBlockRows - 1) / kBlockRows, word_stride(op.mask_count), nullptr, 0};
  masks.words.reset(new uint32_t[static_cast<size_t>(op.batch * masks.blocks * masks.stride)]());
  std::atomic<int64_t> total{0};
  // Groups of masks: no two threads write to one line of the words.
  const int64_t groups = round_up(op.mask_count, kSetGroup) / kSetGroup;
  parallel_for(op.batch * groups, 1, threads, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t group = begin; group < end; ++group) {
      const int64_t batch = group / groups, first = group % groups * kSetGroup;
      uint32_t* words = masks.words.get() + batch * masks.blocks * masks.stride;
      for (int64_t m = first; m < first + kSetGroup && m < op.mask_count; ++m) {
        const void* row = row_of(op, batch, m);
        double area = 0.0;
        int64_t tokens = 0;
        if (bytes) {
          tokens = kernel().read_set(static_cast<const uint8_t*>(row), op.tokens, words + m, masks.stride);
          area = static_cast<double>(tokens);
        } else {
          tokens = read_weights(op, row, words + m, masks.stride, &area);
        }
        op.areas[batch * op.mask_count + m] = static_cast<float>(area);
        found += tokens;
      }
    }
    total.fetch_add(found);
  });
  masks.set = total.load();
  if (static_cast<double>(masks.set) > max_density * static_cast<double>(work)) masks.words.reset();
  return masks;
}

// For each token of one image the masks that hold it: a word holds 32 masks, and tokens follow one another.
MaskWords transpose(const uint32_t* words, int64_t stride, int64_t mask_count, int64_t tokens) {
  MaskWords turned{(mask_count + kBlockRows - 1) / kBlockRows, word_stride(tokens), nullptr, 0};
  turned.words.reset(new uint32_t[static_cast<size_t>(turned.blocks * turned.stride)]());
  for (int64_t first = 0; first < tokens; first += kBlockRows, words += stride) {
    for (int64_t m = 0; m < mask_count; ++m) {
      uint32_t* to = turned.words.get() + m / kBlockRows * turned.stride + first;
      for (uint32_t left = words[m]; left; left &= left - 1) {
        to[__builtin_ctz(left)] |= uint32_t{1} << m % kBlockRows;
      }
    }
  }
  return turned;
}

// Row sets of one image: masks of tokens or, turned, tokens of masks.
RowSets row_sets(const MaskPool& op, int64_t batch, const uint32_t* words, int64_t stride, bool turned) {
  const bool soft = op.masks_dtype == DType::kFloat32;
  const float* weight = soft ? static_cast<const float*>(row_of(op, batch, 0)) : nullptr;
  if (turned) return {op.tokens, words, stride, weight, op.masks_stride_n, op.masks_stride_m};
  return {op.mask_count, words, stride, weight, op.masks_stride_m, op.masks_stride_n};
}

// Runs `all` (pointers for channel 0 of set 0, no scratch yet) with its channels split over threads, and into tiles of
// sets whose sums stay in a level 2 cache: each is added to once a block of rows.
void gather_channels(const Gather& all, int64_t set, int threads) {
  const int64_t work = set * all.channels;
  if (threads > work / kWorkPerThread) threads = static_cast<int>(work / kWorkPerThread);
  threads = threads < 1 ? 1 : threads;
  const int64_t tiles = (all.sets.count + kTileSets - 1) / kTileSets;
  const int64_t spans = (all.channels + kChannelGrain - 1) / kChannelGrain;
  // All of a thread's channels at once where the sets are one tile: the rows are then read in long runs.
  const int64_t grain = tiles > 1 ? 1 : (spans + threads - 1) / threads;
  parallel_for(spans, grain, threads, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kChannelGrain;
    Gather part = all;
    part.channels = (end * kChannelGrain < all.channels ? end * kChannelGrain : all.channels) - first;
    part.in = static_cast<const char*>(all.in) + first * element_size(all.dtype);
    const std::unique_ptr<Piece[]> pieces(new Piece[static_cast<size_t>(all.sets.count)]);
    struct alignas(64) Line {  // a vector across two lines of the cache is loaded in two cycles
      float values[16];
    };
    const std::unique_ptr<Line[]> block(new Line[kSlots * kMostSpanChannels / 16]);
    std::unique_ptr<float[]> sums;
    if (all.dtype != DType::kFloat32) sums.reset(new float[static_cast<size_t>(all.sets.count * part.channels)]);
    part.pieces = pieces.get();
    part.sums = sums.get();
    part.block = reinterpret_cast<float*>(block.get());
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t from = tile * kTileSets, left = all.sets.count - from;
      part.sets.count = left < kTileSets ? left : kTileSets;
      part.sets.words = all.sets.words + from;
      if (all.sets.weight) part.sets.weight = all.sets.weight + from * all.sets.set_stride;
      if (all.divisor) part.divisor = all.divisor + from;
      part.out = static_cast<char*>(all.out) + (from * all.out_stride + first) * element_size(all.dtype);
      kernel().run(part);
    }
  });
}

}  // namespace

bool mask_pool_cpu(const MaskPool& op, double max_density, int threads) {
  check_mask_pool(op, false);
  const MaskWords masks = read_masks(op, max_density, threads);
  if (!masks.words) return false;
  std::vector<float> divisor(static_cast<size_t>(op.mask_count));
  for (int64_t b = 0; b < op.batch; ++b) {
    for (int64_t m = 0; m < op.mask_count; ++m) {
      const float area = op.areas[b * op.mask_count + m];
      divisor[m] = area == 0.0f ? std::numeric_limits<float>::infinity() : area;
    }
    Gather gather{};
    gather.sets = row_sets(op, b, masks.of(b), masks.stride, false);
    gather.in = static_cast<const char*>(op.features) + b * op.features_stride_b * element_size(op.features_dtype);
    gather.dtype = op.features_dtype;
    gather.rows = op.tokens;
    gather.in_stride = op.features_stride_n;
    gather.channels = op.channels;
    gather.out = static_cast<char*>(op.means) + b * op.mask_count * op.channels * element_size(op.features_dtype);
    gather.out_stride = op.channels;
    gather.divisor = divisor.data();
    gather_channels(gather, masks.set / op.batch, threads);
  }
  return true;
}

bool mask_pool_backward_cpu(const MaskPool& op, double max_density, int threads) {
  check_mask_pool(op, true);
  if (op.batch > 0 && op.mask_count > 0 && !op.areas) throw std::invalid_argument("mask_pool: areas has no memory");
  const MaskWords masks = read_masks(op, max_density, threads);
  if (!masks.words) return false;
  for (int64_t b = 0; b < op.batch; ++b) {
    const MaskWords turned = transpose(masks.of(b), masks.stride, op.mask_count, op.tokens);
    Gather gather{};
    gather.sets = row_sets(op, b, turned.of(0), turned.stride, true);
    gather.in = static_cast<const float*>(op.means) + b * op.mask_count * op.channels;
    gather.dtype = DType::kFloat32;
    gather.rows = op.mask_count;
    gather.in_stride = op.channels;
    gather.channels = op.channels;
    gather.out = const_cast<float*>(static_cast<const float*>(op.features)) + b * op.tokens * op.channels;
    gather.out_stride = op.channels;
    gather_channels(gather, masks.set / op.batch, threads);
  }
  return true;
}

}  // namespace ovsdino
