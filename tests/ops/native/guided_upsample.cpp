#include "ovsdino/guided_upsample.h"

#include "random.h"

namespace check {
namespace {

ovsdino::GuidedUpsample::View view(Array* x) {
  return {x->data(), x->dtype(), x->stride(0), x->stride(1), x->stride(2), x->stride(3)};
}

// Sizes, inputs, and the weights of the 25 neighbours of a fine pixel by the formula.
struct Case {
  int64_t batch, classes, channels, h, w, scale;
  Array logits, low, high;
  float beta;

  // body: what the CUDA kernels take: one dtype, neighbouring columns.
  Case(Random* random, DType dtype, int64_t most, bool body)
      : batch(random->between(1, 2)),
        classes(random->between(1, most)),
        channels(random->between(1, 6)),
        h(random->between(1, 7)),
        w(random->between(1, 12)),
        scale(random->between(1, 5)),
        logits(random, dtype, {batch, classes, h, w}, body ? 1 : 0),
        low(random, !body && random->one_in(4) ? random->floating() : dtype, {batch, channels, h, w}, body ? 1 : 0),
        high(random, low.dtype(), {batch, channels, scale * h, scale * w}, 0),
        beta(std::fabs(random->normal())) {
    logits.fill([&] { return random->normal(); });
    low.fill([&] { return 0.5f * random->normal(); });
    high.fill([&] { return 0.5f * random->normal(); });
  }

  ovsdino::GuidedUpsample describe() {
    ovsdino::GuidedUpsample op{};
    op.logits = view(&logits), op.guide_lo = view(&low), op.guide_hi = view(&high);
    op.batch = batch, op.classes = classes, op.channels = channels, op.h = h, op.w = w, op.scale = scale;
    op.beta = &beta;
    return op;
  }

  // Calls visit(i, j, weight) for the neighbours of fine pixel (y, x).
  template <typename Visit>
  void for_each_neighbour(int64_t b, int64_t y, int64_t x, const Visit& visit) const {
    double weights[25], total = 0;
    for (int64_t n = 0; n < 25; ++n) {
      const int64_t i = y / scale + n / 5 - 2, j = x / scale + n % 5 - 2;
      weights[n] = 0;
      if (i < 0 || i >= h || j < 0 || j >= w) continue;
      double squared = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const double difference = high.at({b, c, y, x}) - low.at({b, c, i, j});
        squared += difference * difference;
      }
      const double dy = (y + 0.5) / scale - (i + 0.5), dx = (x + 0.5) / scale - (j + 0.5);
      weights[n] = std::exp(-beta * squared - dy * dy - dx * dx);
      total += weights[n];
    }
    for (int64_t n = 0; n < 25; ++n) {
      if (weights[n] > 0) visit(y / scale + n / 5 - 2, x / scale + n % 5 - 2, weights[n] / total);
    }
  }
};

}  // namespace

int64_t guided_upsample_faults(Random* random) {
  const DType dtype = random->floating();
  const bool body = random->one_in(2);
  Case drawn(random, dtype, 40, body);
  ovsdino::GuidedUpsample op = drawn.describe();
  Array out(random, dtype, {drawn.batch, drawn.classes, drawn.scale * drawn.h, drawn.scale * drawn.w}, 4, false);
  op.out = out.data();
  body ? ovsdino::guided_upsample_host(op) : ovsdino::guided_upsample_cpu(op, random->one_in(8) ? 2 : 1);
  int64_t faults = 0;
  for (int64_t b = 0; b < drawn.batch; ++b) {
    for (int64_t y = 0; y < drawn.scale * drawn.h; ++y) {
      for (int64_t x = y % 2; x < drawn.scale * drawn.w; x += 2) {  // half the pixels: the check is the slow part
        std::vector<double> expected(static_cast<size_t>(drawn.classes));
        drawn.for_each_neighbour(b, y, x, [&](int64_t i, int64_t j, double weight) {
          for (size_t k = 0; k < expected.size(); ++k) {
            expected[k] += weight * drawn.logits.at({b, static_cast<int64_t>(k), i, j});
          }
        });
        for (size_t k = 0; k < expected.size(); ++k) {
          const double got = out.at({b, static_cast<int64_t>(k), y, x}) + planted_error();
          faults += !close(got, expected[k], 1e-4 + unit_of(dtype) * std::fabs(expected[k]));
        }
      }
    }
  }
  return faults;
}

int64_t guided_upsample_backward_faults(Random* random) {
  const bool body = random->one_in(2);
  Case drawn(random, DType::kFloat32, 6, body);
  ovsdino::GuidedUpsampleBackward op{};
  op.forward = drawn.describe();
  const int64_t fine_h = drawn.scale * drawn.h, fine_w = drawn.scale * drawn.w;
  Array grad(random, DType::kFloat32, {drawn.batch, drawn.classes, fine_h, fine_w}, 0);
  grad.fill([&] { return random->normal(); });
  Array logits(random, DType::kFloat32, {drawn.batch, drawn.classes, drawn.h, drawn.w}, 4, false);
  Array low(random, drawn.low.dtype(), {drawn.batch, drawn.channels, drawn.h, drawn.w}, 4, false);
  Array high(random, drawn.high.dtype(), {drawn.batch, drawn.channels, fine_h, fine_w}, 4, false);
  const int64_t fine = drawn.batch * fine_h * fine_w;
  Array beta(random, DType::kFloat32, {body ? fine : 1}, 1, false);
  Array workspace(random, DType::kFloat32, {drawn.batch, 2, 25, fine_h, fine_w}, 5, false);
  op.workspace = static_cast<float*>(workspace.data());
  op.grad = view(&grad);
  op.grad_logits = logits.data(), op.grad_guide_lo = low.data(), op.grad_guide_hi = high.data();
  op.grad_beta = static_cast<float*>(beta.data());
  body ? ovsdino::guided_upsample_backward_host(op)
       : ovsdino::guided_upsample_backward_cpu(op, random->one_in(8) ? 2 : 1);
  // The gradient of the logits is the transposed sum. Those of the guides and of beta are held against torch's in
  // Python; here they only have to be finite and inside their buffers.
  std::vector<double> expected(static_cast<size_t>(drawn.batch * drawn.classes * drawn.h * drawn.w));
  for (int64_t b = 0; b < drawn.batch; ++b) {
    for (int64_t y = 0; y < fine_h; ++y) {
      for (int64_t x = 0; x < fine_w; ++x) {
        drawn.for_each_neighbour(b, y, x, [&](int64_t i, int64_t j, double weight) {
          for (int64_t k = 0; k < drawn.classes; ++k) {
            expected[static_cast<size_t>(((b * drawn.classes + k) * drawn.h + i) * drawn.w + j)] +=
                weight * grad.at({b, k, y, x});
          }
        });
      }
    }
  }
  int64_t faults = !std::isfinite(beta.at({0}));
  for (int64_t n = 0; n < static_cast<int64_t>(expected.size()); ++n) {
    const int64_t row = n / drawn.w, plane = row / drawn.h;
    const double got = logits.at({plane / drawn.classes, plane % drawn.classes, row % drawn.h, n % drawn.w});
    faults += !close(got + planted_error(), expected[static_cast<size_t>(n)], 5e-4);
  }
  return faults;
}

}  // namespace check
