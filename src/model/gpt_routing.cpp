// What the whole model does with its routers' decisions: losses, totals, and what is kept between steps.
#include "base/files.h"
#include "base/philox.h"
#include "model/gpt.h"

#ifdef SWITCHYARD_WITH_MOE
#include "model/moe/balance.h"
#endif

namespace switchyard {

#ifdef SWITCHYARD_WITH_MOE
namespace {

bool is_expert_vectors(const Parameter& parameter) {
  const std::string end = ".router.weight";
  return parameter.kind == ParameterKind::kRouter && parameter.name.size() > end.size() &&
         parameter.name.compare(parameter.name.size() - end.size(), end.size(), end) == 0;
}

void add_to(const at::Tensor& total, const at::Tensor& value) {
  if (total.defined() && value.defined()) at::Tensor(total).add_(value);
}

}  // namespace

void Gpt::add_routing(std::vector<Routing> layers, const StepContext& given, ModelOutput& output) {
  if (layers.empty()) return;
  const RoutingSums sums = stacked(layers);
  const auto over_groups = [](const at::Tensor& all_LGE) {
    return all_LGE.size(1) == 1 ? all_LGE.select(1, 0) : all_LGE.sum(1);
  };
  output.count_LE = over_groups(sums.count_LGE);
  if (!given.training) {
    output.routing = std::move(layers);
    return;
  }
  StepContext step = given;
  step.step = step_;
  const LayerLosses losses = layer_losses(sums, config_, step);
  output.balance_L = losses.balance_L;
  output.z_loss_L = losses.z_loss_L;
  output.seq_balance_L = losses.seq_balance_L;
  if (losses.weighted_L.defined()) {
    const at::Tensor auxiliary = losses.weighted_L.sum();
    if (config_.moe.aux_injection != "autograd") output.total = output.total + auxiliary * step.loss_scale;
    output.auxiliary = auxiliary.detach();
  }
  at::NoGradGuard no_grad;
  totals_.count_LE.add_(output.count_LE);
  totals_.prob_LE.add_(over_groups(sums.prob_LGE));
  add_to(totals_.balance_L, losses.balance_L);
  totals_.z_loss_L.add_(losses.z_loss_L);
  add_to(totals_.seq_balance_L, losses.seq_balance_L);
  add_to(totals_.importance_LE, sums.importance_LE);
  state_.count(layers, output.count_LE, step);
}

void Gpt::finish_step(const at::Tensor& apply, const std::function<at::Tensor(const at::Tensor&)>& sum_over_ranks) {
  state_.update_bias(config_.router.bias_update_rate, apply, sum_over_ranks);
}

std::vector<const Parameter*> Gpt::reset_routers(std::uint64_t seed, std::int64_t step) {
  at::NoGradGuard no_grad;
  std::vector<const Parameter*> reset;
  for (const auto& parameter : store_.all()) {
    if (!is_expert_vectors(*parameter)) continue;
    const auto key = [&](const char* purpose) {
      return mix_key(mix_key(seed, fnv1a(parameter->name + purpose)), static_cast<std::uint64_t>(step));
    };
    const Init noise{Init::Kind::kNormal, config_.router.reset_noise};
    const at::Tensor values =
        drawn(parameter->shape, parameter->init, key(".reset")) + drawn(parameter->shape, noise, key(".reset_noise"));
    parameter->master.copy_(values);
    if (parameter->compute.data_ptr() != parameter->master.data_ptr()) parameter->compute.detach().copy_(values);
    reset.push_back(parameter.get());
  }
  if (state_.bias_LE.defined()) state_.bias_LE.zero_();
  return reset;
}

std::int64_t Gpt::expert_capacity_at(std::int64_t step) const {
  if (config_.moe.capacity_factor == 0 && config_.moe.expert_capacity == 0) return -1;
  StepContext context;
  context.training = true;
  context.step = at::full({1}, step, at::kLong);  // on the host
  const std::int64_t tokens = std::int64_t{config_.train.micro_batch} * config_.model.seq_len;
  return expert_capacity(config_, tokens, context).item<int>();
}

std::vector<KeptTensor> Gpt::kept_tensors() const {
  using Join = KeptTensor::Join;
  std::vector<KeptTensor> kept;
  for (const KeptTensor& tensor : {KeptTensor{"router.bias", state_.bias_LE, Join::kSame},
                                   KeptTensor{"router.bias_count", state_.bias_count_LE, Join::kSum},
                                   KeptTensor{"router.last_step", state_.last_step_LE, Join::kMax},
                                   KeptTensor{"router.dropped", state_.dropped_L, Join::kSum},
                                   KeptTensor{"router.to_null", state_.to_null_L, Join::kSum},
                                   KeptTensor{"router.rerouted", state_.rerouted_L, Join::kSum}})
    if (tensor.values.defined()) kept.push_back(tensor);
  return kept;
}
#else
void Gpt::add_routing(std::vector<Routing>, const StepContext&, ModelOutput&) {}
void Gpt::finish_step(const at::Tensor&, const std::function<at::Tensor(const at::Tensor&)>&) {}
std::vector<const Parameter*> Gpt::reset_routers(std::uint64_t, std::int64_t) { return {}; }
std::int64_t Gpt::expert_capacity_at(std::int64_t) const { return -1; }
std::vector<KeptTensor> Gpt::kept_tensors() const { return {}; }
#endif

}  // namespace switchyard
