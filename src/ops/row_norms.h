// ops/row_norms.h: how long each token is.
#pragma once

#include <ATen/ATen.h>

namespace switchyard::ops {

// The Euclidean norm of each row of x [T, D], fp32 [T]; no gradient. On CUDA D a multiple of 8.
at::Tensor row_norms(const at::Tensor& x_TD);

}  // namespace switchyard::ops
