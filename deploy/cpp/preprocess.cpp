#include "preprocess.h"

#include <algorithm>
#include <cmath>

namespace ovsdino::edge {
namespace {

struct Tap {
  int64_t first, second;
  int32_t w_first, w_second;
};

struct Taps {
  std::vector<Tap> taps;
  int bits;  // of the weights behind the point
};

// torch's weights: computed in double, then as many bits behind the point as the largest one leaves of 15.
Taps make_taps(int64_t source, int64_t target) {
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  std::vector<double> uppers;
  double largest = 0.0;
  Taps result{{}, 0};
  for (int64_t i = 0; i < target; ++i) {
    const double position = std::max(scale * (static_cast<double>(i) + 0.5) - 0.5, 0.0);
    const int64_t first = std::min(static_cast<int64_t>(position), source - 1);
    const bool last = first >= source - 1;
    const double upper = last ? 0.0 : std::min(position - static_cast<double>(first), 1.0);
    uppers.push_back(upper);
    largest = std::max({largest, upper, 1.0 - upper});
    result.taps.push_back({first, last ? first : first + 1, 0, 0});
  }
  while (result.bits < 22 && static_cast<int32_t>(0.5 + largest * (1 << (result.bits + 1))) < 1 << 15) ++result.bits;
  for (size_t i = 0; i < uppers.size(); ++i) {
    result.taps[i].w_first = static_cast<int32_t>(0.5 + (1.0 - uppers[i]) * (1 << result.bits));
    result.taps[i].w_second = static_cast<int32_t>(0.5 + uppers[i] * (1 << result.bits));
  }
  return result;
}

// One row of `image` resized to the taps' width.
void resize_row(const uint8_t* row, const Taps& across, uint8_t* out) {
  const int32_t half = 1 << (across.bits - 1);
  for (const Tap& tap : across.taps) {
    for (int64_t c = 0; c < 3; ++c) {
      const int32_t sum = row[3 * tap.first + c] * tap.w_first + row[3 * tap.second + c] * tap.w_second;
      *out++ = static_cast<uint8_t>((sum + half) >> across.bits);
    }
  }
}

uint8_t to_level(float value) { return static_cast<uint8_t>(std::min(std::max(std::nearbyint(value), 0.0f), 255.0f)); }

}  // namespace

Normalize::Normalize(const std::array<double, 3>& mean, const std::array<double, 3>& std) : gain(), shift() {
  for (size_t c = 0; c < 3; ++c) {
    gain[c] = static_cast<float>(1.0 / (255.0 * std[c]));
    shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
}

Image to_rgb(const Image& image) {
  if (!image.nv12) return image;
  Image out = blank_image(image.height, image.width, false);
  const uint8_t *luma = image.pixels.data(), *chroma = luma + image.height * image.width;
  uint8_t* to = out.pixels.data();
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) {
      const uint8_t* pair = chroma + y / 2 * image.width + x / 2 * 2;
      const float gray = 1.164383f * (static_cast<float>(*luma++) - 16.0f);
      const float blue = static_cast<float>(pair[0]) - 128.0f, red = static_cast<float>(pair[1]) - 128.0f;
      *to++ = to_level(gray + 1.596027f * red);
      *to++ = to_level(gray + (-0.391762f * blue - 0.812968f * red));
      *to++ = to_level(gray + 2.017232f * blue);
    }
  }
  return out;
}

Image resize(const Image& rgb, int64_t height, int64_t width) {
  Image out = blank_image(height, width, false);
  const Taps across = make_taps(rgb.width, width), down = make_taps(rgb.height, height);
  const auto pitch = static_cast<size_t>(3 * width);
  // The two rows that a result needs, each resized once and kept while the next results need it.
  std::vector<uint8_t> rows[2] = {std::vector<uint8_t>(pitch), std::vector<uint8_t>(pitch)};
  int64_t held[2] = {-1, -1};
  const auto fetch = [&](int64_t y, int keep) {
    for (int slot = 0; slot < 2; ++slot) {
      if (held[slot] == y) return slot;
    }
    const int slot = keep >= 0 ? 1 - keep : (held[0] == y + 1 ? 1 : 0);
    resize_row(rgb.pixels.data() + 3 * rgb.width * y, across, rows[slot].data());
    held[slot] = y;
    return slot;
  };
  const int32_t half = 1 << (down.bits - 1);
  for (int64_t y = 0; y < height; ++y) {
    const Tap& tap = down.taps[static_cast<size_t>(y)];
    const int first = fetch(tap.first, -1), second = fetch(tap.second, first);
    const uint8_t *upper = rows[first].data(), *lower = rows[second].data();
    uint8_t* to = out.pixels.data() + pitch * static_cast<size_t>(y);
    for (size_t x = 0; x < pitch; ++x) {
      to[x] = static_cast<uint8_t>((upper[x] * tap.w_first + lower[x] * tap.w_second + half) >> down.bits);
    }
  }
  return out;
}

void preprocess(const Image& image, const Normalize& normalize, int64_t height, int64_t width, float* out) {
  const Image resized = image.nv12 ? resize(to_rgb(image), height, width) : resize(image, height, width);
  const int64_t plane = height * width;
  for (int64_t c = 0; c < 3; ++c) {
    const float gain = normalize.gain[static_cast<size_t>(c)], shift = normalize.shift[static_cast<size_t>(c)];
    for (int64_t i = 0; i < plane; ++i)
      out[c * plane + i] = resized.pixels[static_cast<size_t>(3 * i + c)] * gain + shift;
  }
}

}  // namespace ovsdino::edge
