#include "config/field.h"
#include "config/rules.h"

namespace switchyard {
namespace {

void check_scores(Rules& rules) {
  const RouterConfig& r = rules.config().router;
  if (r.score == "identity" && r.norm_topk_prob)
    rules.fail(
        "router.norm_topk_prob = true divides by a sum of scores, which router.score = identity lets be 0 or less; set "
        "norm_topk_prob false, or score softmax or sigmoid");
  if (r.score == "identity" && r.seq_balance_coef > 0)
    rules.fail(
        format("router.seq_balance_coef = %g needs scores that are not negative, and router.score = identity; leave "
               "it out, or choose score softmax or sigmoid",
               r.seq_balance_coef));
  if (r.score == "identity" && r.balance_loss == "cv_squared_topk")
    rules.fail(
        "router.balance_loss = cv_squared_topk needs scores that are not negative, and router.score = identity; choose "
        "switch, cv_squared or none, or score softmax or sigmoid");
  if (r.norm_topk_prob && rules.set("router.norm_topk_prob") && r.top_k == 1)
    rules.warn(
        "router.norm_topk_prob is skipped for router.top_k = 1: a weight of 1 would cut the router off from the loss");
  rules.warn_if_inert("router.init_std", r.init == "normal", "router.init = normal");
}

void check_balance(Rules& rules) {
  const RouterConfig& r = rules.config().router;
  if (r.balance_loss == "cv_squared" && r.balance_coef > 0 && r.init == "zeros" && r.tie_break == "lowest_index")
    rules.fail(
        "router.tie_break = lowest_index sends every token of a router.init = zeros to the same experts, and "
        "router.balance_loss = cv_squared has no gradient there; choose tie_break rotate, init normal, or balance_loss "
        "switch");
  const bool none = r.balance_loss == "none";
  rules.warn_if_inert("router.balance_coef", !none || r.balance_coef == 0, "a router.balance_loss");
  rules.warn_if_inert("router.balance_scope", !none, "a router.balance_loss");
  rules.warn_if_inert("router.balance_topk_normalize", r.balance_loss == "switch", "router.balance_loss = switch");
}

void check_choice(Rules& rules) {
  const Config& c = rules.config();
  const int choices = router_columns(c.moe);
  if (c.router.top_k > choices)
    rules.fail(format(
        "router.top_k = %d exceeds moe.n_experts = %d%s; choose 1 to %d", c.router.top_k, c.moe.n_experts,
        choices > c.moe.n_experts ? format(" and %d zero experts", choices - c.moe.n_experts).c_str() : "", choices));
}

void check_groups(Rules& rules) {
  const Config& c = rules.config();
  const RouterConfig& r = c.router;
  const int experts = c.moe.n_experts;
  if (r.bias_balancing && r.topk_method != "noaux_tc")
    rules.fail("router.bias_balancing = true with router.topk_method = " + r.topk_method +
               ": the bias would never be read; choose topk_method noaux_tc");
  if (r.n_group > 1 && r.topk_method == "greedy")
    rules.fail(
        format("router.n_group = %d with router.topk_method = greedy: groups would be ignored; choose "
               "group_limited_greedy or noaux_tc, or n_group 1",
               r.n_group));
  if (experts % r.n_group != 0)
    rules.fail(format("router.n_group = %d does not divide moe.n_experts = %d; choose %s", r.n_group, experts,
                      divisors_text(experts).c_str()));
  if (r.topk_group > r.n_group)
    rules.fail(format("router.topk_group = %d exceeds router.n_group = %d; choose 1 to %d", r.topk_group, r.n_group,
                      r.n_group));
  const int left = r.topk_group * (experts / r.n_group);
  if (r.n_group > 1 && left < r.top_k)
    rules.fail(
        format("router.topk_group = %d groups leave %d experts for router.top_k = %d; choose a topk_group of at "
               "least %d",
               r.topk_group, left, r.top_k, (r.top_k * r.n_group + experts - 1) / experts));
}

// Routing by the token's number has no scores: what acts on scores would be silently without effect.
void check_token_id(Rules& rules) {
  const Config& c = rules.config();
  const RouterConfig& r = c.router;
  const std::vector<std::pair<bool, std::string>> acting = {
      {r.balance_coef > 0, format("router.balance_coef = %g", r.balance_coef)},
      {r.balance_loss != "none", "router.balance_loss = " + r.balance_loss},
      {r.seq_balance_coef > 0, format("router.seq_balance_coef = %g", r.seq_balance_coef)},
      {r.z_loss_coef > 0, format("router.z_loss_coef = %g", r.z_loss_coef)},
      {r.noise != "none", "router.noise = " + r.noise},
      {r.bias_balancing, "router.bias_balancing = true"},
      {r.reset_interval > 0, format("router.reset_interval = %d", r.reset_interval)},
      {r.semantic, "router.semantic = true"},
      {r.n_group > 1, format("router.n_group = %d", r.n_group)},
      {r.force_balanced, "router.force_balanced = true"},
      {r.logit_clip > 0, format("router.logit_clip = %g", r.logit_clip)},
      {c.moe.expert_dropout > 0, format("moe.expert_dropout = %g", c.moe.expert_dropout)},
      {c.moe.token_importance == "learned", "moe.token_importance = learned"},
      {router_columns(c.moe) > c.moe.n_experts, "moe.zero_experts"},
      {c.moe.overflow == "reroute", "moe.overflow = reroute"}};
  for (const auto& [on, what] : acting)
    if (on)
      rules.fail(what +
                 " has no learned router to act on with router.type = token_id; leave it out, or choose type topk");
  for (const char* key : {"router.score", "router.norm_topk_prob", "router.init", "router.tie_break",
                          "router.topk_method", "router.aux_ramp_steps"})
    rules.warn_if_inert(key, false, "router.type = topk");
}

void check_semantic(Rules& rules) {
  const RouterConfig& r = rules.config().router;
  rules.warn_if_inert("router.semantic_dim", r.semantic, "router.semantic");
  rules.warn_if_inert("router.semantic_scale_init", r.semantic, "router.semantic");
  if (!r.semantic) return;
  if (r.logit_clip > 0)
    rules.fail(
        format("router.logit_clip = %g with router.semantic = true, whose logits are bounded by their scale; leave "
               "logit_clip out",
               r.logit_clip));
  if (r.init == "zeros")
    rules.fail(
        "router.init = zeros with router.semantic = true: the cosine of a zero vector is undefined; choose normal "
        "or orthogonal, or leave init out");
  if (r.semantic_scale_init > 100)
    rules.fail(format("router.semantic_scale_init = %g exceeds 100, where the scale is held; choose up to 100",
                      r.semantic_scale_init));
}

void check_reset(Rules& rules) {
  const Config& c = rules.config();
  const RouterConfig& r = c.router;
  if (r.reset_interval == 0) return;
  const bool muon = c.optim.router_optimizer == "muon";
  if ((muon ? c.optim.muon.lr : c.optim.adamw.gate_lr) == 0)
    rules.fail(
        format("router.reset_interval = %d would start a router anew that %s = 0 keeps from learning; leave one of "
               "them out",
               r.reset_interval, muon ? "optim.muon.lr" : "optim.adamw.gate_lr"));
  if (r.reset_until > 0 && r.reset_until < r.reset_interval)
    rules.warn(format("router.reset_until = %d comes before the first reset, router.reset_interval = %d; there is none",
                      r.reset_until, r.reset_interval));
}

void check_schedules(Rules& rules) {
  const Config& c = rules.config();
  const RouterConfig& r = c.router;
  rules.warn_if_inert("router.noise_scale", r.noise != "none", "a router.noise");
  rules.warn_if_inert("router.aux_ramp_start", r.aux_ramp_steps > 0, "router.aux_ramp_steps");
  rules.warn_if_inert("router.bias_update_rate", r.bias_balancing, "router.bias_balancing");
  rules.warn_if_inert("router.reset_noise", r.reset_interval > 0, "router.reset_interval");
  rules.warn_if_inert("router.reset_until", r.reset_interval > 0, "router.reset_interval");
  check_reset(rules);
  if (r.reset_interval > 0 && 2 * r.reset_interval <= c.moe.warmup_steps)
    rules.warn(
        format("router.reset_interval = %d falls at least twice into moe.warmup_steps = %d: the router starts anew "
               "before its experts count",
               r.reset_interval, c.moe.warmup_steps));
  if (r.bias_balancing && r.balance_coef > 0 && r.balance_loss != "none")
    rules.warn(
        format("router.bias_balancing and router.balance_coef = %g both even out the load, as in DeepSeek-V3, "
               "whose coefficient is 0.0001",
               r.balance_coef));
}

void check_forced(Rules& rules) {
  const Config& c = rules.config();
  const RouterConfig& r = c.router;
  rules.warn_if_inert("router.force_spread", r.force_balanced, "router.force_balanced");
  if (!r.force_balanced) return;
  const bool capacity = c.moe.capacity_factor > 0 || c.moe.expert_capacity > 0;
  if (r.noise != "none" || r.bias_balancing || capacity)
    rules.fail("router.force_balanced = true sets the choice aside that " +
               std::string(r.noise != "none"  ? "router.noise = " + r.noise
                           : r.bias_balancing ? "router.bias_balancing = true"
                                              : "a capacity of experts") +
               " acts on; leave one of them out");
  if (c.train.checkpoint_every > 0)
    rules.fail(
        format("train.checkpoint_every = %d would save a model trained with router.force_balanced = true, which "
               "is a benchmark; leave one of them out",
               c.train.checkpoint_every));
}

}  // namespace

void check_router(Rules& rules) {
  check_choice(rules);
  check_scores(rules);
  check_balance(rules);
  check_groups(rules);
  if (rules.config().router.type == "token_id") check_token_id(rules);
  check_semantic(rules);
  check_schedules(rules);
  check_forced(rules);
}

}  // namespace switchyard
