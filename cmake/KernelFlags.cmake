# switchyard_kernel_flags: how the CPU kernels (and the test of their inline functions) are compiled.
#   x86-64-v3         AVX2 and FMA: every server and desktop processor since 2013 (Haswell) and 2015 (Excavator, Zen); twice the
#                     throughput of the baseline's SSE2. LibTorch chooses at run time; our few kernels choose at compile time.
#   no -ffast-math    NaN must stay NaN, and sums must keep the order that is written. Only what changes no value is on:
#                     no errno, no floating-point traps. Products and sums may fuse.
#   x86-64-v4         only files *_wide_cpu.cpp, which are called where the processor is found to have AVX-512.
include(CheckCXXCompilerFlag)
add_library(switchyard_kernel_flags INTERFACE)
set(kernel_flags -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  check_cxx_compiler_flag(-march=x86-64-v3 HAVE_X86_64_V3)
  if(HAVE_X86_64_V3)
    list(APPEND kernel_flags -march=x86-64-v3)
  else()
    list(APPEND kernel_flags -mavx2 -mfma -mf16c -mbmi2)
  endif()
  file(GLOB wide_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/kernels/*_wide_cpu.cpp)
  set_source_files_properties(${wide_sources} PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512cd;-mavx512dq;-mavx512vl;-mprefer-vector-width=512")
endif()
target_compile_options(switchyard_kernel_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${kernel_flags}>")
