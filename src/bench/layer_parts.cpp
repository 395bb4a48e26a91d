#include "bench/layer_parts.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "ops/selection.h"

namespace switchyard::bench {

LayerParts::LayerParts(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device,
                       const ops::GroupedProducts& products)
    : shape_(shape),
      products_(products),
      up_(store_.add("up", ParameterKind::kExpert,
                     {shape.experts, (ops::is_gated(activation) ? 2 : 1) * shape.hidden, shape.width}, {})),
      down_(store_.add("down", ParameterKind::kExpert, {shape.experts, shape.width, shape.hidden}, {})),
      router_(store_.add("router", ParameterKind::kRouter, {shape.experts, shape.width}, {})),
      weights_{&up_, &down_, activation} {
  rule_.top_k = shape.top_k;
  rule_.seq_len = static_cast<int>(shape.tokens);
  store_.allocate(device.device, device.activation_dtype, store_.contiguous());
  draw_values(device);
  const at::NoGradGuard no_grad;
  const Tensor logits = ops::router_logits(x_TD_, router_).logits_TE;
  if (shape.spread) {
    const Tensor border = ops::share_borders(shape.experts, shape.top_k, *shape.spread).to(device.device);
    q_TE_ = ops::forced_shares(shape.tokens, border, shape.experts, logits.options().requires_grad(false));
  }
  const ops::RouterScores scores = scores_of(logits);
  logits_TE_ = logits.detach().clone().requires_grad_(true);
  weight_TK_ = scores.weight_TK.detach().clone().requires_grad_(true);
  expert_TK_ = scores.expert_TK;
  plan_ = plan_of(expert_TK_);
}

Tensor LayerParts::forward(From from) const {
  if (from == From::kRows) return experts(x_TD_, weight_TK_, plan_);
  if (from == From::kPlan) return experts(x_TD_, weight_TK_, plan_of(expert_TK_));
  ops::RouterLogits logits{logits_TE_, x_TD_};
  if (from == From::kRouter) logits = ops::router_logits(x_TD_, router_);
  const ops::RouterScores scores = scores_of(logits.logits_TE);
  return experts(logits.x_TD, scores.weight_TK, plan_of(scores.expert_TK));
}

void LayerParts::backward(From from, const Tensor& out_TD) const {
  std::vector<Tensor> inputs{x_TD_};
  if (from == From::kRows || from == From::kPlan) inputs.push_back(weight_TK_);
  if (from == From::kScores) inputs.push_back(logits_TE_);
  torch::autograd::grad({out_TD}, inputs, {dy_TD_});
}

double LayerParts::largest_over_mean_load() const {
  return plan_.count_E.max().item<double>() * shape_.experts / static_cast<double>(shape_.tokens * shape_.top_k);
}

// In the order of the peer's: x, router, dy, up, down; each in fp32, scaled, rounded.
void LayerParts::draw_values(const ComputeDevice& device) {
  at::manual_seed(0);
  const at::NoGradGuard no_grad;
  const auto draw = [&](const std::vector<std::int64_t>& size, double deviation) {
    return (at::randn(size, at::TensorOptions().device(device.device)) * deviation).to(device.activation_dtype);
  };
  const auto inner = [](int width) { return 1 / std::sqrt(static_cast<double>(width)); };
  x_TD_ = draw({shape_.tokens, shape_.width}, 1);
  router_.compute.copy_(draw(router_.shape, inner(shape_.width)));
  dy_TD_ = draw({shape_.tokens, shape_.width}, 1);
  up_.compute.copy_(draw(up_.shape, inner(shape_.width)));
  down_.compute.copy_(draw(down_.shape, inner(shape_.hidden)));
  x_TD_.requires_grad_(true);
}

ops::DispatchPlan LayerParts::plan_of(const Tensor& expert_TK) const {
  return ops::dispatch(expert_TK, shape_.experts, products_.alignment(expert_TK.numel(), shape_.experts));
}

}  // namespace switchyard::bench
