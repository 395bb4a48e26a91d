#include "model/moe/experts.h"

#include "model/moe/selection.h"
#include "ops/fused_mlp.h"

namespace switchyard {
namespace {

std::int64_t up_rows(const ExpertShape& shape) {
  return ops::is_gated(shape.activation) ? 2 * shape.hidden : shape.hidden;
}

std::vector<std::int64_t> up_split(const ExpertShape& shape) {
  return ops::is_gated(shape.activation) ? std::vector<std::int64_t>{shape.hidden, shape.hidden}
                                         : std::vector<std::int64_t>{shape.hidden};
}

}  // namespace

Experts::Experts(ParameterStore& store, const std::string& name, const ExpertShape& shape, const Config& config,
                 int layer, const PrecisionPolicy& policy)
    : Layer(name),
      weights_{&declare(store, "up", ParameterKind::kExpert, {expert_stack(config.moe), up_rows(shape), shape.width},
                        shape.up, up_split(shape)),
               &declare(store, "down", ParameterKind::kExpert, {expert_stack(config.moe), shape.width, shape.hidden},
                        shape.down),
               shape.activation},
      experts_(expert_stack(config.moe)),
      layer_(layer),
      reference_(config.moe.backend == "reference"),
      recompute_(config.train.recompute == "moe"),
      hidden_dropout_(config.moe.expert_hidden_dropout),
      fp8_(policy.converts(name + ".up") && policy.converts(name + ".down") ? policy.fp8_grouped : nullptr) {}

ops::HiddenDropout Experts::hidden_dropout(const StepContext& step) const {
  return {step.training ? hidden_dropout_ : 0, draw_site(RouterDraw::kHidden, layer_), step.dropout};
}

ops::Addend Experts::forward(const Dispatched& rows, const StepContext& step) const {
  const at::Tensor& x_TD = rows.x_TD;
  const ops::MoeFfnOptions options{recompute_, hidden_dropout(step), rows.zero};
  if (reference_) return ops::moe_ffn_reference(x_TD, rows.weight_TK, rows.expert_TK, weights_, options);
  const auto& products =
      step.training && fp8_ ? *fp8_ : ops::GroupedProducts::choose(x_TD.device(), x_TD.scalar_type());
  const ops::DispatchPlan plan =
      ops::dispatch(rows.expert_TK, experts_, products.alignment(rows.expert_TK.numel(), experts_));
  return ops::moe_ffn_rows(x_TD, rows.weight_TK, weights_, plan, products, options);
}

SharedExperts::SharedExperts(ParameterStore& store, const std::string& name, ParameterKind kind,
                             const ExpertShape& shape, const PrecisionPolicy& policy)
    : Layer(name), activation_(shape.activation) {
  up_ = register_module("up", std::make_shared<Linear>(store, name + ".up", kind, up_rows(shape), shape.width, shape.up,
                                                       policy, up_split(shape)));
  down_ = register_module(
      "down", std::make_shared<Linear>(store, name + ".down", kind, shape.width, shape.hidden, shape.down, policy));
}

at::Tensor SharedExperts::forward(const at::Tensor& x_TD, const StepContext& step) const {
  if (up_->plain(step) && down_->plain(step) && ops::has_fused_mlp(x_TD, activation_))
    return ops::fused_mlp(x_TD, up_->weight(), down_->weight(), activation_);
  return down_->forward(ops::activation(up_->forward(x_TD, step), activation_), step);
}

}  // namespace switchyard
