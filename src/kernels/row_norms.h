// kernels/row_norms.h: how long each token is.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// norm[t] = sqrt(sum_d x[t, d]^2), summed in fp32 (fp64 on a CPU)
template <class T>
struct RowNorms {
  const T* x;   // [T, D]
  float* norm;  // [T] overwritten
  std::int64_t tokens;
  int width;  // a multiple of 8 on CUDA
};

template <class T>
void row_norms(const RowNorms<T>&, Stream);  // bf16, float
template <class T>
void row_norms_cpu(const RowNorms<T>&, Range tokens);  // float, double

}  // namespace switchyard::kernels
