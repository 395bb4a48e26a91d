// ops/row_sum.h: the sum of each token's rows, sum_k rows[row_of[t, k]] in fp32 and in order of k, not taken yet: the
// norm that reads it takes it in its own pass.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

using at::Tensor;

struct RowSum {
  Tensor rows_RD;    // [R, D]; undefined: no sum
  Tensor row_of_TK;  // int32
};

}  // namespace switchyard::ops
