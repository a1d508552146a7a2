// The two bodies of preprocess: one output pixel from its taps, for any resize; and a tile of an antialiased shrink,
// which reads and converts each source byte once.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/bilinear.h"
#include "ovsdino/detail/lanes.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/detail/pixel_source.h"

namespace ovsdino {

// The triangle filter of one axis, as PIL and torch place it: taps begin to end - 1 have a weight, not yet normalised.
struct Triangle {
  float scale, inverse, support;
  int32_t size;

  OVSDINO_HD_MEMBER Triangle(int64_t in_size, int64_t out_size)
      : scale(static_cast<float>(in_size) / static_cast<float>(out_size)),
        inverse(scale > 1.0f ? 1.0f / scale : 1.0f),
        support(scale > 1.0f ? scale : 1.0f),
        size(static_cast<int32_t>(in_size)) {}

  OVSDINO_HD_MEMBER float centre(int32_t out_index) const { return scale * (static_cast<float>(out_index) + 0.5f); }
  OVSDINO_HD_MEMBER int32_t begin(float centre) const {
    const int32_t first = static_cast<int32_t>(centre - support + 0.5f);
    return first > 0 ? first : 0;
  }
  OVSDINO_HD_MEMBER int32_t end(float centre) const {
    const int32_t past = static_cast<int32_t>(centre + support + 0.5f);
    return past < size ? past : size;
  }
  OVSDINO_HD_MEMBER float weight(int32_t in_index, float centre) const {
    return fmaxf(0.0f, 1.0f - fabsf((static_cast<float>(in_index) - centre + 0.5f) * inverse));
  }
};

template <typename T>
OVSDINO_HD void write_rgb(const Preprocess& op, int64_t batch, int32_t y, int32_t x, const float* rgb) {
  const int64_t plane = op.out_h * op.out_w;
  T* out = static_cast<T*>(op.out) + 3 * batch * plane + y * op.out_w + x;
  for (int32_t c = 0; c < 3; ++c) from_float(fmaf(rgb[c], op.gain[c], op.shift[c]), out + c * plane);
}

template <typename T, typename Source>
OVSDINO_HD void resize_pixel(const Preprocess& op, const Source& source, int64_t batch, int32_t y, int32_t x) {
  float rgb[3] = {};
  if (!op.antialias) {
    const Tap rows = bilinear_tap(y, static_cast<int32_t>(op.in_h), static_cast<int32_t>(op.out_h));
    const Tap columns = bilinear_tap(x, static_cast<int32_t>(op.in_w), static_cast<int32_t>(op.out_w));
    for (int32_t i = 0; i < 2; ++i) {
      const float weight = i == 0 ? rows.w0 : rows.w1;
      if (weight == 0.0f) continue;  // a resize of one axis reads one row
      float first[3], second[3];
      source.pair(i == 0 ? rows.i0 : rows.i1, columns.i0, columns.i1, first, second);
      for (int32_t c = 0; c < 3; ++c) rgb[c] += weight * (columns.w0 * first[c] + columns.w1 * second[c]);
    }
  } else {
    const Triangle rows(op.in_h, op.out_h), columns(op.in_w, op.out_w);
    const float centre_y = rows.centre(y), centre_x = columns.centre(x);
    float total_y = 0.0f, total_x = 0.0f;
    for (int32_t v = rows.begin(centre_y); v < rows.end(centre_y); ++v) {
      const float weight_y = rows.weight(v, centre_y);
      float line[3] = {};
      total_x = 0.0f;
      for (int32_t u = columns.begin(centre_x); u < columns.end(centre_x); ++u) {
        const float weight_x = columns.weight(u, centre_x);
        float pixel[3];
        source.pixel(v, u, pixel);
        total_x += weight_x;
        for (int32_t c = 0; c < 3; ++c) line[c] += weight_x * pixel[c];
      }
      total_y += weight_y;
      for (int32_t c = 0; c < 3; ++c) rgb[c] += weight_y * line[c];
    }
    for (int32_t c = 0; c < 3; ++c) rgb[c] /= total_x * total_y;
  }
  write_rgb<T>(op, batch, y, x, rgb);
}

// A tile's source columns: 128 groups of four pixels, one a thread.
constexpr int32_t kStripGroups = 128;
constexpr int32_t kStripPixels = 4 * kStripGroups;
// A plane of them in shared memory; one float of padding in 32 spreads threads that read every 4th or 8th over all
// banks.
constexpr int32_t kStripPlane = kStripPixels + kStripPixels / 32;
constexpr int32_t kStripFloats = 3 * kStripPlane;
constexpr int32_t kRowsInFlight = 4;  // source rows whose loads are issued before the first is used

OVSDINO_HD int32_t strip_index(int32_t pixel) { return pixel + (pixel >> 5); }

struct ResizeTiles {
  int32_t rows, columns;  // output pixels of a tile; rows is 0 where resize_pixel has to do it all
  int32_t down, across;   // tiles of an image
};

// Antialiased shrinks whose tile of at least one column fits the strip. Few rows a tile give more blocks, and read more
// rows twice: (rows + 1) / rows; as many as leave four blocks a multiprocessor.
OVSDINO_HD ResizeTiles resize_tiles(const Preprocess& op, int32_t multiprocessors) {
  const Triangle columns(op.in_w, op.out_w);
  // From the first tap of the first column, rounded down to a group, to the last of the last one.
  const float room = (kStripPixels - 5 - 2.0f * columns.support) / columns.scale;
  ResizeTiles tiles = {0, 0, 0, 0};
  if (!op.antialias || op.in_h < op.out_h || op.in_w < op.out_w || room < 0.0f) return tiles;
  const int32_t fitting = static_cast<int32_t>(room) + 1;
  tiles.columns = fitting < op.out_w ? fitting : static_cast<int32_t>(op.out_w);
  tiles.across = static_cast<int32_t>((op.out_w + tiles.columns - 1) / tiles.columns);
  for (tiles.rows = 32; tiles.rows >= 4; tiles.rows /= 2) {
    tiles.down = static_cast<int32_t>((op.out_h + tiles.rows - 1) / tiles.rows);
    if (tiles.rows == 4 || op.batch * tiles.down * tiles.across >= 4 * int64_t{multiprocessors}) break;
  }
  return tiles;
}

// One output row of a tile from the strip that holds its vertical sums.
template <typename T, typename Lanes>
OVSDINO_HD void write_strip_row(const Preprocess& op, const Triangle& columns, int64_t batch, int32_t y,
                                int32_t x_begin, int32_t x_end, int32_t left, const float* strip, const Lanes& lanes) {
  for (int32_t x = x_begin + lanes.index(); x < x_end; x += Lanes::kSize) {
    const float centre = columns.centre(x);
    const int32_t end = columns.end(centre);
    float rgb[3] = {}, total = 0.0f;
    for (int32_t u = columns.begin(centre); u < end; ++u) {
      const float weight = columns.weight(u, centre);
      const float* at = strip + strip_index(u - left);
      total += weight;
      for (int32_t c = 0; c < 3; ++c) rgb[c] += weight * at[c * kStripPlane];
    }
    for (int32_t c = 0; c < 3; ++c) rgb[c] *= 1.0f / total;
    write_rgb<T>(op, batch, y, x, rgb);
  }
}

// Vertical sums of four pixels a group: of the output row that ends next, and of the one below it.
template <int32_t kGroups>
struct VerticalSums {
  float now[kGroups][12] = {}, next[kGroups][12] = {};
  float total_now = 0.0f, total_next = 0.0f;

  OVSDINO_HD_MEMBER void add(int32_t group, float weight_now, float weight_next, const float* values) {
    for (int32_t j = 0; j < 12; ++j) {
      now[group][j] = fmaf(weight_now, values[j], now[group][j]);
      next[group][j] = fmaf(weight_next, values[j], next[group][j]);
    }
  }

  // Pixels `pixel` to pixel + 3 of the row that ended, normalised.
  OVSDINO_HD_MEMBER void store(int32_t group, int32_t pixel, float* strip) const {
    const float gain = 1.0f / total_now;
    for (int32_t i = 0; i < 4; ++i) {
      for (int32_t c = 0; c < 3; ++c) strip[c * kStripPlane + strip_index(pixel + i)] = now[group][3 * i + c] * gain;
    }
  }

  OVSDINO_HD_MEMBER void advance() {
    for (int32_t g = 0; g < kGroups; ++g) {
      for (int32_t j = 0; j < 12; ++j) now[g][j] = next[g][j], next[g][j] = 0.0f;
    }
    total_now = total_next, total_next = 0.0f;
  }
};

// Tile (down, across) of an image. Source rows are read once, from the top: each adds to the output row that ends next
// and to the one below it; no other has a weight there, since a triangle is two scales wide. A finished row goes to a
// strip, and from there through the horizontal taps, while the other strip takes the next row.
// strips: room for 2 * kStripFloats, shared by the lanes.
template <typename T, typename Source, typename Lanes>
OVSDINO_HD void resize_tile(const Preprocess& op, const ResizeTiles& tiles, const Source& source, int64_t batch,
                            int32_t down, int32_t across, const Lanes& lanes, float* strips) {
  constexpr int32_t kGroups = kStripGroups / Lanes::kSize;
  const Triangle rows(op.in_h, op.out_h), columns(op.in_w, op.out_w);
  const auto out_w = static_cast<int32_t>(op.out_w), out_h = static_cast<int32_t>(op.out_h);
  const int32_t x_begin = across * tiles.columns, y_begin = down * tiles.rows;
  const int32_t x_end = x_begin + tiles.columns < out_w ? x_begin + tiles.columns : out_w;
  const int32_t y_end = y_begin + tiles.rows < out_h ? y_begin + tiles.rows : out_h;
  const int32_t left = columns.begin(columns.centre(x_begin)) & ~3;  // words and chroma pairs start there
  const int32_t stop = columns.end(columns.centre(x_end - 1));

  VerticalSums<kGroups> sums;
  int32_t row = rows.begin(rows.centre(y_begin));
  for (int32_t y = y_begin; y < y_end; ++y) {
    const float centre_now = rows.centre(y), centre_next = rows.centre(y + 1);
    for (const int32_t end = rows.end(centre_now); row < end; row += kRowsInFlight) {
      RawPixels raw[kRowsInFlight][kGroups];
      OVSDINO_UNROLL for (int32_t i = 0; i < kRowsInFlight; ++i) {
        for (int32_t g = 0; g < kGroups; ++g) {
          const int32_t x = left + 4 * (lanes.index() + g * Lanes::kSize);
          if (row + i < end && x < stop) raw[i][g] = source.fetch(row + i, x);
        }
      }
      OVSDINO_UNROLL for (int32_t i = 0; i < kRowsInFlight; ++i) {
        const float weight_now = rows.weight(row + i, centre_now), weight_next = rows.weight(row + i, centre_next);
        for (int32_t g = 0; g < kGroups; ++g) {
          const int32_t x = left + 4 * (lanes.index() + g * Lanes::kSize);
          if (row + i < end && x < stop) {
            float values[12];
            source.convert(raw[i][g], values);
            sums.add(g, weight_now, weight_next, values);
          }
        }
        sums.total_now += row + i < end ? weight_now : 0.0f;
        sums.total_next += row + i < end ? weight_next : 0.0f;
      }
    }
    row = rows.end(centre_now);
    float* strip = strips + (y & 1) * kStripFloats;
    for (int32_t g = 0; g < kGroups; ++g) {
      const int32_t pixel = 4 * (lanes.index() + g * Lanes::kSize);
      if (left + pixel < stop) sums.store(g, pixel, strip);
    }
    lanes.sync();  // and every lane is done with the other strip
    write_strip_row<T>(op, columns, batch, y, x_begin, x_end, left, strip, lanes);
    sums.advance();
  }
}

}  // namespace ovsdino
