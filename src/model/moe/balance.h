// The losses that keep experts evenly used (moe_spec R8) and logits small (R10). Raw: coefficients are the caller's.
#pragma once

#include "config/config.h"
#include "model/moe/routing.h"
#include "ops/step_context.h"

namespace switchyard {

// With f = count / T (detached) and P = mean probability, per group of tokens (all, or a sequence each), mean over
// groups:
//   switch           E * sum_i f_i P_i            K when uniform, 1 with balance_topk_normalize (Fedus et al. 2021)
//   cv_squared       E * sum_i (P_i - 1/E)^2      squared coefficient of variation of P (Shazeer et al. 2017)
//   cv_squared_topk  the same of the sums of the chosen weights
//   none             an undefined tensor
// scope global: f from the counts of all data ranks (Qiu et al. 2025).
at::Tensor balance_loss(const Routing& routing, const RouterConfig& config, const StepContext& step);

// mean over tokens of (ln sum_e e^l)^2 (ST-MoE, Zoph et al. 2022).
at::Tensor z_loss(const Routing& routing);

}  // namespace switchyard
