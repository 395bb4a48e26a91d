#include "model/moe/balance.h"

namespace switchyard {
namespace {

at::Tensor assignment_fraction(const Routing& routing, const RouterConfig& config, const StepContext& step) {
  at::Tensor count = routing.scores.count_GE.to(routing.scores.prob_sum_GE.scalar_type());
  double tokens = static_cast<double>(routing.group_size);
  if (config.balance_scope == "global" && step.sum_over_ranks) {
    count = step.sum_over_ranks(count);
    tokens *= step.data_ranks;
  }
  return count / tokens;
}

}  // namespace

at::Tensor balance_loss(const Routing& routing, const RouterConfig& config, const StepContext& step) {
  const double experts = routing.experts;
  if (config.balance_loss == "none") return {};
  if (config.balance_loss == "cv_squared_topk") {
    const at::Tensor importance = routing.scores.importance_E, mean = importance.mean();
    return (importance - mean).square().mean() / (mean.square() + 1e-20);
  }
  const at::Tensor mean_prob_GE = routing.scores.prob_sum_GE / static_cast<double>(routing.group_size);
  if (config.balance_loss == "cv_squared") return experts * (mean_prob_GE - 1.0 / experts).square().sum(1).mean();
  const at::Tensor loss = experts * (assignment_fraction(routing, config, step) * mean_prob_GE).sum(1).mean();
  return config.balance_topk_normalize ? loss / static_cast<double>(routing.top_k) : loss;
}

at::Tensor z_loss(const Routing& routing) { return routing.scores.z_sum.sum() / static_cast<double>(routing.tokens); }

}  // namespace switchyard
