// ops/zero_experts.h: experts without products in the sum of a token's experts: copies of x, and constant experts
// a1 x + a2 v, (a1, a2) = softmax(W x) (moe_spec E8, E10; AdaMoE, Zeng et al. 2024; MoE++, Jin et al. 2024).
#pragma once

#include <ATen/ATen.h>

#include "kernels/zero_experts.h"

namespace switchyard::ops {

using at::Tensor;

// Which assignments of a layer go to such experts (kernels/zero_experts.h). As it starts: none.
struct ZeroExperts {
  Tensor expert_TK;   // int32 columns of the router, -1: without a place; undefined: there are no such experts
  Tensor dropped_TK;  // bool: without a place; undefined: none is
  int first_copy = 0, first_constant = 0, end = 0;
  int of_dropped = kernels::kNoZeroExpert;
  Tensor map_J2D, vector_JD;  // fp32, differentiable; undefined without constants

  bool any() const { return expert_TK.defined(); }
  int constants() const { return map_J2D.defined() ? static_cast<int>(map_J2D.size(0)) : 0; }
};

// out[t] += sum_k weight[t,k] Z(x[t]) in place over the assignments to such experts, rounded once. x, out [T, D];
// weight [T, K] fp32 (fp64 beside fp64). Not differentiable: ops/moe_ffn.h has it inside.
void add_zero_experts_(const Tensor& out_TD, const Tensor& x_TD, const Tensor& weight_TK, const ZeroExperts& experts);

// Its gradients: d_x added to, d_weight written where it belongs to such an assignment; {d map, d vector} are returned,
// undefined without constants.
std::pair<Tensor, Tensor> zero_experts_backward_(const Tensor& d_x_TD, const Tensor& d_weight_TK, const Tensor& x_TD,
                                                 const Tensor& d_out_TD, const Tensor& weight_TK,
                                                 const ZeroExperts& experts);

// What is added, in plain ATen and differentiable, [T, D] of x's type.
Tensor zero_experts_reference(const Tensor& x_TD, const Tensor& weight_TK, const ZeroExperts& experts);

}  // namespace switchyard::ops
