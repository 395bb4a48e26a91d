# switchyard_torch: headers and libraries of the torch 2.11 package.
#   WITH_CUDA=OFF  libc10 and libtorch_cpu as imported targets: find_package(Torch) would insist on a CUDA toolkit.
#   WITH_CUDA=ON   find_package(Torch), the CUDA language, NCCL of the same package set.
if(NOT EXISTS "${SWITCHYARD_TORCH}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "SWITCHYARD_TORCH=${SWITCHYARD_TORCH} holds no lib/libtorch_cpu.so; run runs/setup.sh, or pass the "
                      "folder of the torch 2.11.0 Python package: -DSWITCHYARD_TORCH=…/site-packages/torch")
endif()
get_filename_component(site_packages "${SWITCHYARD_TORCH}" DIRECTORY)

# torch ships fmt 12 in its include folder, and Debian's spdlog needs the system's fmt: a folder with only that one in
# front of torch's decides for every file.
set(fmt_first ${CMAKE_BINARY_DIR}/fmt_first)
file(MAKE_DIRECTORY ${fmt_first})
file(CREATE_LINK /usr/include/fmt ${fmt_first}/fmt SYMBOLIC)
add_library(spdlog_headers INTERFACE)
target_include_directories(spdlog_headers SYSTEM BEFORE INTERFACE ${fmt_first})
target_compile_definitions(spdlog_headers INTERFACE SPDLOG_FMT_EXTERNAL)
target_link_libraries(spdlog_headers INTERFACE fmt)

add_library(switchyard_torch INTERFACE)
if(WITH_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 90a CACHE STRING "GPU architectures")
  set(TORCH_CUDA_ARCH_LIST "9.0a" CACHE STRING "")
  enable_language(CUDA)
  list(APPEND CMAKE_PREFIX_PATH ${SWITCHYARD_TORCH})
  find_package(Torch REQUIRED)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD 17)          # only now: before find_package it breaks torch's own checks
  string(REPLACE "-D_GLIBCXX_USE_CXX11_ABI=1" "" torch_flags "${TORCH_CXX_FLAGS}")
  target_include_directories(switchyard_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS} ${site_packages}/nvidia/nccl/include)
  target_link_libraries(switchyard_torch INTERFACE torch ${site_packages}/nvidia/nccl/lib/libnccl.so.2 CUDA::cudart)
  target_compile_definitions(switchyard_torch INTERFACE SWITCHYARD_WITH_CUDA)
else()
  foreach(name c10 torch_cpu)
    add_library(torch_${name} SHARED IMPORTED)
    set_target_properties(torch_${name} PROPERTIES IMPORTED_LOCATION ${SWITCHYARD_TORCH}/lib/lib${name}.so)
  endforeach()
  target_include_directories(switchyard_torch SYSTEM INTERFACE
    ${SWITCHYARD_TORCH}/include ${SWITCHYARD_TORCH}/include/torch/csrc/api/include)
  target_link_libraries(switchyard_torch INTERFACE torch_torch_cpu torch_c10)
endif()
target_compile_definitions(switchyard_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
set(CMAKE_BUILD_RPATH ${SWITCHYARD_TORCH}/lib ${site_packages}/nvidia/nccl/lib ${site_packages}/nvidia/cu13/lib)
