#include "model/moe/balance.h"

namespace switchyard {
namespace {

at::Tensor assignment_fraction(const RoutingSums& sums, const RouterConfig& config, const StepContext& step) {
  at::Tensor count = sums.count_LGE.to(sums.prob_LGE.scalar_type());
  double tokens = static_cast<double>(sums.group_size);
  if (config.balance_scope == "global" && step.sum_over_ranks) {
    count = step.sum_over_ranks(count);
    tokens *= step.data_ranks;
  }
  return count / tokens;
}

at::Tensor stack(const std::vector<Routing>& layers, at::Tensor ops::RouterScores::*which) {
  if (layers.size() == 1) return (layers[0].scores.*which).unsqueeze(0);
  std::vector<at::Tensor> parts;
  for (const Routing& layer : layers) parts.push_back(layer.scores.*which);
  return at::stack(parts);
}

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

at::Tensor balance_loss(const RoutingSums& sums, const RouterConfig& config, const StepContext& step) {
  const double experts = sums.experts;
  if (config.balance_loss == "none") return {};
  if (config.balance_loss == "cv_squared_topk") {
    const at::Tensor importance = sums.importance_LE, mean = importance.mean(1, /*keepdim=*/true);
    return (importance - mean).square().mean(1) / (mean.squeeze(1).square() + 1e-20);
  }
  const at::Tensor mean_prob = sums.prob_LGE / static_cast<double>(sums.group_size);
  if (config.balance_loss == "cv_squared") return experts * (mean_prob - 1.0 / experts).square().sum(2).mean(1);
  const at::Tensor loss = experts * (assignment_fraction(sums, config, step) * mean_prob).sum(2).mean(1);
  return config.balance_topk_normalize ? loss / static_cast<double>(sums.top_k) : loss;
}

at::Tensor z_loss(const RoutingSums& sums) { return sums.z_sum_L1.squeeze(1) / static_cast<double>(sums.tokens); }

LayerLosses layer_losses(const RoutingSums& sums, const RouterConfig& config, const StepContext& step) {
  const at::Tensor balance = balance_loss(sums, config, step), z = z_loss(sums);
  LayerLosses losses{balance.defined() ? balance.detach() : at::Tensor(), z.detach(), at::Tensor()};
  if (balance.defined() && config.balance_coef > 0) losses.weighted_L = balance * config.balance_coef;
  if (config.z_loss_coef > 0) {
    const at::Tensor term = z * config.z_loss_coef;
    losses.weighted_L = losses.weighted_L.defined() ? losses.weighted_L + term : term;
  }
  return losses;
}

}  // namespace switchyard
