// The losses that keep experts evenly used (moe_spec R8, R9, R11) and logits small (R10).
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
  std::int64_t tokens = 0, group_size = 0;       // of one layer's micro-batch, padding among them
  int experts = 0, top_k = 0;                    // experts: columns of the router, zero experts among them
};
RoutingSums stacked(const std::vector<Routing>& layers);  // at least one

// Whether a router takes its sums by sequence: for a loss over each, which are joined where another is over all.
bool sums_by_sequence(const RouterConfig& config);

// Raw: coefficients are the caller's. With f = count / T (detached, before capacity) and P = mean probability, per
// group of tokens (all, or a sequence each), mean over groups, a value a layer [L]:
//   switch           E * sum_i f_i P_i            K when uniform, 1 with balance_topk_normalize (Fedus et al. 2021);
//                                                 zero experts' terms times moe.zero_expert_tau (E10)
//   cv_squared       E * sum_i (P_i - 1/E)^2      squared coefficient of variation of P (Shazeer et al. 2017)
//   cv_squared_topk  the same of the sums of the chosen weights
//   none             an undefined tensor
// T counts the real tokens of step.real_T (R16); a group without any is left out of the mean.
// scope global: f from the counts of all data ranks (Qiu et al. 2025).
at::Tensor balance_loss(const RoutingSums& sums, const Config& config, const StepContext& step);

// E / K * sum_i f_i P_i of each sequence, mean over sequences: 1 when uniform (R11, DeepSeek-V3). Undefined with
// seq_balance_coef = 0.
at::Tensor seq_balance_loss(const RoutingSums& sums, const Config& config, const StepContext& step);

// mean over real tokens of (ln sum_e e^l)^2 (ST-MoE, Zoph et al. 2022), a value a layer [L].
at::Tensor z_loss(const RoutingSums& sums, const StepContext& step);

// balance_coef at step.step: times a factor from aux_ramp_start to aux_ramp_end over aux_ramp_steps (R9). On the
// device, [1] of `like`'s type.
at::Tensor ramped_balance_coef(const RouterConfig& config, const StepContext& step, const at::Tensor& like);

struct LayerLosses {
  at::Tensor balance_L, z_loss_L, seq_balance_L;  // raw and detached; undefined where the config asks for none
  at::Tensor weighted_L;  // differentiable: their sum with coefficients; undefined where those are 0
};
LayerLosses layer_losses(const RoutingSums& sums, const Config& config, const StepContext& step);

}  // namespace switchyard
