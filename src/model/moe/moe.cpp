#include "model/moe/moe.h"

#include "model/moe/balance.h"
#include "ops/inject_loss.h"
#include "ops/mix.h"

namespace switchyard {

Moe::Moe(ParameterStore& store, const std::string& name, const MoeShape& shape, const Config& config,
         const RouterPlace& place, const PrecisionPolicy& policy)
    : Layer(name), config_(config), inject_(config.moe.aux_injection == "autograd"), warm_up_(config.moe) {
  router_ = register_module("router", make_router(store, name + ".router", config, place));
  dispatcher_ = register_module("dispatcher", std::make_shared<Dispatcher>(store, name, config));
  experts_ = register_module(
      "experts", std::make_shared<Experts>(store, name + ".experts", shape.routed, config, place.layer, policy));
  if (shape.shared.hidden > 0)
    shared_ = register_module(
        "shared",
        std::make_shared<SharedExperts>(store, name + ".shared", ParameterKind::kSharedExpert, shape.shared, policy));
  if (shape.dense.hidden > 0)
    flexible_ = register_module(
        "flexible", std::make_shared<FlexibleFfn>(store, name, shape.dense, config.moe.combine_init, policy));
}

ops::Addend Moe::joined(const ops::Addend& routed, const at::Tensor& x_TD, at::Tensor fade,
                        const StepContext& step) const {
  if (!shared_ && !flexible_ && !fade.defined()) return routed;
  at::Tensor out_TD = ops::summed(routed);
  const at::Tensor shared_TD = shared_ ? shared_->forward(x_TD, step) : at::Tensor();
  if (fade.defined() && warm_up_.averages(step)) {
    out_TD = shared_ ? ops::mix(out_TD, shared_TD, fade) : ops::scaled(out_TD, fade);
    fade = at::Tensor();
  } else if (shared_) {
    out_TD = out_TD + shared_TD;
  }
  return flexible_ ? flexible_->forward(x_TD, out_TD, fade, step) : out_TD;
}

MoeOutput Moe::forward(RouterInput in, const StepContext& step) const {
  Routing routing = router_->route(in, step);
  const bool averages = warm_up_.averages(step);
  Dispatched rows = averages ? WarmUp::every_expert(in.x_TD, config_.moe.n_experts, step.real_T)
                             : dispatcher_->place(in.x_TD, routing, step);
  at::Tensor fade = warm_up_.fade(step);
  if (fade.defined() && !averages && !flexible_) {
    rows.weight_TK = rows.weight_TK * fade;  // the sum is linear in the weights: no pass over [T, D]
    fade = at::Tensor();
  }
  ops::Addend out = joined(experts_->forward(rows, step), rows.x_TD, fade, step);
  if (inject_ && step.training) {
    const at::Tensor weighted_L = layer_losses(stacked({routing}), config_, step).weighted_L;
    // The loss enters by the gradient, whose way a stand-in is too.
    if (weighted_L.defined()) out.delta_TD = ops::inject_loss(out.delta_TD, weighted_L, step.loss_scale);
  }
  return {out, routing};
}

}  // namespace switchyard
