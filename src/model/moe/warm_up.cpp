#include "model/moe/warm_up.h"

namespace switchyard {

at::Tensor WarmUp::fade(const StepContext& step) const {
  if (config_.warmup_steps == 0 || (config_.warmup_mode == "dense_average" && !averages(step))) return {};
  return step.step.to(at::kFloat).div_(config_.warmup_steps).clamp_max_(1);
}

Dispatched WarmUp::every_expert(const at::Tensor& x_TD, int experts, const at::Tensor& real_T) {
  const auto options = x_TD.options().requires_grad(false);
  const at::Tensor each = at::arange(experts, options.dtype(at::kInt));
  Dispatched rows;
  rows.x_TD = x_TD;
  rows.expert_TK = each.expand({x_TD.size(0), experts}).contiguous();
  if (real_T.defined()) rows.expert_TK.masked_fill_(real_T.logical_not().unsqueeze(1), -1);
  rows.weight_TK = at::full({x_TD.size(0), experts}, 1.0 / experts, options.dtype(at::kFloat));
  return rows;
}

}  // namespace switchyard
