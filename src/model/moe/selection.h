// What a choice of experts is made of beside clean scores: noise, biases, whole-expert dropout, groups, or a forced
// balance (moe_spec R3, R7, R15, E13; in the order of 2.9).
#pragma once

#include "config/config.h"
#include "model/moe/routing_state.h"
#include "ops/selection.h"
#include "ops/step_context.h"

namespace switchyard {

// The random draws of a sparse layer, apart from each other and from the dropouts of ops/noise.h.
enum class RouterDraw : std::uint64_t { kNoise = 1, kJitter = 2, kDropout = 3, kHidden = 4 };
inline std::uint64_t draw_site(RouterDraw draw, int layer) {
  return static_cast<std::uint64_t>(draw) << 32 | static_cast<std::uint64_t>(layer);
}

// Where a router stands: it draws its noise by the block's number and reads its row of the state.
struct RouterPlace {
  int layer = 0;  // of the model
  int row = 0;    // among the sparse layers
  const RoutingState* state = nullptr;
};

class ExpertSelection {
 public:
  ExpertSelection(const Config& config, const RouterPlace& place);

  // logits [T, E'] as weights are made of them: after the clip. A q is made only where a bias would not do.
  ops::Selection select(const at::Tensor& logits_TE, const ops::RoutingRule& rule, const StepContext& step) const;

 private:
  // score(l + noise) + b, with dropped experts and other groups' at -inf
  at::Tensor scores(const at::Tensor& logits_TE, const ops::RoutingRule& rule, const StepContext& step) const;

  const RouterPlace place_;
  const int experts_;  // real ones
  const bool forced_;
  const ops::Noise noise_;
  const double noise_scale_;  // 0: none on logits
  const double dropout_;
  const ops::GroupLimit groups_;
};

}  // namespace switchyard
