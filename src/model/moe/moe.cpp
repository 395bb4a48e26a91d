#include "model/moe/moe.h"

#include "model/moe/balance.h"
#include "ops/inject_loss.h"

namespace switchyard {

Moe::Moe(ParameterStore& store, const std::string& name, const MoeShape& shape, const Config& config,
         const RouterPlace& place, const PrecisionPolicy& policy)
    : Layer(name), router_config_(config.router), inject_(config.moe.aux_injection == "autograd") {
  router_ = register_module("router", make_router(store, name + ".router", config, place));
  dispatcher_ = register_module("dispatcher", std::make_shared<Dispatcher>(store, name, config));
  experts_ = register_module(
      "experts", std::make_shared<Experts>(store, name + ".experts", shape.routed, config, place.layer, policy));
  if (shape.shared.hidden > 0)
    shared_ = register_module("shared", std::make_shared<SharedExperts>(store, name + ".shared", shape.shared, policy));
}

MoeOutput Moe::forward(const RouterInput& in, const StepContext& step) const {
  Routing routing = router_->route(in, step);
  const Dispatched rows = dispatcher_->place(in.x_TD, routing, step);
  at::Tensor out_TD = experts_->forward(in.x_TD, rows, step);
  if (rows.beside_TD.defined()) out_TD = out_TD + rows.beside_TD;
  if (shared_) out_TD = out_TD + shared_->forward(in.x_TD, step);
  if (inject_ && step.training) {
    const at::Tensor weighted_L = layer_losses(stacked({routing}), router_config_, step).weighted_L;
    if (weighted_L.defined()) out_TD = ops::inject_loss(out_TD, weighted_L, step.loss_scale);
  }
  return {out_TD, routing};
}

}  // namespace switchyard
