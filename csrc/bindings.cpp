// Python module ovsdino._C: the kernels on raw pointers. No torch: pointers are integers (tensor.data_ptr(), an array's
// ctypes.data), shapes and strides are in elements, a CUDA stream is its handle. Every call releases the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "ovsdino/mask_pool.h"
#include "ovsdino/upsample_argmax.h"

namespace py = pybind11;

namespace {

using ovsdino::DType;

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "uint8" || name == "bool") return DType::kUint8;
  if (name == "int16") return DType::kInt16;
  if (name == "int32") return DType::kInt32;
  if (name == "bits") return DType::kBits;
  throw std::invalid_argument("unknown dtype " + name);
}

DType one_of(const std::string& name, std::initializer_list<DType> allowed, const char* what) {
  const DType dtype = dtype_of(name);
  for (const DType candidate : allowed) {
    if (candidate == dtype) return dtype;
  }
  throw std::invalid_argument(std::string(what) + " cannot be " + name);
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ovsdino::UpsampleArgmax upsample_argmax_of(uintptr_t logits, const std::string& dtype, std::array<int64_t, 4> shape,
                                           std::array<int64_t, 4> strides, std::array<int64_t, 2> size,
                                           uintptr_t labels, const std::string& labels_dtype, uintptr_t confidence,
                                           std::optional<float> threshold) {
  ovsdino::UpsampleArgmax op{};
  op.logits = pointer<const void>(logits);
  op.logits_dtype = one_of(dtype, {DType::kFloat32, DType::kFloat16, DType::kBFloat16}, "logits");
  op.batch = shape[0], op.classes = shape[1], op.in_h = shape[2], op.in_w = shape[3];
  op.stride_b = strides[0], op.stride_k = strides[1], op.stride_y = strides[2], op.stride_x = strides[3];
  op.out_h = size[0], op.out_w = size[1];
  op.labels = pointer<void>(labels);
  op.labels_dtype = one_of(labels_dtype, {DType::kUint8, DType::kInt16, DType::kInt32}, "labels");
  op.confidence = pointer<float>(confidence);
  op.has_threshold = threshold.has_value();
  op.threshold = threshold.value_or(0.0f);
  return op;
}

py::dict build_info() {
  py::dict info;
#ifdef OVSDINO_WITH_CUDA
  info["cuda"] = true;
  info["cuda_archs"] = OVSDINO_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["cuda_archs"] = "";
#endif
  info["compiler"] = OVSDINO_COMPILER;
  info["isa"] = ovsdino::isa_name(ovsdino::active_isa());
  return info;
}

ovsdino::MaskPool mask_pool_of(uintptr_t features, const std::string& dtype, std::array<int64_t, 3> shape,
                               std::array<int64_t, 2> strides, uintptr_t masks, const std::string& masks_dtype,
                               int64_t mask_count, std::array<int64_t, 3> masks_strides, uintptr_t means,
                               uintptr_t areas) {
  ovsdino::MaskPool op{};
  op.features = pointer<const void>(features);
  op.features_dtype = one_of(dtype, {DType::kFloat32, DType::kFloat16, DType::kBFloat16}, "features");
  op.batch = shape[0], op.tokens = shape[1], op.channels = shape[2];
  op.features_stride_b = strides[0], op.features_stride_n = strides[1];
  op.masks = pointer<const void>(masks);
  op.masks_dtype = one_of(masks_dtype, {DType::kFloat32, DType::kUint8, DType::kBits}, "masks");
  op.mask_count = mask_count;
  op.masks_stride_b = masks_strides[0], op.masks_stride_m = masks_strides[1], op.masks_stride_n = masks_strides[2];
  op.means = pointer<void>(means);
  op.areas = pointer<float>(areas);
  return op;
}

// Binds f(op, extra...) with the arguments of make(...), then the extra ones.
template <typename Op, typename Result, typename... Fields, typename... Extra>
void define(py::module_& m, const char* name, const char* doc, Op (*make)(Fields...),
            Result (*f)(const Op&, Extra...)) {
  m.def(
      name,
      [make, f](Fields... fields, Extra... extra) {
        const Op op = make(fields...);
        const py::gil_scoped_release release;
        return f(op, extra...);
      },
      doc);
}

#ifdef OVSDINO_WITH_CUDA
void upsample_argmax_cuda(const ovsdino::UpsampleArgmax& op, uintptr_t stream) {
  ovsdino::upsample_argmax_cuda(op, pointer<void>(stream));
}

void mask_pool_cuda(const ovsdino::MaskPool& op, uintptr_t stream) {
  ovsdino::mask_pool_cuda(op, pointer<void>(stream));
}
#endif

constexpr const char* kUpsampleDoc =
    "(logits, dtype, shape[4], strides[4], size[2], labels, labels_dtype, confidence or 0, threshold or None";
constexpr const char* kMaskPoolDoc =
    "(features, dtype, shape[3], strides[2], masks, masks_dtype, mask_count, masks_strides[3], means, areas";

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of ovsdino; pointers are integers, shapes and strides are in elements.";
  m.attr("VERSION") = 1;  // of these functions; ovsdino/ops/dispatch.py asks for the same
  m.def("build_info", &build_info, "What this module was built with, and the instruction set its CPU kernels use.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        if (!ovsdino::set_isa(name.c_str())) throw std::invalid_argument("no CPU kernels for " + name + " here");
      },
      py::arg("name"), "Use the CPU kernels of one instruction set: baseline, avx2, avx512 or best (the default).");
  using std::string;
  const string upsample = kUpsampleDoc, pool = kMaskPoolDoc;
  define(m, "upsample_argmax_cpu", (upsample + ", threads)").c_str(), upsample_argmax_of, ovsdino::upsample_argmax_cpu);
  define(m, "upsample_argmax_host", (upsample + "): the CUDA kernel's body on the CPU, for tests").c_str(),
         upsample_argmax_of, ovsdino::upsample_argmax_host);
  define(m, "mask_pool_cpu", (pool + ", max_density, threads) -> False if denser: areas only").c_str(), mask_pool_of,
         ovsdino::mask_pool_cpu);
  define(m, "mask_pool_backward_cpu", (pool + ", max_density, threads): writes features from means").c_str(),
         mask_pool_of, ovsdino::mask_pool_backward_cpu);
  define(m, "mask_pool_host", (pool + "): the CUDA kernel's body on the CPU, for tests").c_str(), mask_pool_of,
         ovsdino::mask_pool_host);
#ifdef OVSDINO_WITH_CUDA
  define(m, "upsample_argmax_cuda", (upsample + ", stream)").c_str(), upsample_argmax_of, upsample_argmax_cuda);
  define(m, "mask_pool_cuda", (pool + ", stream)").c_str(), mask_pool_of, mask_pool_cuda);
#endif
}
