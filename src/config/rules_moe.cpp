#include "config/field.h"
#include "config/rules.h"

namespace switchyard {
namespace {

void warn_of_unused_sparse_keys(Rules& rules) {
  std::vector<std::string> unused;
  for (const std::string& key : rules.resolved.given_keys()) {
    const bool sparse = key.rfind("moe.", 0) == 0 || key.rfind("router.", 0) == 0;
    if (sparse && key != "moe.use_moe") unused.push_back(key);
  }
  if (!unused.empty())
    rules.warn("moe.use_moe = false: the model is dense, and without effect are " + join(unused, ", "));
}

void check_experts(Rules& rules) {
  const Config& c = rules.config();
  if (rules.set("moe.d_expert") && rules.set("moe.expert_hidden_mult"))
    rules.fail(
        format("moe.d_expert = %d and moe.expert_hidden_mult = %d (which gives %d) are both set; give one of them",
               c.moe.d_expert, c.moe.expert_hidden_mult, c.moe.expert_hidden_mult * c.model.n_embd));
  if (c.moe.first_dense >= c.model.n_layer)
    rules.fail(format(
        "moe.first_dense = %d leaves no sparse layer of model.n_layer = %d; choose 0 to %d, or moe.use_moe false",
        c.moe.first_dense, c.model.n_layer, c.model.n_layer - 1));
  if (c.router.top_k > c.moe.n_experts)
    rules.fail(format("router.top_k = %d exceeds moe.n_experts = %d; choose 1 to %d", c.router.top_k, c.moe.n_experts,
                      c.moe.n_experts));
  if (c.moe.backend == "cuda" && c.device == "cpu")
    rules.fail("moe.backend = cuda needs a GPU, and device = cpu; choose auto, cpu or reference");
  rules.warn_if_inert("moe.d_shared", c.moe.n_shared_experts > 0, "moe.n_shared_experts");
  rules.warn_if_inert("moe.init_std", c.moe.init == "normal", "moe.init = normal");
}

void check_scores(Rules& rules) {
  const RouterConfig& r = rules.config().router;
  if (r.score == "identity" && r.norm_topk_prob)
    rules.fail(
        "router.norm_topk_prob = true divides by a sum of scores, which router.score = identity lets be 0 or less; set "
        "norm_topk_prob false, or score softmax or sigmoid");
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
  rules.warn_if_inert("router.balance_coef", !none, "a router.balance_loss");
  rules.warn_if_inert("router.balance_scope", !none, "a router.balance_loss");
  rules.warn_if_inert("router.balance_topk_normalize", r.balance_loss == "switch", "router.balance_loss = switch");
}

}  // namespace

void check_moe(Rules& rules) {
  if (!rules.config().moe.use_moe) return warn_of_unused_sparse_keys(rules);
  check_experts(rules);
  check_scores(rules);
  check_balance(rules);
}

}  // namespace switchyard
