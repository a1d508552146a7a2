// Python module ovsdino._C: the kernels on raw pointers, with no torch. The functions of each op are in bind_<op>.cpp.
#include "bindings.h"

#include "cpu/isa.h"

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of ovsdino; pointers are integers, shapes and strides are in elements.";
  m.attr("VERSION") = 9;  // of these functions; ovsdino/native.py asks for the same
  m.def("build_info", &build_info, "What this module was built with, and the instruction set its CPU kernels use.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        if (!ovsdino::set_isa(name.c_str())) throw std::invalid_argument("no CPU kernels for " + name + " here");
      },
      pybind11::arg("name"),
      "Use the CPU kernels of one instruction set: baseline, avx2, avx512 or best (the default).");
  ovsdino::bind::bind_guided_upsample(m);
  ovsdino::bind::bind_mask_pool(m);
  ovsdino::bind::bind_preprocess(m);
  ovsdino::bind::bind_structure_attention(m);
  ovsdino::bind::bind_upsample_argmax(m);
}
