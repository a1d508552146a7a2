// Reading masks of any accepted form, shared by the CPU and CUDA kernels of mask_pool.
#pragma once

#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

// Weight of one token of the mask row that starts at `row`; `stride` is in elements.
OVSDINO_HD float mask_weight(const void* row, DType dtype, int64_t stride, int64_t token) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(row)[token * stride];
  const uint8_t* bytes = static_cast<const uint8_t*>(row);
  return bytes[token * stride] != 0 ? 1.0f : 0.0f;
}

OVSDINO_HD const void* mask_row(const void* masks, DType dtype, int64_t offset) {
  return static_cast<const uint8_t*>(masks) + offset * (dtype == DType::kFloat32 ? 4 : 1);
}

}  // namespace ovsdino
