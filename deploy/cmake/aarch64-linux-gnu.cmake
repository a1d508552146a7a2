# Cross-compile for a Jetson or another 64-bit Arm board: -DCMAKE_TOOLCHAIN_FILE=deploy/cmake/aarch64-linux-gnu.cmake
# docs/cross_compile.md has the commands. OVSDINO_SYSROOT names a copy of the board's root folder, for TensorRT, CUDA and
# ONNX Runtime; without it only the compiler's own libraries are found.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)

set(OVSDINO_SYSROOT "" CACHE PATH "Copy of the board's root folder")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES OVSDINO_SYSROOT)
if(OVSDINO_SYSROOT)
  set(CMAKE_SYSROOT "${OVSDINO_SYSROOT}")
  list(APPEND CMAKE_PREFIX_PATH "${OVSDINO_SYSROOT}/usr" "${OVSDINO_SYSROOT}/usr/local/cuda/targets/aarch64-linux")
endif()
# Programs come from this machine, libraries and headers from the board.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
if(OVSDINO_SYSROOT)
  set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
  set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
endif()

# ctest and custom commands run what they built through it.
find_program(OVSDINO_EMULATOR NAMES qemu-aarch64 qemu-aarch64-static)
if(OVSDINO_EMULATOR)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${OVSDINO_EMULATOR};-L;/usr/aarch64-linux-gnu")
endif()
