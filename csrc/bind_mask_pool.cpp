#include "bindings.h"
#include "ovsdino/mask_pool.h"

namespace ovsdino::bind {
namespace {

MaskPool mask_pool_of(uintptr_t features, const std::string& dtype, std::array<int64_t, 3> shape,
                      std::array<int64_t, 2> strides, uintptr_t masks, const std::string& masks_dtype,
                      int64_t mask_count, std::array<int64_t, 3> masks_strides, uintptr_t means, uintptr_t areas) {
  MaskPool op{};
  op.features = pointer<const void>(features);
  op.features_dtype = one_of(dtype, {DType::kFloat32, DType::kFloat16, DType::kBFloat16}, "features");
  op.batch = shape[0], op.tokens = shape[1], op.channels = shape[2];
  op.features_stride_b = strides[0], op.features_stride_n = strides[1];
  op.masks = pointer<const void>(masks);
  op.masks_dtype = one_of(masks_dtype, {DType::kFloat32, DType::kUint8}, "masks");
  op.mask_count = mask_count;
  op.masks_stride_b = masks_strides[0], op.masks_stride_m = masks_strides[1], op.masks_stride_n = masks_strides[2];
  op.means = pointer<void>(means);
  op.areas = pointer<float>(areas);
  return op;
}

#ifdef OVSDINO_WITH_CUDA
void mask_pool_on_stream(const MaskPool& op, uintptr_t stream) { mask_pool_cuda(op, pointer<void>(stream)); }

void mask_pool_backward_on_stream(const MaskPool& op, uintptr_t stream) {
  mask_pool_backward_cuda(op, pointer<void>(stream));
}
#endif

constexpr const char* kArguments =
    "(features, dtype, shape[3], strides[2], masks, masks_dtype, mask_count, masks_strides[3], means, areas";

}  // namespace

void bind_mask_pool(pybind11::module_& m) {
  const std::string args = kArguments;
  define(m, "mask_pool_cpu", args + ", max_density, threads) -> False if denser: areas only", mask_pool_of,
         mask_pool_cpu);
  define(m, "mask_pool_backward_cpu", args + ", max_density, threads): writes features from means", mask_pool_of,
         mask_pool_backward_cpu);
  define(m, "mask_pool_host", args + "): the CUDA kernel's body on the CPU, for tests", mask_pool_of, mask_pool_host);
  define(m, "mask_pool_backward_host", args + "): the CUDA kernel's body on the CPU, for tests", mask_pool_of,
         mask_pool_backward_host);
#ifdef OVSDINO_WITH_CUDA
  define(m, "mask_pool_cuda", args + ", stream)", mask_pool_of, mask_pool_on_stream);
  define(m, "mask_pool_backward_cuda", args + ", stream)", mask_pool_of, mask_pool_backward_on_stream);
#endif
}

}  // namespace ovsdino::bind
