// Camera pixels to the graph's input on the CPU: torch's fixed-point resize of uint8 images, the same integers as
// ovsdino/edge/pixels.py, then x * gain + shift.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "files.h"

namespace ovsdino::edge {

// (x / 255 - mean) / std as x * gain + shift.
struct Normalize {
  std::array<float, 3> gain, shift;
  Normalize(const std::array<double, 3>& mean, const std::array<double, 3>& std);
};

// NV12 to RGB as `nv12_to_rgb` of ovsdino/edge/pixels.py: the same float32 operations in the same order, and so the
// same bytes. An RGB image comes back as it is.
Image to_rgb(const Image& image);

// Bilinear with half-pixel centers, without antialias; columns first, each pass rounded to whole levels.
Image resize(const Image& rgb, int64_t height, int64_t width);

// image: RGB or NV12; out: (3, height, width).
void preprocess(const Image& image, const Normalize& normalize, int64_t height, int64_t width, float* out);

}  // namespace ovsdino::edge
