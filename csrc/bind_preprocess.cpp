#include "bindings.h"
#include "ovsdino/preprocess.h"
#include "ovsdino/resize_levels.h"

namespace ovsdino::bind {
namespace {

Preprocess preprocess_of(uintptr_t image, const std::string& format, std::array<int64_t, 3> shape,
                         std::array<int64_t, 4> strides, std::array<int64_t, 2> size, uintptr_t out,
                         const std::string& dtype, std::array<float, 3> gain, std::array<float, 3> shift,
                         bool antialias) {
  if (format != "rgb" && format != "nv12") throw std::invalid_argument("unknown pixel format " + format);
  Preprocess op{};
  op.image = pointer<const uint8_t>(image);
  op.format = format == "rgb" ? PixelFormat::kRgb : PixelFormat::kNv12;
  op.batch = shape[0], op.in_h = shape[1], op.in_w = shape[2];
  op.stride_b = strides[0], op.stride_y = strides[1], op.stride_x = strides[2], op.stride_c = strides[3];
  op.out_h = size[0], op.out_w = size[1];
  op.out = pointer<void>(out);
  op.out_dtype = one_of(dtype, {DType::kFloat32, DType::kFloat16, DType::kBFloat16}, "out");
  for (size_t c = 0; c < 3; ++c) op.gain[c] = gain[c], op.shift[c] = shift[c];
  op.antialias = antialias;
  return op;
}

ResizeLevels resize_levels_of(uintptr_t image, std::array<int64_t, 2> shape, int64_t stride_y,
                              std::array<uintptr_t, 2> start, std::array<uintptr_t, 2> weights,
                              std::array<int32_t, 2> bits, std::array<int64_t, 2> size, uintptr_t out,
                              std::array<float, 3> gain, std::array<float, 3> shift) {
  ResizeLevels op{};
  op.image = pointer<const uint8_t>(image);
  op.in_h = shape[0], op.in_w = shape[1], op.stride_y = stride_y;
  op.down = {pointer<const int64_t>(start[0]), pointer<const int32_t>(weights[0]), bits[0]};
  op.across = {pointer<const int64_t>(start[1]), pointer<const int32_t>(weights[1]), bits[1]};
  op.out_h = size[0], op.out_w = size[1];
  op.out = pointer<float>(out);
  for (size_t c = 0; c < 3; ++c) op.gain[c] = gain[c], op.shift[c] = shift[c];
  return op;
}

#ifdef OVSDINO_WITH_CUDA
void preprocess_on_stream(const Preprocess& op, uintptr_t stream) { preprocess_cuda(op, pointer<void>(stream)); }
#endif

constexpr const char* kArguments =
    "(image, 'rgb' or 'nv12', shape[batch, height, width], strides[4], size[2], out, dtype, gain[3], shift[3], "
    "antialias";

}  // namespace

void bind_preprocess(pybind11::module_& m) {
  const std::string args = kArguments;
  define(m, "preprocess_host", args + "): the CUDA kernel's body on the CPU, for tests", preprocess_of,
         preprocess_host);
  define(m, "resize_levels_cpu",
         "(image, shape[height, width], bytes a row, start[2], weights[2], bits[2], size[2], out, gain[3], shift[3], "
         "threads): addresses of 0 for a side that stays",
         resize_levels_of, resize_levels_cpu);
#ifdef OVSDINO_WITH_CUDA
  define(m, "preprocess_cuda", args + ", stream)", preprocess_of, preprocess_on_stream);
#endif
}

}  // namespace ovsdino::bind
