// kernels/row_sum.h: a sum over each token's rows in expert order that the kernel which reads it takes itself.
#pragma once

namespace switchyard::kernels {

template <class T>
struct RowSum {
  const T* rows = nullptr;      // [R, D] in expert order; null: no sum
  const int* row_of = nullptr;  // [T, K] rows of token t; -1 adds nothing
  int top_k = 0;
};

}  // namespace switchyard::kernels
