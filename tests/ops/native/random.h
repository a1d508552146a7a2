// Random tensors for the checks: any strides, any start, a buffer that ends with its last element, so that a sanitizer
// sees one byte too many.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "canary.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/types.h"

namespace check {

using ovsdino::DType;

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(generator_() % static_cast<uint64_t>(high - low + 1));
  }
  bool one_in(int64_t n) { return between(1, n) == 1; }
  float normal() { return normal_(generator_); }
  DType floating() { return std::vector<DType>{DType::kFloat32, DType::kFloat16, DType::kBFloat16}[between(0, 2)]; }

 private:
  std::mt19937_64 generator_;
  std::normal_distribution<float> normal_;
};

inline int64_t bytes_of(DType dtype) {
  if (dtype == DType::kFloat32 || dtype == DType::kInt32) return 4;
  return dtype == DType::kUint8 ? 1 : 2;
}

// Largest error of rounding 1 to the dtype.
inline double unit_of(DType dtype) {
  return dtype == DType::kFloat32 ? 1.2e-7 : dtype == DType::kFloat16 ? 1e-3 : 8e-3;
}

// A tensor of up to five dimensions in memory of its own.
class Array {
 public:
  // packed: the last dimensions that lie side by side. gaps: whether the others may have room between them.
  Array(Random* random, DType dtype, std::vector<int64_t> sizes, size_t packed, bool gaps = true)
      : dtype_(dtype), sizes_(std::move(sizes)), strides_(sizes_.size()) {
    std::vector<size_t> order(sizes_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
    for (size_t i = order.size() - 1; gaps && i > packed; --i) {
      std::swap(order[i], order[packed + static_cast<size_t>(random->between(0, static_cast<int64_t>(i - packed)))]);
    }
    int64_t stride = 1, count = 1;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i >= packed && gaps && random->one_in(4)) stride += random->between(1, 5);
      strides_[order[i]] = stride;
      stride *= sizes_[order[i]] > 0 ? sizes_[order[i]] : 1;
      count *= sizes_[order[i]];
    }
    int64_t length = count > 0 ? 1 : 0;
    for (size_t i = 0; i < sizes_.size() && count > 0; ++i) length += (sizes_[i] - 1) * strides_[i];
    start_ = gaps ? random->between(0, 3) : 0;
    memory_.resize(static_cast<size_t>(start_ + length - planted_short_read()) * bytes_of(dtype_));
    memory_.shrink_to_fit();
    if (memory_.empty()) memory_.reserve(1);  // an array cut to nothing still has an address
  }

  template <typename Make>
  void fill(const Make& make) {
    for (size_t i = 0; i + bytes_of(dtype_) <= memory_.size(); i += bytes_of(dtype_)) put(i, make());
  }

  void* data() { return memory_.data() + start_ * bytes_of(dtype_); }
  DType dtype() const { return dtype_; }
  int64_t stride(size_t dim) const { return strides_[dim]; }
  double at(std::initializer_list<int64_t> index) const {
    int64_t element = start_;
    size_t dim = 0;
    for (const int64_t i : index) element += i * strides_[dim++];
    return get(static_cast<size_t>(element * bytes_of(dtype_)));
  }

 private:
  template <typename T>
  T read(size_t byte) const {
    T value;
    std::memcpy(&value, memory_.data() + byte, sizeof(value));
    return value;
  }
  double get(size_t byte) const {
    if (dtype_ == DType::kFloat32) return read<float>(byte);
    if (dtype_ == DType::kFloat16) return ovsdino::to_float(read<ovsdino::Half>(byte));
    if (dtype_ == DType::kBFloat16) return ovsdino::to_float(read<ovsdino::BFloat16>(byte));
    if (dtype_ == DType::kInt16) return read<int16_t>(byte);
    if (dtype_ == DType::kInt32) return read<int32_t>(byte);
    return memory_[byte];
  }
  template <typename T>
  void write(size_t byte, float value) {
    T converted;
    ovsdino::from_float(value, &converted);
    std::memcpy(memory_.data() + byte, &converted, sizeof(converted));
  }
  void put(size_t byte, float value) {
    if (dtype_ == DType::kFloat32) return write<float>(byte, value);
    if (dtype_ == DType::kFloat16) return write<ovsdino::Half>(byte, value);
    if (dtype_ == DType::kBFloat16) return write<ovsdino::BFloat16>(byte, value);
    memory_[byte] = static_cast<uint8_t>(value);
  }

  DType dtype_;
  std::vector<int64_t> sizes_, strides_;
  int64_t start_ = 0;
  std::vector<uint8_t> memory_;
};

inline bool close(double got, double expected, double tolerance) {
  return std::fabs(got - expected) <= tolerance;  // false for NaN
}

// One random case each; the number of wrong elements.
int64_t number_faults(Random* random);
int64_t mask_pool_faults(Random* random);
int64_t mask_pool_backward_faults(Random* random);
int64_t upsample_argmax_faults(Random* random);
int64_t guided_upsample_faults(Random* random);
int64_t guided_upsample_backward_faults(Random* random);
int64_t preprocess_faults(Random* random);

}  // namespace check
