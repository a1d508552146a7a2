// upsample_argmax on the CPU: memory, threads and the order of the strips; the arithmetic is in upsample_kernel.cpp.
#include "ovsdino/upsample_argmax.h"

#include <memory>
#include <stdexcept>
#include <vector>

#include "isa.h"
#include "ovsdino/detail/upsample_cell.h"
#include "parallel.h"
#include "upsample_kernel.h"

namespace ovsdino {
namespace {

// Below this many output pixels times classes a thread costs more than it brings (2^18: about 50 us of work).
constexpr int64_t kWorkPerThread = int64_t{1} << 18;

const UpsampleKernel& kernel() {
#if defined(OVSDINO_X86_VARIANTS)
  if (active_isa() == Isa::kAvx512) return avx512::kUpsample;
  if (active_isa() == Isa::kAvx2) return avx2::kUpsample;
#endif
  return baseline::kUpsample;
}

int64_t element_size(DType dtype) {
  if (dtype == DType::kUint8) return 1;
  return dtype == DType::kFloat32 || dtype == DType::kInt32 ? 4 : 2;
}

struct RowRange {
  int32_t begin, end;  // output rows whose taps are one pair of coarse rows
};

struct Plan {
  std::vector<Tap> x_taps, y_taps;
  std::vector<float> x_w0, x_w1;
  std::vector<int32_t> x_i0, first_x;
  std::vector<RowRange> strips;
  int64_t pitch, out_pitch;
};

Plan make_plan(const UpsampleArgmax& op) {
  const auto in_h = static_cast<int32_t>(op.in_h), in_w = static_cast<int32_t>(op.in_w);
  const auto out_h = static_cast<int32_t>(op.out_h), out_w = static_cast<int32_t>(op.out_w);
  Plan plan;
  for (int32_t x = 0; x < out_w; ++x) plan.x_taps.push_back(bilinear_tap(x, in_w, out_w));
  for (int32_t y = 0; y < out_h; ++y) plan.y_taps.push_back(bilinear_tap(y, in_h, out_h));
  plan.x_w0.assign(static_cast<size_t>(out_w + kPad), 0.0f);
  plan.x_w1.assign(static_cast<size_t>(out_w + kPad), 0.0f);
  plan.x_i0.assign(static_cast<size_t>(out_w + kPad), 0);
  plan.first_x.assign(static_cast<size_t>(in_w + 1), out_w);
  for (int32_t x = out_w - 1; x >= 0; --x) {
    const Tap& tap = plan.x_taps[x];
    plan.x_w0[x] = tap.w0;
    plan.x_w1[x] = tap.w1;
    plan.x_i0[x] = tap.i0;
    plan.first_x[tap.i0] = x;
  }
  for (int32_t cell = in_w - 1; cell >= 0; --cell) {
    if (plan.first_x[cell] > plan.first_x[cell + 1]) plan.first_x[cell] = plan.first_x[cell + 1];
  }
  for (int32_t y = 0; y < out_h;) {
    int32_t end = y + 1;
    while (end < out_h && end - y < kMaxRows && plan.y_taps[end].i0 == plan.y_taps[y].i0) ++end;
    plan.strips.push_back({y, end});
    y = end;
  }
  plan.pitch = (op.in_w + kPad) / kPad * kPad + kPad;
  plan.out_pitch = op.out_w + kPad;
  return plan;
}

// The buffers of one thread; the two coarse rows are kept from strip to strip.
class StripRunner {
 public:
  StripRunner(const UpsampleArgmax& op, const Plan& plan)
      : op_(op),
        plan_(plan),
        coarse_(new float[2 * (op.classes + 1) * plan.pitch]),
        labels_(new int32_t[kMaxRows * plan.out_pitch]),
        confidence_(op.confidence || op.has_threshold ? new float[kMaxRows * plan.out_pitch] : nullptr),
        candidates_(new int32_t[(kPad + kCandidateLists) * (op.classes + kPad)]),
        survivors_(new float[(op.classes + 2 * kPad) * kSurvivorFloats]) {
    for (int slot = 0; slot < 2; ++slot) {
      float* base = coarse_.get() + slot * (op.classes + 1) * plan.pitch;
      rows_[slot] = {base + plan.pitch, base};
    }
  }

  void run(int64_t batch, const RowRange& range) {
    const Tap& tap = plan_.y_taps[range.begin];
    const int top = fetch(batch, tap.i0, -1), bottom = fetch(batch, tap.i1, top);
    Strip strip;
    strip.top = rows_[top];
    strip.bottom = rows_[bottom];
    strip.pitch = plan_.pitch;
    strip.classes = static_cast<int32_t>(op_.classes);
    strip.in_w = static_cast<int32_t>(op_.in_w);
    strip.out_w = static_cast<int32_t>(op_.out_w);
    strip.rows = range.end - range.begin;
    strip.y_taps = plan_.y_taps.data() + range.begin;
    strip.x_taps = plan_.x_taps.data();
    strip.x_w0 = plan_.x_w0.data();
    strip.x_w1 = plan_.x_w1.data();
    strip.x_i0 = plan_.x_i0.data();
    strip.first_x = plan_.first_x.data();
    strip.want_confidence = op_.confidence || op_.has_threshold;
    strip.has_threshold = op_.has_threshold;
    strip.threshold = op_.threshold;
    strip.scratch_labels = labels_.get();
    strip.scratch_confidence = confidence_.get();
    strip.out_pitch = plan_.out_pitch;
    strip.candidates = candidates_.get();
    strip.survivors = survivors_.get();
    kernel().run_strip(strip);
    store(batch, range);
  }

 private:
  // The slot that holds coarse row y, loaded into one that is not `keep` if need be.
  int fetch(int64_t batch, int64_t y, int keep) {
    const int64_t id = batch * op_.in_h + y;
    for (int slot = 0; slot < 2; ++slot) {
      if (held_[slot] == id) return slot;
    }
    // The row above the wanted one is the likelier to be asked for again.
    const int slot = keep >= 0 ? 1 - keep : (held_[0] == id + 1 ? 1 : 0);
    const char* data = static_cast<const char*>(op_.logits) +
                       (batch * op_.stride_b + y * op_.stride_y) * element_size(op_.logits_dtype);
    kernel().load_row({data, op_.logits_dtype, op_.stride_k, op_.stride_x, static_cast<int32_t>(op_.classes),
                       static_cast<int32_t>(op_.in_w), plan_.pitch},
                      rows_[slot]);
    held_[slot] = id;
    return slot;
  }

  void store(int64_t batch, const RowRange& range) const {
    for (int32_t y = range.begin; y < range.end; ++y) {
      const int64_t to = (batch * op_.out_h + y) * op_.out_w;
      const int64_t from = (y - range.begin) * plan_.out_pitch;
      char* labels = static_cast<char*>(op_.labels) + to * element_size(op_.labels_dtype);
      kernel().store_labels(labels_.get() + from, labels, op_.labels_dtype, op_.out_w);
      if (op_.confidence) {
        memcpy(op_.confidence + to, confidence_.get() + from, static_cast<size_t>(op_.out_w) * sizeof(float));
      }
    }
  }

  const UpsampleArgmax& op_;
  const Plan& plan_;
  // Not vectors: each is written before it is read, and clearing them would cost as much as a strip.
  std::unique_ptr<float[]> coarse_;
  std::unique_ptr<int32_t[]> labels_;
  std::unique_ptr<float[]> confidence_;
  std::unique_ptr<int32_t[]> candidates_;
  std::unique_ptr<float[]> survivors_;
  CoarseRow rows_[2];
  int64_t held_[2] = {-1, -1};
};

}  // namespace

void upsample_argmax_cpu(const UpsampleArgmax& op, int threads) {
  check_upsample_argmax(op);
  if (op.batch == 0) return;
  const Plan plan = make_plan(op);
  const auto strips = static_cast<int64_t>(plan.strips.size());
  const int64_t work = op.batch * op.out_h * op.out_w * op.classes;
  if (threads > work / kWorkPerThread) threads = static_cast<int>(work / kWorkPerThread);
  // Ranges of a few strips, so that a coarse row is mostly loaded once, yet threads end together.
  const int64_t grain = op.batch * strips / (8 * (threads > 0 ? threads : 1));
  parallel_for(op.batch * strips, grain, threads, [&](int64_t begin, int64_t end) {
    StripRunner runner(op, plan);
    for (int64_t i = begin; i < end; ++i) runner.run(i / strips, plan.strips[static_cast<size_t>(i % strips)]);
  });
}

}  // namespace ovsdino
