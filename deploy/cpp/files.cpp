#include "files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace ovsdino::edge {
namespace {

constexpr int64_t kMaxPixels = 100000000;  // as ovsdino.io.images.MAX_PIXELS

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

// The next number of a PPM header, after white space and comments.
int64_t header_number(const std::vector<uint8_t>& data, size_t& at, const std::string& path) {
  while (at < data.size() && (std::strchr(" \t\r\n", data[at]) != nullptr || data[at] == '#') && data[at] != 0) {
    if (data[at] == '#') {
      while (at < data.size() && data[at] != '\n') ++at;
    } else {
      ++at;
    }
  }
  int64_t value = 0;
  const size_t start = at;
  for (; at < data.size() && data[at] >= '0' && data[at] <= '9' && at - start < 10; ++at) {
    value = value * 10 + (data[at] - '0');
  }
  if (at == start) fail(path, "damaged PPM header");
  return value;
}

void check_size(const std::string& path, int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > kMaxPixels || width > kMaxPixels || height * width > kMaxPixels) {
    fail(path, std::to_string(width) + "x" + std::to_string(height) + " pixels: expected 1 to 100000000 in all");
  }
}

uint32_t rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

// FIPS 180-4, section 4.2.2: the fractional parts of the cube roots of the first 64 primes.
constexpr std::array<uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void compress(std::array<uint32_t, 8>& state, const uint8_t* block) {
  std::array<uint32_t, 64> w{};
  for (size_t i = 0; i < 16; ++i) {
    w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 | uint32_t{block[4 * i + 2]} << 8 |
           uint32_t{block[4 * i + 3]};
  }
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  std::array<uint32_t, 8> v = state;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
    const uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + kRound[i] + w[i];
    const uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
    const uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
    v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
  }
  for (size_t i = 0; i < 8; ++i) state[i] += v[i];
}

}  // namespace

std::vector<uint8_t> read_file(const std::string& path, uint64_t most) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) fail(path, std::string("cannot read: ") + std::strerror(errno));
  if (!S_ISREG(facts.st_mode)) fail(path, "not a regular file");
  const auto size = static_cast<uint64_t>(facts.st_size);
  if (size > most) fail(path, std::to_string(size) + " bytes, at most " + std::to_string(most) + " are read");
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file) fail(path, std::string("cannot read: ") + std::strerror(errno));
  std::vector<uint8_t> data(size);
  if (std::fread(data.data(), 1, data.size(), file.get()) != data.size())
    fail(path, "became shorter while it was read");
  return data;
}

void write_file(const std::string& path, std::string_view header, const void* data, size_t size) {
  const std::string temporary = path + "." + std::to_string(getpid()) + ".tmp";
  File file(std::fopen(temporary.c_str(), "wbx"));
  if (!file) fail(path, std::string("cannot write: ") + std::strerror(errno));
  bool done = std::fwrite(header.data(), 1, header.size(), file.get()) == header.size() &&
              std::fwrite(data, 1, size, file.get()) == size && std::fflush(file.get()) == 0 &&
              fsync(fileno(file.get())) == 0;
  file.reset();
  done = done && std::rename(temporary.c_str(), path.c_str()) == 0;
  if (!done) {
    const int error = errno;
    std::remove(temporary.c_str());
    fail(path, std::string("cannot write: ") + std::strerror(error));
  }
}

Image blank_image(int64_t height, int64_t width, bool nv12) {
  check_size("raw frames", height, width);
  if (nv12 && (height % 2 != 0 || width % 2 != 0)) fail("raw frames", "NV12 has an even width and height");
  const int64_t size = nv12 ? height * width * 3 / 2 : height * width * 3;
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(size)), nv12};
}

Image read_image(const std::string& path, int64_t height, int64_t width, bool nv12) {
  const bool raw = height > 0 || width > 0;
  std::vector<uint8_t> data = read_file(path, 3 * static_cast<uint64_t>(kMaxPixels) + 1000);
  size_t start = 0;
  if (!raw) {
    if (data.size() < 2 || data[0] != 'P' || data[1] != '6') fail(path, "not a binary PPM (P6)");
    start = 2;
    width = header_number(data, start, path);
    height = header_number(data, start, path);
    const int64_t levels = header_number(data, start, path);
    check_size(path, height, width);
    if (levels != 255) fail(path, std::to_string(levels) + " levels: expected 255");
    ++start;  // the one white space before the pixels
  }
  Image image = blank_image(height, width, nv12);
  const size_t size = image.pixels.size();
  if (start > data.size() || data.size() - start != size) {
    fail(path, std::to_string(data.size()) + " bytes, expected " + std::to_string(start + size) + " for " +
                   std::to_string(width) + "x" + std::to_string(height) + (nv12 ? " NV12" : " RGB") + " pixels");
  }
  data.erase(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(start));
  image.pixels = std::move(data);
  return image;
}

void write_labels(const std::string& path, const std::vector<int32_t>& labels, int64_t height, int64_t width,
                  int64_t values) {
  const bool wide = values > 256;
  std::vector<uint8_t> bytes;
  bytes.reserve(labels.size() * (wide ? 2 : 1));
  for (const int32_t label : labels) {
    if (wide) bytes.push_back(static_cast<uint8_t>(label >> 8));
    bytes.push_back(static_cast<uint8_t>(label));
  }
  const std::string header =
      "P5\n" + std::to_string(width) + " " + std::to_string(height) + (wide ? "\n65535\n" : "\n255\n");
  write_file(path, header, bytes.data(), bytes.size());
}

std::string one_line(std::string message) {
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return message;
}

std::string sha256(const std::vector<uint8_t>& data) {
  std::array<uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const size_t whole = data.size() / 64 * 64;
  for (size_t at = 0; at < whole; at += 64) compress(state, data.data() + at);
  std::vector<uint8_t> tail(data.begin() + static_cast<std::ptrdiff_t>(whole), data.end());
  tail.push_back(0x80);
  while (tail.size() % 64 != 56) tail.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) {
    tail.push_back(static_cast<uint8_t>((static_cast<uint64_t>(data.size()) * 8) >> shift));
  }
  for (size_t at = 0; at < tail.size(); at += 64) compress(state, tail.data() + at);
  std::string text;
  for (const uint32_t word : state) {
    for (int shift = 28; shift >= 0; shift -= 4) text.push_back("0123456789abcdef"[(word >> shift) & 15]);
  }
  return text;
}

}  // namespace ovsdino::edge
