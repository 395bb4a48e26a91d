// ops/moe_ffn.h: the routed experts as one differentiable operation: gather, experts, weighted gather-sum.
#pragma once

#include "ops/activation.h"
#include "ops/addend.h"
#include "ops/dispatch_plan.h"
#include "ops/grouped_products.h"
#include "ops/hidden_dropout.h"
#include "ops/zero_experts.h"

namespace switchyard::ops {

struct ExpertWeights {
  const Parameter* up;    // [E, N, D]; gated activations [E, 2N, D]: N gate rows, then N value rows
  const Parameter* down;  // [E, D, N]
  ActivationKind kind;
};

struct MoeFfnOptions {
  bool recompute = false;  // backward computes the hidden units again, from x and the plan, instead of keeping them
  HiddenDropout dropout = {};
  ZeroExperts zero = {};  // join the sum; their assignments have no row in the plan
};

// out[t] = sum_k weight[t,k] * down_e drop(act(up_e x[t])),  e = the expert of (t, k) in the plan; and what zero
// experts add to it. x [T, D], weight [T, K] fp32. The weight's gradient comes from the activation A and its gradient,
// dw = <dA, A>, so the experts' outputs are never kept: only the pre-activation, or A where that suffices, or both
// where A comes with the products; and x, or its rows where the products leave them.
Tensor moe_ffn(const Tensor& x_TD, const Tensor& weight_TK, const ExpertWeights& experts, const DispatchPlan& plan,
               const GroupedProducts& products, const MoeFfnOptions& options = {});

// The same where a norm reads it: the rows and a stand-in for their sum; the sum itself where zero experts join it.
Addend moe_ffn_rows(const Tensor& x_TD, const Tensor& weight_TK, const ExpertWeights& experts, const DispatchPlan& plan,
                    const GroupedProducts& products, const MoeFfnOptions& options = {});

// A loop over experts in plain ATen; expert_TK [T, K] int32.
Tensor moe_ffn_reference(const Tensor& x_TD, const Tensor& weight_TK, const Tensor& expert_TK,
                         const ExpertWeights& experts, const MoeFfnOptions& options = {});

}  // namespace switchyard::ops
