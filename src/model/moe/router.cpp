#include "model/moe/router.h"

#include <cmath>

namespace switchyard {
namespace {

Init router_init(const RouterConfig& config, std::int64_t width) {
  if (config.init == "normal") return {Init::Kind::kNormal, config.init_std};
  if (config.init == "orthogonal") return {Init::Kind::kOrthogonalRows, 1.0 / std::sqrt(static_cast<double>(width))};
  return {Init::Kind::kConstant, 0.0};
}

ops::Score parse_score(const std::string& name) {
  if (name == "sigmoid") return ops::Score::kSigmoid;
  return name == "identity" ? ops::Score::kIdentity : ops::Score::kSoftmax;
}

}  // namespace

TopkRouter::TopkRouter(ParameterStore& store, const std::string& name, std::int64_t width, int experts,
                       const RouterConfig& config)
    : Layer(name),
      weight_ED_(declare(store, "weight", ParameterKind::kRouter, {experts, width}, router_init(config, width))),
      config_(config),
      experts_(experts) {}

Routing TopkRouter::route(const at::Tensor& logits_TE, const StepContext& step) const {
  ops::RoutingRule rule;
  rule.top_k = config_.top_k;
  rule.seq_len = step.seq_len;
  rule.first_position = step.first_position;
  rule.group_size = config_.balance_scope == "sequence" ? step.seq_len : 0;
  rule.score = parse_score(config_.score);
  rule.normalize = config_.norm_topk_prob;
  rule.rotate_ties = config_.tie_break == "rotate";
  rule.scale = config_.routed_scaling_factor;

  Routing routing;
  routing.scores = ops::router_scores(logits_TE, {}, rule);
  routing.tokens = logits_TE.size(0);
  routing.group_size = rule.group_size ? rule.group_size : routing.tokens;
  routing.experts = experts_;
  routing.top_k = config_.top_k;
  return routing;
}

}  // namespace switchyard
