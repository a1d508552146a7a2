// The resize of a camera's uint8 image and its normalization, in one pass over the result.
#include "ovsdino/resize_levels.h"

#include <cstring>
#include <memory>

#include "parallel.h"

namespace ovsdino {
namespace {

// Below this many levels of the result a thread costs more than it brings (2^20: about 1 ms of work): next to other
// processes a second thread is waited for up to 8 ms.
constexpr int64_t kWorkPerThread = int64_t{1} << 20;

// Every level's number, by color: one multiplication and one addition, each rounded, as NumPy does it.
struct Numbers {
  float of[3][256];

  explicit Numbers(const ResizeLevels& op) {
    for (int c = 0; c < 3; ++c) {
      for (int level = 0; level < 256; ++level) {
        const volatile float scaled = static_cast<float>(level) * op.gain[c];  // no fused multiply-add
        of[c][level] = scaled + op.shift[c];
      }
    }
  }
};

// A band of rows; the two image rows last resized across are kept, since a row of the result mostly shares one of them
// with the row before.
class Band {
 public:
  Band(const ResizeLevels& op, const Numbers& numbers)
      : op_(op),
        numbers_(numbers),
        width_(3 * op.out_w),
        rows_(op.across.start ? new uint8_t[static_cast<size_t>(2 * width_)] : nullptr),
        levels_(op.down.start ? new uint8_t[static_cast<size_t>(width_)] : nullptr) {}

  void run(int64_t y) {
    if (!op_.down.start) return put(y, row(y, -1));
    const int64_t first = op_.down.start[y], last = op_.in_h - 1;
    // Weights have 15 bits: with 16 on both sides a compiler has one instruction for eight products.
    const auto w0 = static_cast<int16_t>(op_.down.weights[y]),
               w1 = static_cast<int16_t>(op_.down.weights[op_.out_h + y]);
    const int32_t bits = op_.down.bits, half = 1 << (bits - 1);
    const uint8_t* above = row(first, -1);
    const uint8_t* below = w1 != 0 && first < last ? row(first + 1, first) : above;
    uint8_t* to = levels_.get();
    for (int64_t i = 0; i < width_; ++i) {
      const auto a = static_cast<int16_t>(above[i]), b = static_cast<int16_t>(below[i]);
      to[i] = static_cast<uint8_t>((a * w0 + b * w1 + half) >> bits);
    }
    put(y, to);
  }

 private:
  // Image row y at the result's width, in a place that is not that of row `keep`.
  const uint8_t* row(int64_t y, int64_t keep) {
    const uint8_t* from = op_.image + y * op_.stride_y;
    if (!op_.across.start) return from;
    for (int slot = 0; slot < 2; ++slot) {
      if (held_[slot] == y) return rows_.get() + slot * width_;
    }
    const int slot = held_[0] == keep ? 1 : 0;
    uint8_t* to = rows_.get() + slot * width_;
    const LevelAxis& axis = op_.across;
    const int64_t last = op_.in_w - 1;
    const int32_t half = 1 << (axis.bits - 1);
    for (int64_t x = 0; x < op_.out_w; ++x) {
      const int64_t first = axis.start[x];
      const int32_t w0 = axis.weights[x], w1 = axis.weights[op_.out_w + x];
      const uint8_t *left = from + 3 * first, *right = from + 3 * (first < last ? first + 1 : last);
      for (int c = 0; c < 3; ++c) {
        to[3 * x + c] = static_cast<uint8_t>((left[c] * w0 + right[c] * w1 + half) >> axis.bits);
      }
    }
    held_[slot] = y;
    return to;
  }

  void put(int64_t y, const uint8_t* levels) const {
    for (int c = 0; c < 3; ++c) {
      float* to = op_.out + (c * op_.out_h + y) * op_.out_w;
      const float* numbers = numbers_.of[c];
      for (int64_t x = 0; x < op_.out_w; ++x) to[x] = numbers[levels[3 * x + c]];
    }
  }

  const ResizeLevels& op_;
  const Numbers& numbers_;
  int64_t width_;
  std::unique_ptr<uint8_t[]> rows_, levels_;
  int64_t held_[2] = {-1, -1};
};

}  // namespace

void resize_levels_cpu(const ResizeLevels& op, int threads) {
  check_resize_levels(op);
  const Numbers numbers(op);
  const int64_t work = 3 * op.out_h * op.out_w;
  if (threads > work / kWorkPerThread) threads = static_cast<int>(work / kWorkPerThread);
  const int64_t grain = op.out_h / (4 * (threads > 0 ? threads : 1));
  parallel_for(op.out_h, grain, threads, [&](int64_t begin, int64_t end) {
    Band band(op, numbers);
    for (int64_t y = begin; y < end; ++y) band.run(y);
  });
}

}  // namespace ovsdino
