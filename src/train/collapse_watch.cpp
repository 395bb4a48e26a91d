#include "train/collapse_watch.h"

#include <algorithm>

#include "base/text.h"

namespace switchyard {
namespace {

constexpr double kNearlyAll = 0.9;

}  // namespace

std::string CollapseWatch::finding(const LayerRouting& layer, const std::vector<std::int64_t>& seen_idle_E) const {
  const int experts = static_cast<int>(layer.count_E.size());
  // Where few experts are not chosen, an even load puts nearly all on top_k too: half the way from there counts.
  const double even = static_cast<double>(top_k_) / experts, busiest = busiest_share(layer.count_E, top_k_);
  if (experts > top_k_ && busiest > std::max(kNearlyAll, (1 + even) / 2))
    return format("%.0f%% of the assignments go to %d of %d experts", 100 * busiest, top_k_, experts);
  const auto& idle = layer.idle_steps_E.empty() ? seen_idle_E : layer.idle_steps_E;
  const auto dead = std::count_if(idle.begin(), idle.end(), [&](std::int64_t steps) { return steps >= dead_window_; });
  if (2 * dead > experts)
    return format("%d of %d experts had no token for %d steps", static_cast<int>(dead), experts, dead_window_);
  return "";
}

std::vector<std::string> CollapseWatch::look(const std::vector<LayerRouting>& layers, std::int64_t steps) {
  std::vector<std::string> warnings;
  for (const LayerRouting& layer : layers) {
    std::vector<std::int64_t>& idle_E = state_.idle_steps_E[layer.layer];
    idle_E.resize(layer.count_E.size());
    for (std::size_t e = 0; e < layer.count_E.size(); ++e) idle_E[e] = layer.count_E[e] > 0 ? 0 : idle_E[e] + steps;
    const std::string found = finding(layer, idle_E);
    if (found.empty())
      state_.collapsed.erase(layer.layer);
    else if (state_.collapsed.insert(layer.layer).second)
      warnings.push_back(
          format("layer %d: the router has collapsed, %s; a larger router.balance_coef (0.01), "
                 "router.bias_balancing with topk_method noaux_tc, router.z_loss_coef = 0.001, or a "
                 "router.reset_interval spread the load",
                 layer.layer, found.c_str()));
  }
  return warnings;
}

}  // namespace switchyard
