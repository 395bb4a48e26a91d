// The losses that keep experts evenly used (moe_spec R8) and logits small (R10).
#pragma once

#include <vector>

#include "config/config.h"
#include "model/moe/routing.h"
#include "ops/step_context.h"

namespace switchyard {

// What the losses of L layers are made of. All layers at once cost the kernel launches of one.
struct RoutingSums {
  at::Tensor count_LGE;                          // int32: assignments
  at::Tensor prob_LGE, importance_LE, z_sum_L1;  // fp32, differentiable; see ops/router_scores.h
  std::int64_t tokens = 0, group_size = 0;       // of one layer's micro-batch
  int experts = 0, top_k = 0;
};
RoutingSums stacked(const std::vector<Routing>& layers);  // at least one

// Raw: coefficients are the caller's. With f = count / T (detached) and P = mean probability, per group of tokens (all,
// or a sequence each), mean over groups, a value a layer [L]:
//   switch           E * sum_i f_i P_i            K when uniform, 1 with balance_topk_normalize (Fedus et al. 2021)
//   cv_squared       E * sum_i (P_i - 1/E)^2      squared coefficient of variation of P (Shazeer et al. 2017)
//   cv_squared_topk  the same of the sums of the chosen weights
//   none             an undefined tensor
// scope global: f from the counts of all data ranks (Qiu et al. 2025).
at::Tensor balance_loss(const RoutingSums& sums, const RouterConfig& config, const StepContext& step);

// mean over tokens of (ln sum_e e^l)^2 (ST-MoE, Zoph et al. 2022), a value a layer [L].
at::Tensor z_loss(const RoutingSums& sums);

struct LayerLosses {
  at::Tensor balance_L, z_loss_L;  // raw and detached; balance_L undefined where the config asks for none
  at::Tensor weighted_L;  // differentiable: the sum of both with their coefficients; undefined where those are 0
};
LayerLosses layer_losses(const RoutingSums& sums, const RouterConfig& config, const StepContext& step);

}  // namespace switchyard
