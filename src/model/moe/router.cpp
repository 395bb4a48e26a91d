#include "model/moe/router.h"

#include <cmath>

#include "model/moe/balance.h"
#include "model/moe/token_id_router.h"
#include "ops/jitter.h"

namespace switchyard {
namespace {

Init router_init(const RouterConfig& config, std::int64_t width) {
  if (config.init == "normal") return {Init::Kind::kNormal, config.init_std};
  if (config.init == "orthogonal") return {Init::Kind::kOrthogonalRows, 1.0 / std::sqrt(static_cast<double>(width))};
  return {Init::Kind::kConstant, 0.0};
}

std::int64_t weight_width(const Config& config) {
  return config.router.semantic ? config.router.semantic_dim : config.model.n_embd;
}

// sum over the real tokens of (ln sum_e e^l)^2, [1].
at::Tensor squared_log_sums(const at::Tensor& logits_TE, const at::Tensor& real_T) {
  if (!real_T.defined()) return at::logsumexp(logits_TE, 1).square().sum().reshape({1});
  // Padding may hold anything, so its logits go first: 0 times NaN is NaN, in backward too.
  const at::Tensor padding = real_T.logical_not();
  const at::Tensor logits = logits_TE.masked_fill(padding.unsqueeze(1), 0);
  return at::logsumexp(logits, 1).square().masked_fill(padding, 0).sum().reshape({1});
}

}  // namespace

std::shared_ptr<Router> make_router(ParameterStore& store, const std::string& name, const Config& config,
                                    const RouterPlace& place) {
  if (config.router.type == "token_id") return std::make_shared<TokenIdRouter>(name, config);
  return std::make_shared<TopkRouter>(store, name, config, place);
}

TopkRouter::TopkRouter(ParameterStore& store, const std::string& name, const Config& config, const RouterPlace& place)
    : Router(name),
      config_(config.router),
      place_(place),
      experts_(router_columns(config.moe)),
      reads_input_(config.router.semantic || config.router.noise == "jitter"),
      weight_(declare(store, "weight", ParameterKind::kRouter, {experts_, weight_width(config)},
                      router_init(config_, weight_width(config)))),
      selection_(config, place) {
  if (config_.semantic)
    cosine_ =
        register_module("semantic", std::make_shared<CosineMap>(store, name + ".semantic", config.model.n_embd,
                                                                config_.semantic_dim, config_.semantic_scale_init));
}

ops::RoutingRule TopkRouter::rule(const StepContext& step) const {
  ops::RoutingRule rule;
  rule.top_k = config_.top_k;
  rule.seq_len = step.seq_len;
  rule.first_position = step.first_position;
  rule.group_size = sums_by_sequence(config_) ? step.seq_len : 0;
  rule.score = ops::parse_score(config_.score);
  rule.normalize = config_.norm_topk_prob;
  rule.rotate_ties = config_.tie_break == "rotate";
  rule.scale = config_.routed_scaling_factor;
  return rule;
}

at::Tensor TopkRouter::logits(RouterInput& in, const StepContext& step) const {
  if (!reads_input_) return in.logits_TE;
  const auto map = [&](at::Tensor& x_TD) {
    if (cosine_) return cosine_->logits(x_TD, weight_);
    const ops::RouterLogits logits = ops::router_logits(x_TD, weight_);
    x_TD = logits.x_TD;
    return logits.logits_TE;
  };
  if (!step.training || config_.noise != "jitter") return map(in.x_TD);
  at::Tensor jittered_TD;
  std::tie(jittered_TD, in.x_TD) =
      ops::jitter(in.x_TD, config_.noise_scale, draw_site(RouterDraw::kJitter, place_.layer), step.dropout);
  return map(jittered_TD);
}

Routing TopkRouter::route(RouterInput& in, const StepContext& step) const {
  const at::Tensor whole_TE = logits(in, step);
  const double clip = config_.logit_clip;
  Routing routing;
  routing.logits_TE = clip > 0 ? whole_TE.clamp(-clip, clip) : whole_TE;
  const ops::RoutingRule rule = this->rule(step);
  const ops::Selection selection = selection_.select(routing.logits_TE, rule, step);
  routing.scores = ops::router_scores(routing.logits_TE, selection, rule);
  routing.q_TE = selection.q_TE, routing.bias_E = selection.bias_E;
  if (clip > 0) routing.scores.z_sum = squared_log_sums(whole_TE, step.real_T);
  routing.tokens = whole_TE.size(0);
  routing.group_size = rule.group_size ? rule.group_size : routing.tokens;
  routing.experts = experts_;
  routing.top_k = config_.top_k;
  return routing;
}

}  // namespace switchyard
