#include "model/moe/dispatcher.h"

#include <algorithm>
#include <cmath>

#include "ops/overflow.h"

namespace switchyard {
namespace {

// ceil(factor T K / E), not one more where the product is whole but for its rounding.
std::int64_t even_share(double factor, std::int64_t tokens, int top_k, int experts) {
  const double rows = factor * static_cast<double>(tokens * top_k) / experts;
  return static_cast<std::int64_t>(std::ceil(rows * (1 - 1e-12)));
}

bool has_null_experts(const MoeConfig& moe) {
  const bool overflows = moe.overflow == "null_expert" && (moe.null_expert == "copy" || moe.null_expert == "constant");
  return overflows || moe.zero_experts.copy + moe.zero_experts.constant > 0;
}

at::Tensor scores_of(const Routing& routing, const RouterConfig& config, const StepContext& step) {
  const at::Tensor& logits = routing.logits_TE;  // padding may hold anything, and 0 times NaN is NaN in backward
  return ops::scores_of(step.real_T.defined() ? logits.masked_fill(step.real_T.logical_not().unsqueeze(1), 0) : logits,
                        ops::parse_score(config.score));
}

at::Tensor number_of(const at::Tensor& marked_TK) { return marked_TK.sum().view({1}); }

// Where ties begin: the router's order (e - position K) mod E' over the columns that are real experts.
at::Tensor first_of_ties(const Routing& routing, int experts, const StepContext& step, const at::TensorOptions& ints) {
  const at::Tensor token_T = at::arange(routing.tokens, ints);
  const at::Tensor first_T =
      at::remainder((at::remainder(token_T, step.seq_len) + step.first_position) * routing.top_k, routing.experts);
  return first_T.masked_fill(first_T.ge(experts), 0).to(at::kInt);
}

}  // namespace

at::Tensor expert_capacity(const Config& config, std::int64_t tokens, const StepContext& step) {
  const MoeConfig& moe = config.moe;
  const auto ints = step.step.options().dtype(at::kInt);
  if (step.training && moe.expert_capacity > 0) return at::full({1}, moe.expert_capacity, ints);
  const std::int64_t share = even_share(step.training ? moe.capacity_factor : moe.eval_capacity_factor, tokens,
                                        config.router.top_k, moe.n_experts);
  const std::int64_t low = moe.min_expert_capacity;
  const std::int64_t high = std::max(low, moe.max_expert_capacity > 0 ? moe.max_expert_capacity : share);
  if (moe.capacity_ramp_steps == 0) return at::full({1}, std::clamp(share, low, high), ints);
  const at::Tensor grown =
      at::floor_divide(step.step.clamp_max(moe.capacity_ramp_steps) * (high - low), moe.capacity_ramp_steps) + low;
  return grown.clamp_max(std::max(share, low)).to(at::kInt);
}

Dispatcher::Dispatcher(ParameterStore& store, const std::string& name, const Config& config)
    : Layer(name + ".dispatcher"), config_(config) {
  const MoeConfig& moe = config.moe;
  const bool learned = moe.token_importance == "learned";
  if (learned || (moe.token_importance == "norm" && moe.drop_policy == "importance"))
    importance_ = register_module(
        "importance", std::make_shared<TokenImportance>(store, name + ".importance", config.model.n_embd, learned));
  if (has_null_experts(moe)) null_ = register_module("null", std::make_shared<NullExperts>(store, name, config));
}

bool Dispatcher::limited(const StepContext& step) const {
  const MoeConfig& moe = config_.moe;
  return step.training ? moe.capacity_factor > 0 || moe.expert_capacity > 0 : moe.eval_capacity_factor > 0;
}

Dispatched Dispatcher::place(const at::Tensor& x_TD, Routing& routing, const StepContext& step) const {
  const int experts = config_.moe.n_experts;
  Dispatched out{x_TD, routing.scores.expert_TK, routing.scores.weight_TK, {}};
  at::Tensor importance_T;
  if (importance_) {
    importance_T = importance_->of(out.x_TD);
    out.weight_TK = importance_->weighted(out.weight_TK, importance_T);
  }
  ops::Placement placement{out.expert_TK, at::Tensor(), at::Tensor()};
  if (limited(step)) placement = placed(routing, importance_T, out.weight_TK, step);
  if (null_) out.zero = null_->of(placement);
  if (limited(step) || routing.experts > experts)
    out.expert_TK = ops::computed_experts(placement, experts, has_null_ffn(config_.moe) ? experts : -1);
  return out;
}

ops::Placement Dispatcher::placed(Routing& routing, const at::Tensor& importance_T, at::Tensor& weight_TK,
                                  const StepContext& step) const {
  const MoeConfig& moe = config_.moe;
  const at::Tensor priority = moe.drop_policy == "weight"       ? weight_TK
                              : moe.drop_policy == "importance" ? importance_T
                                                                : at::Tensor();
  ops::Placement placement =
      ops::place(routing.scores.expert_TK, moe.n_experts, expert_capacity(config_, routing.tokens, step), priority);
  const at::Tensor none = at::zeros({1}, weight_TK.options().dtype(at::kLong));
  routing.diverted = {none, none, none};
  if (moe.overflow == "reroute") {
    const at::Tensor scores_TE = scores_of(routing, config_.router, step);
    const ops::Rerouted rerouted = this->rerouted(placement, routing, scores_TE.detach(), priority, step);
    const at::Tensor moved_TK =
        ops::rerouted_weight(routing.scores.weight_TK, scores_TE, routing.scores.expert_TK, rerouted,
                             config_.router.norm_topk_prob, config_.router.routed_scaling_factor);
    weight_TK = importance_ ? importance_->weighted(moved_TK, importance_T) : moved_TK;
    placement = rerouted.placement;
    routing.diverted.rerouted = number_of(rerouted.moved_TK);
  }
  const bool to_null = moe.overflow == "null_expert";
  (to_null ? routing.diverted.to_null : routing.diverted.dropped) = number_of(placement.dropped_TK);
  if (moe.renormalize_after_drop && !to_null) weight_TK = ops::renormalized_after_drop(weight_TK, placement.dropped_TK);
  return placement;
}

ops::Rerouted Dispatcher::rerouted(const ops::Placement& placement, const Routing& routing, const at::Tensor& scores_TE,
                                   const at::Tensor& priority, const StepContext& step) const {
  const int experts = config_.moe.n_experts;
  const at::Tensor q_TE = routing.q_TE.defined()     ? routing.q_TE
                          : routing.bias_E.defined() ? scores_TE + routing.bias_E
                                                     : scores_TE;
  const at::Tensor first_T = config_.router.tie_break == "rotate"
                                 ? first_of_ties(routing, experts, step, placement.expert_TK.options())
                                 : at::Tensor();
  return ops::reroute(placement, q_TE.narrow(1, 0, experts), priority, config_.moe.reroute_rounds, first_T);
}

}  // namespace switchyard
