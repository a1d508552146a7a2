// What the files that bind one op each share. Pointers are integers, shapes and strides are in elements, a CUDA stream
// is its handle; every call of a kernel releases the GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "ovsdino/types.h"

namespace ovsdino::bind {

// One function an op, in csrc/bind_<op>.cpp; bindings.cpp calls them all.
void bind_guided_upsample(pybind11::module_& m);
void bind_mask_pool(pybind11::module_& m);
void bind_preprocess(pybind11::module_& m);
void bind_structure_attention(pybind11::module_& m);
void bind_upsample_argmax(pybind11::module_& m);

inline DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "uint8" || name == "bool") return DType::kUint8;
  if (name == "int16") return DType::kInt16;
  if (name == "int32") return DType::kInt32;
  throw std::invalid_argument("unknown dtype " + name);
}

inline DType one_of(const std::string& name, std::initializer_list<DType> allowed, const char* what) {
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

// Binds f(op, extra...) with the arguments of make(...), then the extra ones.
template <typename Op, typename Result, typename... Fields, typename... Extra>
void define(pybind11::module_& m, const char* name, const std::string& doc, Op (*make)(Fields...),
            Result (*f)(const Op&, Extra...)) {
  m.def(
      name,
      [make, f](Fields... fields, Extra... extra) {
        const Op op = make(fields...);
        const pybind11::gil_scoped_release release;
        return f(op, extra...);
      },
      doc.c_str());
}

}  // namespace ovsdino::bind
