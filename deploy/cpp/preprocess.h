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

// Bilinear with half-pixel centers, without antialias; columns first, each pass rounded to whole levels.
Image resize(const Image& image, int64_t height, int64_t width);

// out: (3, height, width).
void preprocess(const Image& image, const Normalize& normalize, int64_t height, int64_t width, float* out);

}  // namespace ovsdino::edge
