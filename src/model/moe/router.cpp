#include "model/moe/router.h"

#include <cmath>

#include "model/moe/balance.h"

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

std::shared_ptr<Router> make_router(ParameterStore& store, const std::string& name, const Config& config,
                                    const RouterPlace& place) {
  return std::make_shared<TopkRouter>(store, name, config, place);
}

TopkRouter::TopkRouter(ParameterStore& store, const std::string& name, const Config& config, const RouterPlace& place)
    : Router(name),
      config_(config.router),
      place_(place),
      experts_(router_columns(config.moe)),
      weight_ED_(declare(store, "weight", ParameterKind::kRouter, {experts_, config.model.n_embd},
                         router_init(config_, config.model.n_embd))) {}

Routing TopkRouter::route(const RouterInput& in, const StepContext& step) const {
  ops::RoutingRule rule;
  rule.top_k = config_.top_k;
  rule.seq_len = step.seq_len;
  rule.first_position = step.first_position;
  rule.group_size = sums_by_sequence(config_) ? step.seq_len : 0;
  rule.score = parse_score(config_.score);
  rule.normalize = config_.norm_topk_prob;
  rule.rotate_ties = config_.tie_break == "rotate";
  rule.scale = config_.routed_scaling_factor;

  Routing routing;
  routing.scores = ops::router_scores(in.logits_TE, at::Tensor(), rule);
  routing.logits_TE = in.logits_TE;
  routing.tokens = in.logits_TE.size(0);
  routing.group_size = rule.group_size ? rule.group_size : routing.tokens;
  routing.experts = experts_;
  routing.top_k = config_.top_k;
  return routing;
}

}  // namespace switchyard
