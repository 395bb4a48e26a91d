// ops/fused_mlp.h: the MLP as one operation, where products come with the activation.
#pragma once

#include "ops/grouped_products.h"

namespace switchyard::ops {

// Whether fused_mlp serves x [T, D]: relu^2 and SwiGLU on GPUs of capability 9.0, in bf16, for whole tiles of tokens.
bool has_fused_mlp(const Tensor& x_TD, ActivationKind kind);

// act(x up^T) down^T, up [N, D] or gated [2N, D], down [D, N]. Keeps x, the activation, and what that is made of where
// it does not tell.
Tensor fused_mlp(const Tensor& x_TD, const Parameter& up, const Parameter& down, ActivationKind kind);

}  // namespace switchyard::ops
