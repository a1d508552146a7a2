#include "ovsdino/mask_pool.h"

#include "random.h"

namespace check {
namespace {

// Weights of the masks as drawn, whatever their form.
double weight_of(const Array& masks, int64_t batch, int64_t mask, int64_t token) {
  const double value = masks.at({batch, mask, token});
  return masks.dtype() == DType::kFloat32 ? value : value != 0;
}

struct Case {
  int64_t batch, tokens, channels, count;
  DType form;
  Array masks;

  explicit Case(Random* random)
      : batch(random->between(1, 2)),
        tokens(random->between(1, 200)),
        channels(random->between(1, 150)),
        count(random->between(1, 6)),
        form(random->one_in(2) ? DType::kFloat32 : DType::kUint8),
        masks(random, form, {batch, count, tokens}, 0) {
    const int64_t sparse = random->between(1, 12);  // 1: all set
    masks.fill([&]() -> float {
      if (!random->one_in(sparse)) return 0.0f;
      return form == DType::kFloat32 ? 0.25f * static_cast<float>(random->between(1, 8)) : random->between(1, 255);
    });
  }

  void describe(ovsdino::MaskPool* op) {
    op->batch = batch, op->tokens = tokens, op->channels = channels;
    op->masks = masks.data();
    op->masks_dtype = form;
    op->mask_count = count;
    op->masks_stride_b = masks.stride(0), op->masks_stride_m = masks.stride(1), op->masks_stride_n = masks.stride(2);
  }
};

}  // namespace

int64_t mask_pool_faults(Random* random) {
  Case drawn(random);
  Array features(random, random->floating(), {drawn.batch, drawn.tokens, drawn.channels}, 1);
  features.fill([&] { return random->normal(); });
  ovsdino::MaskPool op{};
  drawn.describe(&op);
  op.features = features.data();
  op.features_dtype = features.dtype();
  op.features_stride_b = features.stride(0), op.features_stride_n = features.stride(1);
  int64_t faults = 0;
  for (const bool body : {false, true}) {
    Array means(random, features.dtype(), {drawn.batch, drawn.count, drawn.channels}, 3, false);
    Array areas(random, DType::kFloat32, {drawn.batch, drawn.count}, 2, false);
    op.means = means.data();
    op.areas = static_cast<float*>(areas.data());
    if (body) {
      ovsdino::mask_pool_host(op);
    } else if (!ovsdino::mask_pool_cpu(op, 1.0, random->one_in(8) ? 2 : 1)) {
      return 1;
    }
    for (int64_t b = 0; b < drawn.batch; ++b) {
      for (int64_t m = 0; m < drawn.count; ++m) {
        double area = 0;
        for (int64_t n = 0; n < drawn.tokens; ++n) area += weight_of(drawn.masks, b, m, n);
        faults += !close(areas.at({b, m}) + planted_error(), area, 1e-5 * area);
        for (int64_t c = 0; c < drawn.channels; ++c) {
          double sum = 0;
          for (int64_t n = 0; n < drawn.tokens; ++n) sum += weight_of(drawn.masks, b, m, n) * features.at({b, n, c});
          const double mean = area > 0 ? sum / area : 0;
          faults += !close(means.at({b, m, c}), mean, 1e-5 + unit_of(features.dtype()) * std::fabs(mean));
        }
      }
    }
  }
  return faults;
}

int64_t mask_pool_backward_faults(Random* random) {
  Case drawn(random);
  Array grads(random, DType::kFloat32, {drawn.batch, drawn.count, drawn.channels}, 3, false);
  Array out(random, DType::kFloat32, {drawn.batch, drawn.tokens, drawn.channels}, 3, false);
  Array areas(random, DType::kFloat32, {drawn.batch, drawn.count}, 2, false);
  grads.fill([&] { return random->normal(); });
  ovsdino::MaskPool op{};
  drawn.describe(&op);
  op.features = out.data();
  op.features_dtype = DType::kFloat32;
  op.features_stride_b = out.stride(0), op.features_stride_n = out.stride(1);
  op.means = grads.data();
  op.areas = static_cast<float*>(areas.data());
  if (random->one_in(2)) {
    ovsdino::mask_pool_backward_host(op);
  } else if (!ovsdino::mask_pool_backward_cpu(op, 1.0, random->one_in(8) ? 2 : 1)) {
    return 1;
  }
  int64_t faults = 0;
  for (int64_t b = 0; b < drawn.batch; ++b) {
    for (int64_t n = 0; n < drawn.tokens; ++n) {
      for (int64_t c = 0; c < drawn.channels; ++c) {
        double sum = 0;
        for (int64_t m = 0; m < drawn.count; ++m) sum += weight_of(drawn.masks, b, m, n) * grads.at({b, m, c});
        faults += !close(out.at({b, n, c}) + planted_error(), sum, 2e-5);
      }
    }
  }
  return faults;
}

}  // namespace check
