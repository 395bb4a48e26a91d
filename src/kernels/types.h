// What every kernel header needs. Kernels take plain pointers, sizes and a stream; they know nothing of torch or of
// GPT.
//
// A kernel comes in two forms with one description (a struct of pointers and sizes):
//   name(description, stream)        CUDA, activations bf16 or float; asynchronous on the stream, capturable
//   name_cpu(description, range)     the rows [begin, end) of the work, on the calling thread; float or double
// CUDA: pointers are 16-byte aligned and tokens are fewer than 2^31; nothing allocates or waits for the device.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace switchyard::kernels {

// The upper half of a float. One type for host and device code: a template over it must have the same name in both.
struct bf16 {
  std::uint16_t bits;
};

// IEEE half precision.
struct fp16 {
  std::uint16_t bits;
};

using Stream = CUstream_st*;

struct Range {
  std::int64_t begin, end;
};

}  // namespace switchyard::kernels
