#include "model/moe/token_id_router.h"

#include "ops/selection.h"

namespace switchyard {

TokenIdRouter::TokenIdRouter(const std::string& name, const Config& config)
    : Router(name),
      experts_(config.moe.n_experts),
      top_k_(config.router.top_k),
      weight_(config.router.routed_scaling_factor / config.router.top_k) {}

Routing TokenIdRouter::route(RouterInput& in, const StepContext& step) const {
  const auto floats = in.x_TD.options().dtype(at::kFloat).requires_grad(false);
  at::Tensor expert = ops::experts_of_ids(step.token_T, experts_, top_k_);
  at::Tensor weight = at::full(expert.sizes(), weight_, floats);
  if (step.real_T.defined()) {
    const at::Tensor padding = step.real_T.logical_not().unsqueeze(1);
    expert = expert.masked_fill(padding, -1);
    weight = weight.masked_fill(padding, 0);
  }
  const at::Tensor column = at::arange(experts_, expert.options());
  Routing routing;
  ops::RouterScores& scores = routing.scores;
  scores.expert_TK = expert;
  scores.weight_TK = weight;
  scores.count_GE = expert.unsqueeze(2).eq(column).sum(at::IntArrayRef{0, 1}).to(at::kInt).unsqueeze(0);
  scores.prob_sum_GE = at::zeros({1, experts_}, floats);
  scores.importance_E = at::zeros({experts_}, floats);
  scores.z_sum = at::zeros({1}, floats);
  routing.tokens = routing.group_size = expert.size(0);
  routing.experts = experts_;
  routing.top_k = top_k_;
  return routing;
}

}  // namespace switchyard
