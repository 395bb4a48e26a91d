#include "model/moe/moe.h"

#include "model/moe/balance.h"
#include "ops/inject_loss.h"

namespace switchyard {

Moe::Moe(ParameterStore& store, const std::string& name, const MoeShape& shape, const Config& config,
         const PrecisionPolicy& policy)
    : Layer(name), router_config_(config.router), inject_(config.moe.aux_injection == "autograd") {
  router_ = register_module(
      "router", std::make_shared<TopkRouter>(store, name + ".router", shape.width, shape.experts, config.router));
  experts_ = register_module("experts", std::make_shared<Experts>(store, name + ".experts", shape.experts, shape.routed,
                                                                  config.moe.backend, policy));
  if (shape.shared.hidden > 0)
    shared_ = register_module("shared", std::make_shared<SharedExperts>(store, name + ".shared", shape.shared, policy));
}

MoeOutput Moe::forward(const at::Tensor& x_TD, const StepContext& step) const {
  const Routing routing = router_->route(x_TD, step);
  MoeOutput output;
  output.out_TD = experts_->forward(x_TD, routing, step);
  if (shared_) output.out_TD = output.out_TD + shared_->forward(x_TD, step);
  output.routing.count_E = routing.scores.count_GE.sum(0, false, at::kInt);
  output.routing.prob_E = routing.scores.prob_sum_GE.detach().sum(0);
  if (step.training) add_losses(output, routing, step);
  return output;
}

void Moe::add_losses(MoeOutput& output, const Routing& routing, const StepContext& step) const {
  const at::Tensor balance = balance_loss(routing, router_config_, step), z = z_loss(routing);
  output.routing.balance = balance.defined() ? balance.detach() : at::Tensor();
  output.routing.z_loss = z.detach();
  at::Tensor weighted;
  if (balance.defined() && router_config_.balance_coef > 0) weighted = balance * router_config_.balance_coef;
  if (router_config_.z_loss_coef > 0) {
    const at::Tensor term = z * router_config_.z_loss_coef;
    weighted = weighted.defined() ? weighted + term : term;
  }
  if (!weighted.defined()) return;
  if (inject_)
    output.out_TD = ops::inject_loss(output.out_TD, weighted, step.loss_scale);
  else
    output.auxiliary = weighted;
}

}  // namespace switchyard
