#include "ovsdino/upsample_argmax.h"

#include "ovsdino/detail/bilinear.h"
#include "random.h"

namespace check {

int64_t upsample_argmax_faults(Random* random) {
  const int64_t batch = random->between(1, 2), classes = random->between(1, random->one_in(6) ? 150 : 20);
  const int64_t h = random->between(1, 20), w = random->between(1, 40);
  const int64_t out_h = random->between(1, 60), out_w = random->between(1, 90);
  Array logits(random, random->floating(), {batch, classes, h, w}, 0);
  // Few levels: ties, which fall the same way in both codes.
  const bool levels = random->one_in(4);
  logits.fill([&] { return levels ? static_cast<float>(random->between(0, 3)) : random->normal(); });
  ovsdino::UpsampleArgmax op{};
  op.logits = logits.data();
  op.logits_dtype = logits.dtype();
  op.batch = batch, op.classes = classes, op.in_h = h, op.in_w = w, op.out_h = out_h, op.out_w = out_w;
  op.stride_b = logits.stride(0), op.stride_k = logits.stride(1);
  op.stride_y = logits.stride(2), op.stride_x = logits.stride(3);
  op.labels_dtype = std::vector<DType>{DType::kUint8, DType::kInt16, DType::kInt32}[random->between(0, 2)];
  const bool confidence = random->one_in(2);
  op.has_threshold = random->one_in(4);
  op.threshold = 0.3f;
  int64_t faults = 0;
  for (const bool body : {false, true}) {
    Array labels(random, op.labels_dtype, {batch, out_h, out_w}, 3, false);
    Array sure(random, DType::kFloat32, {batch, out_h, out_w}, 3, false);
    op.labels = labels.data();
    op.confidence = confidence ? static_cast<float*>(sure.data()) : nullptr;
    body ? ovsdino::upsample_argmax_host(op) : ovsdino::upsample_argmax_cpu(op, random->one_in(8) ? 2 : 1);
    std::vector<double> values(static_cast<size_t>(classes));
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t y = 0; y < out_h; ++y) {
        const auto rows =
            ovsdino::bilinear_tap(static_cast<int32_t>(y), static_cast<int32_t>(h), static_cast<int32_t>(out_h));
        for (int64_t x = 0; x < out_w; ++x) {
          if ((x + y) % 5 != 0) continue;  // a fifth of the pixels: the check is the slow part
          const auto columns =
              ovsdino::bilinear_tap(static_cast<int32_t>(x), static_cast<int32_t>(w), static_cast<int32_t>(out_w));
          double best = -1e30, total = 0;
          for (int64_t k = 0; k < classes; ++k) {
            const double top = columns.w0 * logits.at({b, k, rows.i0, columns.i0}) +
                               columns.w1 * logits.at({b, k, rows.i0, columns.i1});
            const double bottom = columns.w0 * logits.at({b, k, rows.i1, columns.i0}) +
                                  columns.w1 * logits.at({b, k, rows.i1, columns.i1});
            values[static_cast<size_t>(k)] = rows.w0 * top + rows.w1 * bottom;
            best = std::fmax(best, values[static_cast<size_t>(k)]);
          }
          for (const double value : values) total += std::exp(value - best);
          const auto label = static_cast<int64_t>(labels.at({b, y, x}));
          if (confidence) faults += !close(sure.at({b, y, x}) + planted_error(), 1 / total, 1e-5);
          if (op.has_threshold && std::fabs(1 / total - 0.3) < 1e-5) continue;
          if (op.has_threshold && 1 / total < 0.3) {
            faults += label != classes;
          } else {
            faults += label < 0 || label >= classes || values[static_cast<size_t>(label)] < best - 1e-5;
          }
        }
      }
    }
  }
  return faults;
}

}  // namespace check
