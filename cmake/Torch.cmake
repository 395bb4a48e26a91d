# switchyard_torch: headers and libraries of the torch 2.11 package, as imported targets in both modes.
#   WITH_CUDA=OFF  libc10 and libtorch_cpu; needs neither a CUDA toolkit nor torch's CUDA libraries.
#   WITH_CUDA=ON   also libc10_cuda and libtorch_cuda, the CUDA language, NCCL of the same package set.
# find_package(Torch) is not used: it insists on a toolkit even for CPU programs, and its flags differ with the mode, so
# that no object file could be shared between the two builds.
if(NOT EXISTS "${SWITCHYARD_TORCH}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "SWITCHYARD_TORCH=${SWITCHYARD_TORCH} holds no lib/libtorch_cpu.so; run runs/setup.sh, or pass the "
                      "folder of the torch 2.11.0 Python package: -DSWITCHYARD_TORCH=…/site-packages/torch")
endif()
get_filename_component(SWITCHYARD_TORCH "${SWITCHYARD_TORCH}" ABSOLUTE)
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

function(switchyard_import_torch)
  foreach(name ${ARGN})
    add_library(torch_${name} SHARED IMPORTED GLOBAL)
    set_target_properties(torch_${name} PROPERTIES IMPORTED_LOCATION ${SWITCHYARD_TORCH}/lib/lib${name}.so)
    target_link_libraries(switchyard_torch INTERFACE torch_${name})
  endforeach()
endfunction()

# Headers are named through a link in the build tree: their path, and so what ccache knows, is the same for every clone
# and every place that torch may be installed in. (GCC would resolve the link again without the last option.)
set(torch_link ${CMAKE_BINARY_DIR}/torch)
file(CREATE_LINK ${SWITCHYARD_TORCH} ${torch_link} SYMBOLIC)
add_library(switchyard_torch_headers INTERFACE)      # the same in both modes, and with it the precompiled header
target_include_directories(switchyard_torch_headers SYSTEM INTERFACE
  ${torch_link}/include ${torch_link}/include/torch/csrc/api/include)
target_compile_definitions(switchyard_torch_headers INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  target_compile_options(switchyard_torch_headers INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-canonical-system-headers>)
endif()
# at::parallel_for is a loop on one thread in a file compiled without OpenMP, and nothing says so.
target_compile_options(switchyard_torch_headers INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
add_library(switchyard_torch INTERFACE)
target_link_libraries(switchyard_torch INTERFACE switchyard_torch_headers)
set(torch_rpath ${SWITCHYARD_TORCH}/lib)

if(WITH_CUDA)
  if(NOT EXISTS "${SWITCHYARD_TORCH}/lib/libtorch_cuda.so" OR NOT EXISTS "${site_packages}/nvidia/nccl/include/nccl.h")
    message(FATAL_ERROR "WITH_CUDA=ON needs the full torch package: ${SWITCHYARD_TORCH} lacks lib/libtorch_cuda.so, or "
                        "${site_packages}/nvidia/nccl is missing; run runs/setup.sh --cuda")
  endif()
  # Machine code for Hopper, whose own kernels compile for 90a alone, and PTX that the driver compiles for every other GPU
  # from capability 8.0 on.
  set(CMAKE_CUDA_ARCHITECTURES "90a-real;80-virtual" CACHE STRING "GPU architectures, as CMake writes them")
  enable_language(CUDA)
  set(CMAKE_INCLUDE_SYSTEM_FLAG_CUDA "-isystem ")   # apart, not "-isystem=": ccache then makes the path relative
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  find_package(CUDAToolkit 13.0 REQUIRED)
  add_library(nccl SHARED IMPORTED GLOBAL)
  set_target_properties(nccl PROPERTIES IMPORTED_LOCATION ${site_packages}/nvidia/nccl/lib/libnccl.so.2)
  target_include_directories(nccl SYSTEM INTERFACE ${site_packages}/nvidia/nccl/include)
  # Kernels are registered when the library loads; no symbol of libtorch_cuda needs to be named by ours.
  target_link_options(switchyard_torch INTERFACE LINKER:--no-as-needed)
  switchyard_import_torch(torch_cuda c10_cuda)
  target_link_libraries(switchyard_torch INTERFACE nccl CUDA::cudart)
  # ATen's CUDA headers include cuBLAS's and more, which a toolkit made of the compiler alone does not have.
  target_include_directories(switchyard_torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS} ${site_packages}/nvidia/cu13/include)
  target_compile_definitions(switchyard_torch INTERFACE SWITCHYARD_WITH_CUDA)
  list(APPEND torch_rpath ${site_packages}/nvidia/nccl/lib ${site_packages}/nvidia/cu13/lib)
endif()
switchyard_import_torch(torch_cpu c10)
# The pool of threads is torch's own: its package brings the library of GCC's OpenMP, or was built with the system's.
if(EXISTS ${SWITCHYARD_TORCH}/lib/libgomp.so.1)
  add_library(torch_gomp SHARED IMPORTED GLOBAL)
  set_target_properties(torch_gomp PROPERTIES IMPORTED_LOCATION ${SWITCHYARD_TORCH}/lib/libgomp.so.1)
  target_link_libraries(switchyard_torch INTERFACE torch_gomp)
else()
  target_link_options(switchyard_torch INTERFACE -fopenmp)
endif()
set(CMAKE_BUILD_RPATH ${torch_rpath})
