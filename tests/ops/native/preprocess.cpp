#include "ovsdino/preprocess.h"

#include "random.h"

namespace check {
namespace {

// Weights of one axis for one output index.
std::vector<double> weights(int64_t size, int64_t out, int64_t index, bool antialias) {
  const double scale = static_cast<double>(static_cast<float>(size) / static_cast<float>(out));
  const double centre = scale * (static_cast<double>(index) + 0.5) - 0.5;
  std::vector<double> found(static_cast<size_t>(size));
  double total = 0;
  for (int64_t i = 0; i < size; ++i) {
    // Without antialias the image goes on past its border with the border's value.
    const double at = antialias ? centre : std::fmin(std::fmax(centre, 0.0), static_cast<double>(size - 1));
    const double width = antialias && scale > 1 ? scale : 1;
    found[static_cast<size_t>(i)] = std::fmax(0.0, 1 - std::fabs(static_cast<double>(i) - at) / width);
    total += found[static_cast<size_t>(i)];
  }
  for (double& weight : found) weight /= total;
  return found;
}

double clamped(double value) { return std::fmin(std::fmax(value, 0.0), 255.0); }

}  // namespace

int64_t preprocess_faults(Random* random) {
  const bool nv12 = random->one_in(3), packed = random->one_in(2);
  ovsdino::Preprocess op{};
  op.format = nv12 ? ovsdino::PixelFormat::kNv12 : ovsdino::PixelFormat::kRgb;
  op.batch = random->between(1, 2);
  op.in_h = random->between(1, 40), op.in_w = random->between(1, random->one_in(10) ? 700 : 60);
  if (nv12) op.in_h += op.in_h % 2, op.in_w += op.in_w % 2;
  op.out_h = random->between(1, 30), op.out_w = random->between(1, 40);
  op.antialias = random->one_in(2);
  Array image = nv12 ? Array(random, DType::kUint8, {op.batch, op.in_h * 3 / 2, op.in_w, 1}, 2)
                     : Array(random, DType::kUint8, {op.batch, op.in_h, op.in_w, 3}, packed ? 2 : 0);
  image.fill([&] { return static_cast<float>(random->between(0, 255)); });
  op.image = static_cast<const uint8_t*>(image.data());
  op.stride_b = image.stride(0), op.stride_y = image.stride(1);
  op.stride_x = image.stride(2), op.stride_c = image.stride(3);
  op.out_dtype = random->floating();
  for (int64_t c = 0; c < 3; ++c) op.gain[c] = 0.01f + 0.005f * static_cast<float>(c), op.shift[c] = random->normal();
  Array out(random, op.out_dtype, {op.batch, 3, op.out_h, op.out_w}, 4, false);
  op.out = out.data();
  ovsdino::preprocess_host(op);

  const auto level = [&](int64_t b, int64_t y, int64_t x, int64_t c) {
    if (!nv12) return image.at({b, y, x, c});
    const double luma = 1.164383 * (image.at({b, y, x, 0}) - 16);
    const double blue = image.at({b, op.in_h + y / 2, x & ~int64_t{1}, 0}) - 128;
    const double red = image.at({b, op.in_h + y / 2, x | 1, 0}) - 128;
    const double rgb[3] = {luma + 1.596027 * red, luma - 0.391762 * blue - 0.812968 * red, luma + 2.017232 * blue};
    return clamped(std::nearbyint(rgb[c]));
  };
  int64_t faults = 0;
  for (int64_t y = 0; y < op.out_h; ++y) {
    const std::vector<double> rows = weights(op.in_h, op.out_h, y, op.antialias);
    for (int64_t x = y % 7; x < op.out_w; x += 7) {  // one pixel in seven: the check is the slow part
      const std::vector<double> columns = weights(op.in_w, op.out_w, x, op.antialias);
      for (int64_t b = 0; b < op.batch; ++b) {
        for (int64_t c = 0; c < 3; ++c) {
          double sum = 0;
          for (int64_t v = 0; v < op.in_h; ++v) {
            if (rows[static_cast<size_t>(v)] == 0) continue;
            for (int64_t u = 0; u < op.in_w; ++u) {
              const double weight = rows[static_cast<size_t>(v)] * columns[static_cast<size_t>(u)];
              if (weight > 0) sum += weight * level(b, v, u, c);
            }
          }
          const double expected = sum * op.gain[c] + op.shift[c];
          // A level of NV12 may round the other way in float32.
          const double allowed = (nv12 ? 1.0 : 0.01) * op.gain[c] + unit_of(op.out_dtype) * std::fabs(expected);
          faults += !close(out.at({b, c, y, x}) + planted_error(), expected, allowed);
        }
      }
    }
  }
  return faults;
}

}  // namespace check
