// mask_pool on the CPU. SAM's masks hold a few per cent of the tokens: each mask becomes a list of its tokens, and only
// those tokens' features are read; a dense product reads them all. The inner sums are in gather_kernel.cpp.
#include "ovsdino/mask_pool.h"

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

// Calls visit(token, weight) for the tokens of non-zero weight, in order.
template <typename Visit>
void for_each_token(const MaskPool& op, const void* row, const Visit& visit) {
  for (int64_t n = 0; n < op.tokens; ++n) {
    const float weight = mask_weight(row, op.masks_dtype, op.masks_stride_n, n);
    if (weight != 0.0f) visit(n, weight);
  }
}

// The tokens of masks (or, transposed, the masks of tokens); lists of several images follow one another.
struct TokenLists {
  std::vector<int64_t> begin;
  std::unique_ptr<int32_t[]> token;
  std::unique_ptr<float[]> weight;  // soft masks only

  RowLists view(int64_t first, int64_t count) const { return {count, begin.data() + first, token.get(), weight.get()}; }
};

const void* row_of(const MaskPool& op, int64_t list) {
  const int64_t batch = list / op.mask_count, mask = list % op.mask_count;
  return mask_row(op.masks, op.masks_dtype, batch * op.masks_stride_b + mask * op.masks_stride_m);
}

// Writes the areas and makes the lists of all images' masks; none (an empty `begin`) if denser than max_density.
TokenLists read_masks(const MaskPool& op, double max_density, int threads) {
  constexpr int64_t kGrain = 16;
  const int64_t count = op.batch * op.mask_count;
  if (threads > count * op.tokens / kWorkPerThread) threads = static_cast<int>(count * op.tokens / kWorkPerThread);
  const bool bytes = op.masks_dtype == DType::kUint8 && op.masks_stride_n == 1;
  TokenLists lists;
  std::vector<int64_t> begin(static_cast<size_t>(count) + 1, 0);
  parallel_for(count, kGrain, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      int64_t tokens = 0;
      double area = 0.0;
      if (bytes) {
        tokens = kernel().count_set(static_cast<const uint8_t*>(row_of(op, i)), op.tokens);
        area = static_cast<double>(tokens);
      } else {
        for_each_token(op, row_of(op, i), [&](int64_t, float weight) {
          ++tokens;
          area += weight;
        });
      }
      begin[i + 1] = tokens;
      op.areas[i] = static_cast<float>(area);
    }
  });
  for (int64_t i = 0; i < count; ++i) begin[i + 1] += begin[i];
  const int64_t total = begin.back();
  if (static_cast<double>(total) > max_density * static_cast<double>(count * op.tokens)) return lists;
  const bool soft = op.masks_dtype == DType::kFloat32;
  lists.token.reset(new int32_t[static_cast<size_t>(total + kListPad)]);
  if (soft) lists.weight.reset(new float[static_cast<size_t>(total)]);
  parallel_for(count, kGrain, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      int64_t at = begin[i];
      if (bytes) {
        kernel().list_set(static_cast<const uint8_t*>(row_of(op, i)), op.tokens, 0, lists.token.get() + at);
        continue;
      }
      for_each_token(op, row_of(op, i), [&](int64_t n, float weight) {
        lists.token[at] = static_cast<int32_t>(n);
        if (soft) lists.weight[at] = weight;
        ++at;
      });
    }
  });
  lists.begin = std::move(begin);
  return lists;
}

// For each token of one image the masks that hold it: the same entries, sorted by token.
TokenLists transpose(const RowLists& lists, int64_t tokens) {
  TokenLists turned;
  turned.begin.assign(static_cast<size_t>(tokens) + 1, 0);
  const int64_t first = lists.begin[0], total = lists.begin[lists.count] - first;
  for (int64_t e = first; e < first + total; ++e) ++turned.begin[lists.row[e] + 1];
  for (int64_t n = 0; n < tokens; ++n) turned.begin[n + 1] += turned.begin[n];
  turned.token.reset(new int32_t[static_cast<size_t>(total + kListPad)]);
  if (lists.weight) turned.weight.reset(new float[static_cast<size_t>(total)]);
  std::vector<int64_t> next(turned.begin.begin(), turned.begin.end() - 1);
  for (int64_t m = 0; m < lists.count; ++m) {
    for (int64_t e = lists.begin[m]; e < lists.begin[m + 1]; ++e) {
      const int64_t to = next[lists.row[e]]++;
      turned.token[to] = static_cast<int32_t>(m);
      if (lists.weight) turned.weight[to] = lists.weight[e];
    }
  }
  return turned;
}

// Runs `all` (pointers for channel 0, no scratch yet) with its channels split over threads.
void gather_channels(const Gather& all, int threads) {
  const int64_t work = (all.lists.begin[all.lists.count] - all.lists.begin[0]) * all.channels;
  if (threads > work / kWorkPerThread) threads = static_cast<int>(work / kWorkPerThread);
  threads = threads < 1 ? 1 : threads;
  const int64_t spans = (all.channels + kChannelGrain - 1) / kChannelGrain;
  const int64_t grain = (spans + threads - 1) / threads;
  parallel_for(spans, grain, threads, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kChannelGrain;
    Gather part = all;
    part.channels = (end * kChannelGrain < all.channels ? end * kChannelGrain : all.channels) - first;
    part.in = static_cast<const char*>(all.in) + first * element_size(all.dtype);
    part.out = static_cast<char*>(all.out) + first * element_size(all.dtype);
    const std::unique_ptr<int64_t[]> cursor(new int64_t[static_cast<size_t>(all.lists.count)]);
    const std::unique_ptr<int32_t[]> head(new int32_t[static_cast<size_t>(all.lists.count + kListPad)]);
    const std::unique_ptr<Piece[]> pieces(new Piece[static_cast<size_t>(all.lists.count)]);
    struct alignas(64) Line {  // a vector across two lines of the cache is loaded in two cycles
      float values[16];
    };
    const int64_t held = (part.channels + kMostSpanChannels - 1) / kMostSpanChannels * kMostSpanChannels;
    const std::unique_ptr<Line[]> block(new Line[static_cast<size_t>(kBlockRows * held / 16)]);
    std::unique_ptr<float[]> sums;
    if (all.dtype != DType::kFloat32) sums.reset(new float[static_cast<size_t>(all.lists.count * part.channels)]);
    part.cursor = cursor.get();
    part.head = head.get();
    part.pieces = pieces.get();
    part.sums = sums.get();
    part.block = reinterpret_cast<float*>(block.get());
    kernel().run(part);
  });
}

}  // namespace

bool mask_pool_cpu(const MaskPool& op, double max_density, int threads) {
  check_mask_pool(op, false);
  const TokenLists lists = read_masks(op, max_density, threads);
  if (lists.begin.empty()) return false;
  std::vector<float> divisor(static_cast<size_t>(op.mask_count));
  for (int64_t b = 0; b < op.batch; ++b) {
    for (int64_t m = 0; m < op.mask_count; ++m) {
      const float area = op.areas[b * op.mask_count + m];
      divisor[m] = area == 0.0f ? std::numeric_limits<float>::infinity() : area;
    }
    Gather gather{};
    gather.lists = lists.view(b * op.mask_count, op.mask_count);
    gather.in = static_cast<const char*>(op.features) + b * op.features_stride_b * element_size(op.features_dtype);
    gather.dtype = op.features_dtype;
    gather.rows = op.tokens;
    gather.in_stride = op.features_stride_n;
    gather.channels = op.channels;
    gather.out = static_cast<char*>(op.means) + b * op.mask_count * op.channels * element_size(op.features_dtype);
    gather.out_stride = op.channels;
    gather.divisor = divisor.data();
    gather_channels(gather, threads);
  }
  return true;
}

bool mask_pool_backward_cpu(const MaskPool& op, double max_density, int threads) {
  check_mask_pool(op, true);
  if (op.batch > 0 && op.mask_count > 0 && !op.areas) throw std::invalid_argument("mask_pool: areas has no memory");
  const TokenLists lists = read_masks(op, max_density, threads);
  if (lists.begin.empty()) return false;
  for (int64_t b = 0; b < op.batch; ++b) {
    const TokenLists turned = transpose(lists.view(b * op.mask_count, op.mask_count), op.tokens);
    Gather gather{};
    gather.lists = turned.view(0, op.tokens);
    gather.in = static_cast<const float*>(op.means) + b * op.mask_count * op.channels;
    gather.dtype = DType::kFloat32;
    gather.rows = op.mask_count;
    gather.in_stride = op.channels;
    gather.channels = op.channels;
    gather.out = const_cast<float*>(static_cast<const float*>(op.features)) + b * op.tokens * op.channels;
    gather.out_stride = op.channels;
    gather_channels(gather, threads);
  }
  return true;
}

}  // namespace ovsdino
