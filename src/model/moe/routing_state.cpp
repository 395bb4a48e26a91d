#include "model/moe/routing_state.h"

#include "ops/selection.h"

namespace switchyard {
namespace {

void add(const at::Tensor& total_L, const std::vector<Routing>& layers, at::Tensor Diverted::*which) {
  if (!total_L.defined()) return;
  std::vector<at::Tensor> parts;
  for (const Routing& layer : layers) {
    if (!(layer.diverted.*which).defined()) return;  // the pass had no capacities: a warm-up that averages all experts
    parts.push_back(layer.diverted.*which);
  }
  at::Tensor(total_L).add_(at::cat(parts));
}

}  // namespace

void RoutingState::allocate(const Config& config, int layers, at::Device device) {
  const std::int64_t columns = router_columns(config.moe);
  const auto longs = at::TensorOptions().device(device).dtype(at::kLong);
  *this = {};
  if (config.router.bias_balancing) {
    bias_LE = at::zeros({layers, columns}, longs.dtype(at::kFloat));
    bias_count_LE = at::zeros({layers, columns}, longs);
  }
  if (config.router.force_balanced && config.router.force_spread > 0)
    share_border = ops::share_borders(config.moe.n_experts, config.router.top_k, config.router.force_spread).to(device);
  if (config.log.routing == "layer") last_step_LE = at::full({layers, columns}, -1, longs);
  if (config.moe.capacity_factor == 0 && config.moe.expert_capacity == 0) return;
  (config.moe.overflow == "null_expert" ? to_null_L : dropped_L) = at::zeros({layers}, longs);
  if (config.moe.overflow == "reroute") rerouted_L = at::zeros({layers}, longs);
}

void RoutingState::count(const std::vector<Routing>& layers, const at::Tensor& count_LE, const StepContext& step) {
  if (bias_count_LE.defined()) bias_count_LE.add_(count_LE);
  if (last_step_LE.defined()) last_step_LE.copy_(at::where(count_LE.gt(0), step.step, last_step_LE));
  add(dropped_L, layers, &Diverted::dropped);
  add(to_null_L, layers, &Diverted::to_null);
  add(rerouted_L, layers, &Diverted::rerouted);
}

void RoutingState::update_bias(double rate, const at::Tensor& apply,
                               const std::function<at::Tensor(const at::Tensor&)>& sum_over_ranks) {
  if (!bias_LE.defined()) return;
  const at::Tensor count_LE = sum_over_ranks ? sum_over_ranks(bias_count_LE) : bias_count_LE;
  // E times the difference from the mean, so that it stays an integer.
  const at::Tensor lacking_LE = count_LE.sum(1, /*keepdim=*/true) - count_LE * count_LE.size(1);
  bias_LE.add_(lacking_LE.sign().mul(apply).to(at::kFloat), rate);
  bias_count_LE.zero_();
}

}  // namespace switchyard
