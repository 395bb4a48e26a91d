// ops/fused_mlp.h: the relu^2 MLP as one operation, where products come with the activation.
#pragma once

#include "ops/grouped_products.h"

namespace switchyard::ops {

// Whether fused_mlp serves x [T, D]: on GPUs of capability 9.0, in bf16, for whole tiles of tokens.
bool has_fused_mlp(const Tensor& x_TD);

// relu(x up^T)^2 down^T, up [N, D], down [D, N]. Keeps x and the activation for backward.
Tensor fused_mlp(const Tensor& x_TD, const Parameter& up, const Parameter& down);

}  // namespace switchyard::ops
