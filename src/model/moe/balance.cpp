#include "model/moe/balance.h"

namespace switchyard {
namespace {

// Assignments and probabilities of groups of tokens, and how many real tokens each group has.
struct Groups {
  at::Tensor count_LGE, prob_LGE;
  double tokens = 0;  // of a group, where no token is padding
  at::Tensor real_G;  // instead of it, of prob's type; undefined without padding
};

Groups groups_of(const RoutingSums& sums, const StepContext& step, bool by_sequence) {
  const std::int64_t groups = sums.count_LGE.size(1);
  Groups result{sums.count_LGE, sums.prob_LGE, static_cast<double>(sums.group_size), at::Tensor()};
  if (!by_sequence && groups > 1) {
    result.count_LGE = sums.count_LGE.sum(1, /*keepdim=*/true, at::kInt);
    result.prob_LGE = sums.prob_LGE.sum(1, /*keepdim=*/true);
    result.tokens = static_cast<double>(sums.tokens);
  }
  if (step.real_T.defined())
    result.real_G = step.real_T.view({result.count_LGE.size(1), -1}).sum(1).to(sums.prob_LGE.scalar_type());
  return result;
}

at::Tensor per_token(const at::Tensor& sum_LGE, const Groups& groups) {
  return groups.real_G.defined() ? sum_LGE / groups.real_G.clamp_min(1).unsqueeze(1) : sum_LGE / groups.tokens;
}

at::Tensor mean_over_groups(const at::Tensor& value_LG, const Groups& groups) {
  if (!groups.real_G.defined()) return value_LG.mean(1);
  const at::Tensor used_G = groups.real_G.gt(0).to(value_LG.scalar_type());
  return (value_LG * used_G).sum(1) / used_G.sum().clamp_min(1);
}

at::Tensor assignment_fraction(Groups groups, bool global, const StepContext& step) {
  at::Tensor count = groups.count_LGE.to(groups.prob_LGE.scalar_type());
  if (global && step.sum_over_ranks) {
    count = step.sum_over_ranks(count);
    groups.tokens *= step.data_ranks;
    if (groups.real_G.defined()) groups.real_G = step.sum_over_ranks(groups.real_G);
  }
  return per_token(count, groups);
}

// E * sum_i f_i P_i, mean over groups [L].
at::Tensor switch_loss(const RoutingSums& sums, const Groups& groups, const at::Tensor& fraction_LGE,
                       const MoeConfig& moe) {
  const at::Tensor terms_LGE = fraction_LGE * per_token(groups.prob_LGE, groups);
  at::Tensor sum_LG;
  if (sums.experts == moe.n_experts || moe.zero_expert_tau == 1)
    sum_LG = terms_LGE.sum(2);
  else
    sum_LG = terms_LGE.narrow(2, 0, moe.n_experts).sum(2) +
             terms_LGE.narrow(2, moe.n_experts, sums.experts - moe.n_experts).sum(2) * moe.zero_expert_tau;
  return static_cast<double>(sums.experts) * mean_over_groups(sum_LG, groups);
}

at::Tensor stack(const std::vector<Routing>& layers, at::Tensor ops::RouterScores::*which) {
  if (layers.size() == 1) return (layers[0].scores.*which).unsqueeze(0);
  std::vector<at::Tensor> parts;
  for (const Routing& layer : layers) parts.push_back(layer.scores.*which);
  return at::stack(parts);
}

void add_term(at::Tensor& sum, const at::Tensor& term) { sum = sum.defined() ? sum + term : term; }

at::Tensor detached(const at::Tensor& value) { return value.defined() ? value.detach() : value; }

}  // namespace

RoutingSums stacked(const std::vector<Routing>& layers) {
  const Routing& first = layers.at(0);
  return {stack(layers, &ops::RouterScores::count_GE),
          stack(layers, &ops::RouterScores::prob_sum_GE),
          stack(layers, &ops::RouterScores::importance_E),
          stack(layers, &ops::RouterScores::z_sum),
          first.tokens,
          first.group_size,
          first.experts,
          first.top_k};
}

bool sums_by_sequence(const RouterConfig& config) {
  return config.balance_scope == "sequence" || config.seq_balance_coef > 0;
}

at::Tensor balance_loss(const RoutingSums& sums, const Config& config, const StepContext& step) {
  const RouterConfig& router = config.router;
  const double experts = sums.experts;
  if (router.balance_loss == "none") return {};
  if (router.balance_loss == "cv_squared_topk") {
    const at::Tensor importance = sums.importance_LE, mean = importance.mean(1, /*keepdim=*/true);
    return (importance - mean).square().mean(1) / (mean.squeeze(1).square() + 1e-20);
  }
  const Groups groups = groups_of(sums, step, router.balance_scope == "sequence");
  if (router.balance_loss == "cv_squared")
    return experts * mean_over_groups((per_token(groups.prob_LGE, groups) - 1.0 / experts).square().sum(2), groups);
  const at::Tensor fraction = assignment_fraction(groups, router.balance_scope == "global", step);
  const at::Tensor loss = switch_loss(sums, groups, fraction, config.moe);
  return router.balance_topk_normalize ? loss / static_cast<double>(sums.top_k) : loss;
}

at::Tensor seq_balance_loss(const RoutingSums& sums, const Config& config, const StepContext& step) {
  if (config.router.seq_balance_coef == 0) return {};
  const Groups groups = groups_of(sums, step, /*by_sequence=*/true);
  return switch_loss(sums, groups, assignment_fraction(groups, /*global=*/false, step), config.moe) /
         static_cast<double>(sums.top_k);
}

at::Tensor z_loss(const RoutingSums& sums, const StepContext& step) {
  const at::Tensor sum_L = sums.z_sum_L1.squeeze(1);
  if (!step.real_T.defined()) return sum_L / static_cast<double>(sums.tokens);
  return sum_L / step.real_T.sum().clamp_min(1).to(sum_L.scalar_type());
}

at::Tensor ramped_balance_coef(const RouterConfig& config, const StepContext& step, const at::Tensor& like) {
  const double first = config.balance_coef * config.aux_ramp_start, last = config.balance_coef * config.aux_ramp_end;
  return step.step.to(like.scalar_type()).div(config.aux_ramp_steps).clamp_max(1).mul(last - first).add(first);
}

LayerLosses layer_losses(const RoutingSums& sums, const Config& config, const StepContext& step) {
  const RouterConfig& router = config.router;
  const at::Tensor balance = balance_loss(sums, config, step), z = z_loss(sums, step),
                   by_sequence = seq_balance_loss(sums, config, step);
  LayerLosses losses{detached(balance), z.detach(), detached(by_sequence), at::Tensor()};
  const double settled_coef = router.balance_coef * router.aux_ramp_end;
  if (balance.defined() && router.balance_coef > 0 && router.aux_ramp_steps > 0)
    losses.weighted_L = balance * ramped_balance_coef(router, step, balance);
  else if (balance.defined() && settled_coef > 0)
    losses.weighted_L = balance * settled_coef;
  if (router.z_loss_coef > 0) add_term(losses.weighted_L, z * router.z_loss_coef);
  if (by_sequence.defined()) add_term(losses.weighted_L, by_sequence * router.seq_balance_coef);
  return losses;
}

}  // namespace switchyard
