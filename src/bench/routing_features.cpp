#include "bench/routing_features.h"

namespace switchyard::bench {
namespace {

const std::pair<std::string, std::string> kInjected{"moe.aux_injection", "autograd"};

std::vector<RoutingFeature> scores_and_losses() {
  return {
      {"sigmoid scores", {{"router.score", "sigmoid"}}},
      {"logit clip", {{"router.logit_clip", "3"}}},
      {"padding", {}, false, true},
      {"forced balance", {{"router.force_balanced", "true"}}},
      {"Switch loss", {kInjected, {"router.balance_loss", "switch"}}},
      {"CV squared loss", {kInjected, {"router.balance_loss", "cv_squared"}}},
      {"Switch loss by sequence", {kInjected, {"router.balance_scope", "sequence"}}},
      {"Switch and sequence loss", {kInjected, {"router.seq_balance_coef", "0.001"}}},
      {"z-loss", {kInjected, {"router.balance_loss", "none"}, {"router.z_loss_coef", "0.001"}}},
  };
}

std::vector<RoutingFeature> choice(const LayerShape& shape) {
  std::vector<RoutingFeature> list = {
      {"noaux_tc bias", {{"router.bias_balancing", "true"}, {"router.balance_coef", "0"}}},
      {"Gumbel noise", {{"router.noise", "gumbel"}}},
      {"Gaussian noise", {{"router.noise", "gaussian"}}},
      {"jitter", {{"router.noise", "jitter"}}},
      {"whole-expert dropout", {{"moe.expert_dropout", "0.1"}}},
      {"semantic router", {{"router.semantic", "true"}}},
      {"token_id router", {{"router.type", "token_id"}}},
  };
  if (shape.experts % 4 != 0 || shape.experts / 2 < shape.top_k) return list;
  const Overrides groups{{"router.n_group", "4"}, {"router.topk_group", "2"}};
  const auto limited = [&](const char* name, Overrides more) {
    more.insert(more.end(), groups.begin(), groups.end());
    list.push_back({name, more});
  };
  limited("groups, greedy", {{"router.topk_method", "group_limited_greedy"}});
  limited("groups, noaux_tc bias", {{"router.bias_balancing", "true"}, {"router.balance_coef", "0"}});
  limited("groups, Gumbel noise", {{"router.noise", "gumbel"}});
  return list;
}

// "capacity: drop" stands against the plain layer, the others against it.
std::vector<RoutingFeature> capacity() {
  const std::pair<std::string, std::string> full{"moe.capacity_factor", "1"};
  std::vector<RoutingFeature> list{{"capacity: drop", {full}}};
  const auto add = [&](const std::string& name, Overrides more, bool with_products = false) {
    more.insert(more.begin(), full);
    list.push_back({"capacity: " + name, more, with_products, false, {full}, "capacity"});
  };
  const std::pair<std::string, std::string> to_null{"moe.overflow", "null_expert"}, reroute{"moe.overflow", "reroute"};
  add("drop, ramp", {{"moe.capacity_ramp_steps", "5"}});
  add("drop by weight", {{"moe.drop_policy", "weight"}});
  add("drop by importance", {{"moe.drop_policy", "importance"}, {"moe.token_importance", "norm"}});
  add("drop, renormalise", {{"moe.renormalize_after_drop", "true"}});
  add("null expert, zero", {to_null});
  add("null expert, copy", {to_null, {"moe.null_expert", "copy"}});
  add("null expert, constant", {to_null, {"moe.null_expert", "constant"}});
  add("null expert, ffn", {to_null, {"moe.null_expert", "ffn"}}, true);
  add("reroute", {reroute});
  add("reroute, 3 rounds", {reroute, {"moe.reroute_rounds", "3"}});
  return list;
}

std::vector<RoutingFeature> beside() {
  const std::pair<std::string, std::string> zero{"moe.zero_experts.zero", "1"};
  return {
      {"learned importance", {{"moe.token_importance", "learned"}}},
      {"zero experts: zero", {zero}},
      {"zero experts: copy", {{"moe.zero_experts.copy", "1"}}, false, false, {zero}, "a zero expert"},
      {"zero experts: constant", {{"moe.zero_experts.constant", "1"}}, false, false, {zero}, "a zero expert"},
      {"warm-up", {{"moe.warmup_steps", "100"}}},
      {"hidden dropout", {{"moe.expert_hidden_dropout", "0.1"}}},
      {"recompute", {{"train.recompute", "moe"}}, true},
      {"shared expert", {{"moe.n_shared_experts", "1"}}, true},
      {"flexible FFN", {{"moe.flexible_ffn", "true"}}, true},
  };
}

}  // namespace

std::vector<RoutingFeature> routing_features(const LayerShape& shape) {
  std::vector<RoutingFeature> all;
  for (const auto& list : {scores_and_losses(), choice(shape), capacity(), beside()})
    all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace switchyard::bench
