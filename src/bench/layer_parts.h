// bench/layer_parts.h: the sparse layer as a composition of ops, which can also start in the middle.
#pragma once

#include <optional>

#include "ops/moe_ffn.h"
#include "ops/router_scores.h"
#include "train/device.h"

namespace switchyard::bench {

using at::Tensor;

struct LayerShape {
  std::int64_t tokens;
  int width, hidden, experts, top_k;
  std::optional<double> spread = {};  // of experts' shares of rows (ops/selection.h); none: those that logits give
};

// Softmax scores, normalised weights. x is N(0, 1), the router's logits too, all drawn from seed 0 as
// benchmarks/peer_torch.py --layer draws them: where torch is the same, so are the values and, but for rounding, the
// routing.
class LayerParts {
 public:
  LayerParts(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device,
             const ops::GroupedProducts& products);

  // What a pass begins with; all before it is given.
  enum class From { kRows, kPlan, kScores, kRouter };
  Tensor forward(From from) const;
  // Backward as far as forward began: the gradients of x and of what was given, those of matrices added to their
  // slices.
  void backward(From from, const Tensor& out_TD) const;
  double largest_over_mean_load() const;  // rows of the fullest expert over the mean

 private:
  void draw_values(const ComputeDevice& device);
  ops::RouterScores scores_of(const Tensor& logits_TE) const {
    return ops::router_scores(logits_TE, {Tensor(), q_TE_, Tensor()}, rule_);
  }
  ops::DispatchPlan plan_of(const Tensor& expert_TK) const;
  Tensor experts(const Tensor& x_TD, const Tensor& weight_TK, const ops::DispatchPlan& plan) const {
    return ops::moe_ffn(x_TD, weight_TK, weights_, plan, products_);
  }

  const LayerShape shape_;
  const ops::GroupedProducts& products_;
  ParameterStore store_;
  Parameter &up_, &down_, &router_;
  const ops::ExpertWeights weights_;
  ops::RoutingRule rule_;
  Tensor q_TE_;  // of forced choices
  Tensor x_TD_, dy_TD_, logits_TE_, weight_TK_, expert_TK_;
  ops::DispatchPlan plan_;
};

}  // namespace switchyard::bench
