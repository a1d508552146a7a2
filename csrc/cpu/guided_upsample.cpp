// guided_upsample on the CPU: memory, threads and the order of the bands; the arithmetic is in guided_kernel.cpp.
#include "ovsdino/guided_upsample.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <vector>

#include "guided_kernel.h"
#include "isa.h"
#include "ovsdino/detail/number.h"
#include "parallel.h"

namespace ovsdino {
namespace {

// Bytes of widened coarse rows a thread works on: its share of a level 2 cache (see mask_pool.cpp).
constexpr int64_t kTileBytes = 384 << 10;

// Below this many multiplications a thread costs more than it brings (2^21: about 50 us of work).
constexpr int64_t kWorkPerThread = int64_t{1} << 21;

const GuidedKernel& kernel() {
#if defined(OVSDINO_X86_VARIANTS)
  if (active_isa() == Isa::kAvx512) return avx512::kGuided;
  if (active_isa() == Isa::kAvx2) return avx2::kGuided;
#endif
  return baseline::kGuided;
}

using Floats = std::unique_ptr<float[]>;

Floats uninitialized(int64_t count) { return Floats(new float[static_cast<size_t>(count)]); }

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

int64_t round_up(int64_t x) { return (x + kFinePad - 1) / kFinePad * kFinePad; }

const char* at(const GuidedUpsample::View& view, int64_t batch, int64_t y, int64_t x) {
  return static_cast<const char*>(view.data) +
         (batch * view.stride_b + y * view.stride_y + x * view.stride_x) * element_size(view.dtype);
}

// What all tiles share.
struct Plan {
  int64_t fine_h, fine_w;
  int64_t tile_cells, tiles;
  std::vector<float> bias_x[kSide], bias_y;
  int threads;
};

Plan make_plan(const GuidedUpsample& op, int threads) {
  Plan plan;
  const int64_t s = op.scale;
  plan.fine_h = op.h * s;
  plan.fine_w = op.w * s;
  // A multiple of 16 cells, so that only the last tile ends within a vector.
  const int64_t column_bytes = kSide * (op.channels + 1 + op.classes) * s * 4;
  const int64_t fitting = (kTileBytes / column_bytes - 2 * kReach) / kFinePad * kFinePad;
  plan.tile_cells = std::min(std::max(fitting, kFinePad), round_up(op.w));
  plan.tiles = (op.w + plan.tile_cells - 1) / plan.tile_cells;
  for (std::vector<float>& bias : plan.bias_x) bias.assign(static_cast<size_t>(plan.fine_w + kFinePad), 0.0f);
  const auto offset = [&](int64_t phase, int64_t near) {
    return (static_cast<float>(phase) + 0.5f) / static_cast<float>(s) - 0.5f - static_cast<float>(near - kReach);
  };
  for (int64_t x = 0; x < plan.fine_w; ++x) {
    for (int64_t dx = 0; dx < kSide; ++dx) {
      const int64_t cell = x / s + dx - kReach;
      const float distance = offset(x % s, dx);
      plan.bias_x[dx][x] = cell >= 0 && cell < op.w ? -distance * distance : -INFINITY;
    }
  }
  for (int64_t y = 0; y < s; ++y) {
    for (int64_t dy = 0; dy < kSide; ++dy) plan.bias_y.push_back(-offset(y, dy) * offset(y, dy));
  }
  const int64_t work = op.batch * plan.fine_h * plan.fine_w * kNear * (op.channels + op.classes);
  plan.threads = static_cast<int>(std::max(std::min<int64_t>(threads, work / kWorkPerThread), int64_t{1}));
  return plan;
}

int32_t near_begin(int64_t row) { return static_cast<int32_t>(std::max<int64_t>(kReach - row, 0)); }
int32_t near_end(int64_t row, int64_t h) { return static_cast<int32_t>(std::min<int64_t>(kSide, h - row + kReach)); }

// The widened coarse rows of one tensor and tile, five at a time; rows are kept from band to band.
class CoarseRows {
 public:
  CoarseRows(const GuidedUpsample& op, const GuidedUpsample::View& view, int64_t channels, bool with_norm,
             int64_t first_cell, int64_t cells)
      : op_(op), view_(view), channels_(channels), first_(first_cell - kReach), cells_(cells + 2 * kReach) {
    pitch_ = round_up(cells_ * op.scale) + 2 * kFinePad;
    const int64_t planes = channels + (with_norm ? 1 : 0);
    data_.reset(new float[static_cast<size_t>(planes * kSide * pitch_)]());
    if (with_norm) norm_ = uninitialized(cells_);
  }

  Widened around(int64_t batch, int64_t row) {
    Widened widened{};
    widened.channel_pitch = kSide * pitch_;
    for (int64_t dy = 0; dy < kSide; ++dy) {
      const int64_t y = row + dy - kReach;
      if (y < 0 || y >= op_.h) continue;
      const int64_t slot = y % kSide, id = batch * op_.h + y;
      float* to = data_.get() + slot * pitch_;
      if (held_[slot] != id) load(batch, y, to);
      held_[slot] = id;
      widened.row[dy] = to;
    }
    return widened;
  }

 private:
  void load(int64_t batch, int64_t y, float* to) const {
    CoarseRun run{};
    run.data = at(view_, batch, y, 0);
    run.dtype = view_.dtype;
    run.stride_c = view_.stride_c;
    run.stride_x = view_.stride_x;
    run.channels = static_cast<int32_t>(channels_);
    run.width = static_cast<int32_t>(op_.w);
    run.first_cell = static_cast<int32_t>(first_);
    run.cells = static_cast<int32_t>(cells_);
    run.scale = static_cast<int32_t>(op_.scale);
    run.to = to;
    run.channel_pitch = kSide * pitch_;
    run.norm = norm_.get();
    kernel().load_coarse(run);
  }

  const GuidedUpsample& op_;
  const GuidedUpsample::View& view_;
  int64_t channels_, first_, cells_, pitch_;
  Floats data_, norm_;
  int64_t held_[kSide] = {-1, -1, -1, -1, -1};
};

// The columns of a tile: its coarse rows, and bands that lack only their fine values.
class Tile {
 public:
  Tile(const GuidedUpsample& op, const Plan& plan, int64_t tile)
      : op_(op),
        plan_(plan),
        first_cell_(tile * plan.tile_cells),
        cells_(std::min(plan.tile_cells, op.w - first_cell_)),
        low_(op, op.guide_lo, op.channels, true, first_cell_, cells_),
        logits_(op, op.logits, op.classes, false, first_cell_, cells_) {}

  int64_t first_column() const { return first_cell_ * op_.scale; }
  int64_t columns() const { return cells_ * op_.scale; }

  GuidedBand band(int64_t batch, int64_t row) {
    GuidedBand band{};
    band.scale = static_cast<int32_t>(op_.scale);
    band.channels = static_cast<int32_t>(op_.channels);
    band.classes = static_cast<int32_t>(op_.classes);
    band.width = static_cast<int32_t>(columns());
    band.near_begin = near_begin(row);
    band.near_end = near_end(row, op_.h);
    band.low = low_.around(batch, row);
    band.logits = logits_.around(batch, row);
    for (int32_t dx = 0; dx < kSide; ++dx) band.bias_x[dx] = plan_.bias_x[dx].data() + first_column();
    band.bias_y = plan_.bias_y.data();
    band.beta = *op_.beta;
    return band;
  }

 private:
  const GuidedUpsample& op_;
  const Plan& plan_;
  int64_t first_cell_, cells_;
  CoarseRows low_, logits_;
};

FineRows fine_rows(const GuidedUpsample::View& view, const void* data, int64_t channels, int64_t rows,
                   int64_t columns) {
  FineRows fine{};
  fine.data = data;
  fine.dtype = view.dtype;
  fine.stride_c = view.stride_c;
  fine.stride_y = view.stride_y;
  fine.stride_x = view.stride_x;
  fine.channels = static_cast<int32_t>(channels);
  fine.rows = static_cast<int32_t>(rows);
  fine.width = static_cast<int32_t>(columns);
  return fine;
}

void forward_tile(const GuidedUpsample& op, const Plan& plan, int64_t batch, int64_t index, int64_t begin,
                  int64_t end) {
  Tile tile(op, plan, index);
  const int64_t pitch = round_up(tile.columns());
  const Floats high(new float[static_cast<size_t>(op.channels * op.scale * pitch)]());
  for (int64_t row = begin; row < end; ++row) {
    GuidedBand band = tile.band(batch, row);
    const int64_t y = row * op.scale, x = tile.first_column();
    FineRows rows = fine_rows(op.guide_hi, at(op.guide_hi, batch, y, x), op.channels, op.scale, tile.columns());
    rows.to = high.get();
    rows.to_stride_c = op.scale * pitch;
    rows.to_stride_y = pitch;
    kernel().load_fine(rows);
    band.high = {high.get(), rows.to_stride_c, pitch};
    band.out = static_cast<char*>(op.out) +
               ((batch * op.classes * plan.fine_h + y) * plan.fine_w + x) * element_size(op.logits.dtype);
    band.out_dtype = op.logits.dtype;
    band.out_stride_c = plan.fine_h * plan.fine_w;
    band.out_stride_y = plan.fine_w;
    kernel().forward(band);
  }
}

// Calls body(batch, tile, first band, last band) for all bands, split over threads.
template <typename Body>
void for_each_band(const GuidedUpsample& op, const Plan& plan, int64_t first_batch, int64_t batches, const Body& body) {
  // Each chunk loads four coarse rows that its neighbours load too, so a few chunks a thread and not one a band.
  const int64_t columns = batches * plan.tiles;
  const int64_t wanted = plan.threads == 1 ? 1 : (2 * plan.threads + columns - 1) / columns;
  const int64_t chunk = std::max<int64_t>((op.h + wanted - 1) / wanted, 1);
  const int64_t chunks = (op.h + chunk - 1) / chunk;
  parallel_for(columns * chunks, 1, plan.threads, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t column = job / chunks, band = job % chunks * chunk;
      body(first_batch + column / plan.tiles, column % plan.tiles, band, std::min(band + chunk, op.h));
    }
  });
}

float value(const GuidedUpsample::View& view, int64_t batch, int64_t channel, int64_t y, int64_t x) {
  const char* data = at(view, batch, y, x) + channel * view.stride_c * element_size(view.dtype);
  if (view.dtype == DType::kFloat16) return to_float(*reinterpret_cast<const Half*>(data));
  if (view.dtype == DType::kBFloat16) return to_float(*reinterpret_cast<const BFloat16*>(data));
  return *reinterpret_cast<const float*>(data);
}

template <typename T, typename Value>
void store_row(void* to, const GuidedUpsample& op, int64_t channels, int64_t batch, int64_t row, const Value& value) {
  T* out = static_cast<T*>(to) + (batch * channels * op.h + row) * op.w;
  for (int64_t c = 0; c < channels; ++c, out += op.h * op.w) {
    for (int64_t x = 0; x < op.w; ++x) from_float(value(c, x), out + x);
  }
}

// Writes value(c, x) to one row of a contiguous (batch, channels, h, w) tensor.
template <typename Value>
void store(void* to, DType dtype, const GuidedUpsample& op, int64_t channels, int64_t batch, int64_t row,
           const Value& value) {
  if (dtype == DType::kFloat32) store_row<float>(to, op, channels, batch, row, value);
  if (dtype == DType::kFloat16) store_row<Half>(to, op, channels, batch, row, value);
  if (dtype == DType::kBFloat16) store_row<BFloat16>(to, op, channels, batch, row, value);
}

// One image's gradients; the buffers serve one image after the other.
class Backward {
 public:
  Backward(const GuidedUpsampleBackward& op, int threads)
      : op_(op), in_(op.forward), plan_(make_plan(op.forward, threads)), margin_(kReach * in_.scale) {
    pitch_ = round_up(plan_.fine_w) + 2 * margin_;
    weights_ = uninitialized(plan_.fine_h * kNear * pitch_);
    dscores_ = uninitialized(plan_.fine_h * kNear * pitch_);
    // Cleared: the margins stay zero.
    high_.reset(new float[static_cast<size_t>(in_.channels * plan_.fine_h * pitch_)]());
    grad_.reset(new float[static_cast<size_t>(in_.classes * plan_.fine_h * pitch_)]());
    grad_beta_.assign(static_cast<size_t>(plan_.tiles * in_.h), 0.0);
    for (float* factors : {weights_.get(), dscores_.get()}) clear_margins(factors);
  }

  void run(int64_t batch) {
    for_each_band(in_, plan_, batch, 1,
                  [&](int64_t, int64_t tile, int64_t begin, int64_t end) { fine_pixels(batch, tile, begin, end); });
    const int64_t grain = (in_.h + 4 * plan_.threads - 1) / (4 * plan_.threads);
    parallel_for(in_.h, grain, plan_.threads, [&](int64_t begin, int64_t end) { coarse_cells(batch, begin, end); });
  }

  // Of all images so far, in an order that no thread changes.
  double grad_beta() const {
    double sum = 0.0;
    for (const double part : grad_beta_) sum += part;
    return sum;
  }

 private:
  void clear_margins(float* factors) const {
    for (int64_t i = 0; i < plan_.fine_h * kNear; ++i) {
      float* row = factors + i * pitch_;
      std::fill(row, row + margin_, 0.0f);
      std::fill(row + margin_ + plan_.fine_w, row + pitch_, 0.0f);
    }
  }

  Fine load(const GuidedUpsample::View& view, int64_t channels, int64_t batch, int64_t y, const Tile& tile,
            float* planes) const {
    FineRows rows = fine_rows(view, at(view, batch, y, tile.first_column()), channels, in_.scale, tile.columns());
    rows.to = planes + y * pitch_ + margin_ + tile.first_column();
    rows.to_stride_c = plan_.fine_h * pitch_;
    rows.to_stride_y = pitch_;
    kernel().load_fine(rows);
    return {rows.to, rows.to_stride_c, pitch_};
  }

  void fine_pixels(int64_t batch, int64_t index, int64_t begin, int64_t end) {
    Tile tile(in_, plan_, index);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row * in_.scale, x = tile.first_column();
      GuidedBand band = tile.band(batch, row);
      band.high = load(in_.guide_hi, in_.channels, batch, y, tile, high_.get());
      band.grad = load(op_.grad, in_.classes, batch, y, tile, grad_.get());
      band.weights = weights_.get() + y * kNear * pitch_ + margin_ + x;
      band.dscores = dscores_.get() + y * kNear * pitch_ + margin_ + x;
      band.pitch = pitch_;
      band.grad_beta = &grad_beta_[static_cast<size_t>(index * in_.h + row)];
      band.out = static_cast<char*>(op_.grad_guide_hi) +
                 ((batch * in_.channels * plan_.fine_h + y) * plan_.fine_w + x) * element_size(in_.guide_hi.dtype);
      band.out_dtype = in_.guide_hi.dtype;
      band.out_stride_c = plan_.fine_h * plan_.fine_w;
      band.out_stride_y = plan_.fine_w;
      kernel().backward(band);
    }
  }

  void coarse_cells(int64_t batch, int64_t begin, int64_t end) const {
    const int64_t most = std::max(in_.classes, in_.channels);
    const Floats wide = uninitialized(kGatherChannels * (in_.w * in_.scale + kFinePad));
    const Floats sums = uninitialized(std::max<int64_t>(most, 1) * in_.w), total = uninitialized(in_.w);
    for (int64_t row = begin; row < end; ++row) {
      GuidedGather gather{};
      gather.scale = static_cast<int32_t>(in_.scale);
      gather.cells = static_cast<int32_t>(in_.w);
      // Neighbour dy of cell row y is this row: y = row + kReach - dy lies in the grid.
      gather.near_begin = static_cast<int32_t>(std::max<int64_t>(row + kReach - in_.h + 1, 0));
      gather.near_end = static_cast<int32_t>(std::min<int64_t>(row + kReach + 1, kSide));
      gather.pitch = pitch_;
      gather.row = row;
      gather.wide = wide.get();
      gather.value_stride_c = plan_.fine_h * pitch_;
      const auto sum = [&](const Floats& factors, const float* values, int64_t channels, float* to) {
        gather.factors = factors.get() + margin_;
        gather.values = values;
        gather.channels = static_cast<int32_t>(channels);
        gather.sums = to;
        kernel().gather(gather);
      };
      sum(weights_, grad_.get() + margin_, in_.classes, sums.get());
      store(op_.grad_logits, in_.logits.dtype, in_, in_.classes, batch, row,
            [&](int64_t c, int64_t x) { return sums[c * in_.w + x]; });
      // d lo_j = 2 beta (sum_i ds_ij hi_i - lo_j sum_i ds_ij)
      sum(dscores_, high_.get() + margin_, in_.channels, sums.get());
      sum(dscores_, nullptr, 1, total.get());
      const float factor = 2.0f * *in_.beta;
      store(op_.grad_guide_lo, in_.guide_lo.dtype, in_, in_.channels, batch, row, [&](int64_t c, int64_t x) {
        const float low = value(in_.guide_lo, batch, c, row, x);
        return factor * (sums[c * in_.w + x] - low * total[x]);
      });
    }
  }

  const GuidedUpsampleBackward& op_;
  const GuidedUpsample& in_;
  const Plan plan_;
  int64_t margin_, pitch_;
  Floats weights_, dscores_, high_, grad_;
  std::vector<double> grad_beta_;
};

}  // namespace

void guided_upsample_cpu(const GuidedUpsample& op, int threads) {
  check_guided(op);
  if (op.batch == 0 || op.classes == 0) return;
  const Plan plan = make_plan(op, threads);
  for_each_band(op, plan, 0, op.batch, [&](int64_t batch, int64_t tile, int64_t begin, int64_t end) {
    forward_tile(op, plan, batch, tile, begin, end);
  });
}

void guided_upsample_backward_cpu(const GuidedUpsampleBackward& op, int threads) {
  check_guided_backward(op);
  *op.grad_beta = 0.0f;
  if (op.forward.batch == 0) return;
  Backward backward(op, threads);
  for (int64_t batch = 0; batch < op.forward.batch; ++batch) backward.run(batch);
  *op.grad_beta = static_cast<float>(backward.grad_beta());
}

}  // namespace ovsdino
