// Read whole files, write files that appear whole or not at all, images, SHA-256.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ovsdino::edge {

struct Image {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;  // (height, width, 3) RGB; or NV12, (height * 3 / 2, width), BT.601, limited range
  bool nv12 = false;
};

// An image of one size and format, its pixels 0; the size in bytes is that of a raw frame. Sides of NV12 are even.
Image blank_image(int64_t height, int64_t width, bool nv12);

// The content of a regular file of at most `most` bytes. Throws std::runtime_error with one line that names the file.
std::vector<uint8_t> read_file(const std::string& path, uint64_t most);

// Writes under a temporary name, then renames.
void write_file(const std::string& path, std::string_view header, const void* data, size_t size);

// A binary PPM (P6, 255 levels), or with height and width given, the bytes of one raw frame and nothing else.
Image read_image(const std::string& path, int64_t height = 0, int64_t width = 0, bool nv12 = false);

// Labels (height, width) as a binary PGM: one byte a pixel, or two (the high one first) beyond 256 values.
void write_labels(const std::string& path, const std::vector<int32_t>& labels, int64_t height, int64_t width,
                  int64_t values);

// A message with every control character made a space: text of a file may go into an error.
std::string one_line(std::string message);

// In hexadecimal.
std::string sha256(const std::vector<uint8_t>& data);

}  // namespace ovsdino::edge
