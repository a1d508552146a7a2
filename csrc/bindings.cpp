// Python module ovsdino._C: kernels on raw pointers, no torch.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of ovsdino; pointers are integers, shapes and strides are in elements.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["cuda"] = false;
        return info;
      },
      "What this module was built with.");
}
