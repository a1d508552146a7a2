// mask_pool, upsample_argmax and guided_upsample as CUDA would run them, block by block, on emulated threads. Called
// through ctypes.
#include <exception>

#include "ovsdino/detail/block.h"
#include "ovsdino/detail/guided_block.h"
#include "ovsdino/detail/mask_pool_block.h"
#include "ovsdino/detail/upsample_block.h"
#include "simt.h"

namespace {

// The interface of detail/block.h on emulated lanes.
template <int32_t kThreadCount>
class EmulatedBlock {
 public:
  static constexpr int32_t kThreads = kThreadCount, kLanes = 32, kWarps = kThreads / kLanes;
  explicit EmulatedBlock(simt::Lanes* lanes) : lanes_(lanes) {}
  int32_t index() const { return lanes_->index(); }
  int32_t lane() const { return index() % kLanes; }
  int32_t warp() const { return index() / kLanes; }
  void sync() const { lanes_->sync(); }
  uint32_t ballot(bool x) const { return lanes_->ballot(x); }
  template <typename V>
  V load_global(const V* from) const {
    return lanes_->load_global(from);
  }
  template <typename V>
  void store_global(V* to, V value) const {
    lanes_->store_global(to, value);
  }
  template <typename V>
  V load_shared(uint32_t offset) const {
    return lanes_->load_shared<V>(offset);
  }
  template <typename V>
  void store_shared(uint32_t offset, V value) const {
    lanes_->store_shared(offset, value);
  }

 private:
  simt::Lanes* lanes_;
};

using PoolBlock = EmulatedBlock<ovsdino::kPoolThreads>;
using UpsampleBlock = EmulatedBlock<ovsdino::kUpsampleThreads>;

template <typename Body>
void run_blocks(int64_t count, uint32_t shared, int32_t threads, const simt::Global& memory,
                const simt::Options& options, simt::Report* report, const Body& body) {
  for (int64_t block = 0; block < count; ++block) {
    simt::Options here = options;
    here.seed += static_cast<uint32_t>(block);
    simt::Block lanes(threads, shared, memory, here, report);
    lanes.run([&](simt::Lanes& lane) { body(block, lane); });
  }
}

int64_t size_of(ovsdino::DType dtype) {
  if (dtype == ovsdino::DType::kUint8) return 1;
  return dtype == ovsdino::DType::kFloat32 || dtype == ovsdino::DType::kInt32 ? 4 : 2;
}

template <typename T, bool kSoft>
void pool(const ovsdino::MaskPool& op, const simt::Options& options, simt::Report* report) {
  simt::Global memory;
  const int64_t element = size_of(op.features_dtype);
  memory.allow(op.features,
               element * ((op.batch - 1) * op.features_stride_b + (op.tokens - 1) * op.features_stride_n + op.channels),
               false);
  memory.allow(op.masks,
               size_of(op.masks_dtype) * ((op.batch - 1) * op.masks_stride_b + (op.mask_count - 1) * op.masks_stride_m +
                                          (op.tokens - 1) * op.masks_stride_n + 1),
               false);
  memory.allow(op.means, element * op.batch * op.mask_count * op.channels, true);
  memory.allow(op.areas, 4 * op.batch * op.mask_count, true);
  const int64_t jobs = op.batch * op.mask_count * ovsdino::pool_jobs(op, PoolBlock::kLanes, PoolBlock::kWarps);
  run_blocks(jobs, ovsdino::PoolLayout<PoolBlock, kSoft>::kBytes, PoolBlock::kThreads, memory, options, report,
             [&](int64_t job, simt::Lanes& lane) { ovsdino::mask_pool_block<T, kSoft>(op, job, PoolBlock(&lane)); });
}

template <typename T>
void pool(const ovsdino::MaskPool& op, const simt::Options& options, simt::Report* report) {
  op.masks_dtype == ovsdino::DType::kFloat32 ? pool<T, true>(op, options, report) : pool<T, false>(op, options, report);
}

template <typename T, typename Label>
void upsample(const ovsdino::UpsampleArgmax& op, const simt::Options& options, simt::Report* report) {
  simt::Global memory;
  const int64_t last = (op.batch - 1) * op.stride_b + (op.classes - 1) * op.stride_k + (op.in_h - 1) * op.stride_y +
                       (op.in_w - 1) * op.stride_x;
  memory.allow(op.logits, size_of(op.logits_dtype) * (last + 1), false);
  const int64_t pixels = op.batch * op.out_h * op.out_w;
  memory.allow(op.labels, size_of(op.labels_dtype) * pixels, true);
  if (op.confidence) memory.allow(op.confidence, 4 * pixels, true);
  const int64_t lines = op.batch * op.in_h;
  if (ovsdino::few_pixels(op)) {
    const int64_t strips = lines * ovsdino::strips_of_row(op, UpsampleBlock::kLanes);
    const int64_t blocks = (strips + UpsampleBlock::kWarps - 1) / UpsampleBlock::kWarps;
    run_blocks(blocks, 0, UpsampleBlock::kThreads, memory, options, report, [&](int64_t index, simt::Lanes& lane) {
      const UpsampleBlock block(&lane);
      const int64_t strip = index * UpsampleBlock::kWarps + block.warp();
      if (strip < strips) ovsdino::upsample_strip<T, Label>(op, strip, block);
    });
    return;
  }
  const int64_t tiles = lines * ovsdino::tiles_of_row(op, UpsampleBlock::kLanes);
  run_blocks(
      tiles, ovsdino::TileLayout<UpsampleBlock>::kBytes, UpsampleBlock::kThreads, memory, options, report,
      [&](int64_t tile, simt::Lanes& lane) { ovsdino::upsample_tile<T, Label>(op, tile, UpsampleBlock(&lane)); });
}

void allow(const ovsdino::GuidedUpsample::View& view, const int64_t (&size)[4], simt::Global* memory) {
  const int64_t last = (size[0] - 1) * view.stride_b + (size[1] - 1) * view.stride_c + (size[2] - 1) * view.stride_y +
                       (size[3] - 1) * view.stride_x;
  memory->allow(view.data, size_of(view.dtype) * (last + 1), false);
}

template <typename T>
void guided(const ovsdino::GuidedUpsample& op, const simt::Options& options, simt::Report* report) {
  simt::Global memory;
  allow(op.logits, {op.batch, op.classes, op.h, op.w}, &memory);
  allow(op.guide_lo, {op.batch, op.channels, op.h, op.w}, &memory);
  allow(op.guide_hi, {op.batch, op.channels, op.h * op.scale, op.w * op.scale}, &memory);
  memory.allow(op.out, size_of(op.logits.dtype) * op.batch * op.classes * op.h * op.w * op.scale * op.scale, true);
  const int64_t blocks = (ovsdino::guided_jobs(op) + ovsdino::kGuidedWarps - 1) / ovsdino::kGuidedWarps;
  run_blocks(blocks, ovsdino::kGuidedShared, 32 * ovsdino::kGuidedWarps, memory, options, report,
             [&](int64_t block, simt::Lanes& lane) { ovsdino::guided_block<T>(op, block, lane); });
}

// Returns whether the arguments pass the check; if not, first_fault says why.
template <typename Check>
bool passes(const Check& check, simt::Report* report) {
  *report = simt::Report{};
  try {
    check();
  } catch (const std::exception& error) {
    std::strncpy(report->first_fault, error.what(), sizeof(report->first_fault) - 1);
    return false;
  }
  return true;
}

}  // namespace

extern "C" bool simt_mask_pool(const ovsdino::MaskPool* op, const simt::Options* options, simt::Report* report) {
  if (!passes([&] { ovsdino::check_mask_pool(*op, false); }, report)) return false;
  if (op->features_dtype == ovsdino::DType::kFloat32) pool<float>(*op, *options, report);
  if (op->features_dtype == ovsdino::DType::kFloat16) pool<ovsdino::Half>(*op, *options, report);
  if (op->features_dtype == ovsdino::DType::kBFloat16) pool<ovsdino::BFloat16>(*op, *options, report);
  return true;
}

extern "C" bool simt_upsample_argmax(const ovsdino::UpsampleArgmax* op, const simt::Options* options,
                                     simt::Report* report) {
  if (!passes([&] { ovsdino::check_upsample_argmax(*op); }, report)) return false;
  if (op->logits_dtype == ovsdino::DType::kFloat32) upsample<float, uint8_t>(*op, *options, report);
  if (op->logits_dtype == ovsdino::DType::kFloat16) upsample<ovsdino::Half, uint8_t>(*op, *options, report);
  if (op->logits_dtype == ovsdino::DType::kBFloat16) upsample<ovsdino::BFloat16, uint8_t>(*op, *options, report);
  return true;
}

extern "C" bool simt_guided_upsample(const ovsdino::GuidedUpsample* op, const simt::Options* options,
                                     simt::Report* report) {
  if (!passes([&] { ovsdino::check_guided(*op), ovsdino::check_guided_layout(*op); }, report)) return false;
  if (op->logits.dtype == ovsdino::DType::kFloat16) guided<ovsdino::Half>(*op, *options, report);
  if (op->logits.dtype == ovsdino::DType::kBFloat16) guided<ovsdino::BFloat16>(*op, *options, report);
  return true;
}
