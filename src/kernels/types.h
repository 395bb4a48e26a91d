// What every kernel header needs. Kernels take plain pointers, sizes and a stream; they know nothing of torch or of GPT.
//
// A kernel comes in two forms with one description (a struct of pointers and sizes):
//   name(description, stream)        CUDA, activations bf16 or float; asynchronous on the stream, capturable
//   name_cpu(description, range)     the rows [begin, end) of the work, on the calling thread; float or double
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#endif

struct CUstream_st;

namespace switchyard::kernels {

#ifdef __CUDACC__
using bf16 = __nv_bfloat16;
#else
struct bf16 {
  std::uint16_t bits;
};
#endif

using Stream = CUstream_st*;

struct Range {
  std::int64_t begin, end;
};

}  // namespace switchyard::kernels
