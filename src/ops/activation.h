// ops/activation.h: the MLP's nonlinearity.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "kernels/activation.h"

namespace switchyard::ops {

using at::Tensor;
using kernels::ActivationKind;
using kernels::is_gated;

ActivationKind parse_activation(const std::string& name);  // relu2, gelu, swiglu, geglu; asserts on others

// pre [T, N], or [T, 2N] for the gated kinds (first half gate, second half value). Returns [T, N].
Tensor activation(const Tensor& pre, ActivationKind kind);
Tensor activation_reference(const Tensor& pre, ActivationKind kind);

// The raw forms that moe_ffn uses on rows in expert order; no autograd. weight_R fp32 or undefined (1); token_of_row_R
// marks padding by -1; row_count one device int or undefined. See kernels/activation.h.
void activation_rows(const Tensor& pre, const Tensor& weight_R, const Tensor& token_of_row_R, const Tensor& row_count,
                     ActivationKind kind, const Tensor& out_RN);
void activation_rows_backward(const Tensor& pre, const Tensor& d_out_RN, const Tensor& weight_R,
                              const Tensor& token_of_row_R, const Tensor& row_count, ActivationKind kind,
                              const Tensor& d_pre, const Tensor& again_RN, const Tensor& d_weight_R);

}  // namespace switchyard::ops
