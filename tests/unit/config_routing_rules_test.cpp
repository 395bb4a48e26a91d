// Rules of sparse models that span keys (moe_spec 4.1): what is refused, what is warned of, which defaults yield, and
// how moe.segments expands.
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/text.h"
#include "config/derive.h"
#include "config/load.h"
#include "config/validate.h"

namespace switchyard {
namespace {

// A sparse model with these keys beside moe.use_moe.
struct Outcome {
  std::string error;
  std::vector<std::string> messages;
  ResolvedConfig resolved;
};

Outcome check(const Overrides& keys) {
  Outcome outcome;
  try {
    outcome.resolved = parse_config(R"({"moe": {"use_moe": true}})", "a.json", keys);
    outcome.messages = validate(outcome.resolved, 1, false);
  } catch (const ConfigError& error) { outcome.error = error.what(); }
  return outcome;
}

std::string text_of(const Overrides& keys) {
  std::string text;
  for (const auto& [key, value] : keys) text += key + " = " + value + " ";
  return text;
}

struct Refused {
  const char* rule;  // its number in 4.1
  Overrides keys;
  std::vector<const char*> says;
};

void expect_refused(const std::vector<Refused>& cases) {
  for (const Refused& c : cases) {
    const std::string error = check(c.keys).error;
    for (const char* part : c.says)
      EXPECT_NE(error.find(part), std::string::npos) << c.rule << ": " << text_of(c.keys) << "\n"
                                                     << error << "\nlacks: " << part;
  }
}

TEST(RoutingRules, ChoicesThatCannotBeMade) {
  expect_refused({
      {"1", {{"router.top_k", "9"}}, {"router.top_k = 9 exceeds moe.n_experts = 8; choose 1 to 8"}},
      {"1",
       {{"router.top_k", "11"}, {"moe.zero_experts.copy", "2"}},
       {"router.top_k = 11 exceeds moe.n_experts = 8 and 2 zero experts; choose 1 to 10"}},
      {"1", {{"router.top_k", "0"}}, {"router.top_k"}},
      {"2", {{"router.n_group", "3"}}, {"router.n_group = 3 does not divide moe.n_experts = 8; choose 1, 2, 4 or 8"}},
      {"2",
       {{"router.n_group", "2"}, {"router.topk_group", "3"}},
       {"router.topk_group = 3 exceeds router.n_group = 2; choose 1 to 2"}},
      {"2",
       {{"router.top_k", "4"}, {"router.n_group", "4"}, {"router.topk_group", "1"}},
       {"router.topk_group = 1", "leave 2 experts for router.top_k = 4", "at least 2"}},
      {"3",
       {{"router.n_group", "2"}, {"router.topk_method", "greedy"}},
       {"router.n_group = 2", "greedy: groups would be ignored", "noaux_tc", "n_group 1"}},
      {"3",
       {{"router.bias_balancing", "true"}, {"router.topk_method", "greedy"}},
       {"router.bias_balancing = true", "the bias would never be read; choose topk_method noaux_tc"}},
      {"3",
       {{"router.bias_balancing", "true"}, {"router.topk_method", "group_limited_greedy"}},
       {"router.bias_balancing = true", "router.topk_method = group_limited_greedy"}},
      {"4",
       {{"router.score", "identity"}, {"router.norm_topk_prob", "true"}},
       {"router.norm_topk_prob = true", "router.score = identity", "norm_topk_prob false"}},
      {"4",
       {{"router.score", "identity"}, {"router.balance_loss", "cv_squared_topk"}},
       {"router.balance_loss = cv_squared_topk", "router.score = identity"}},
      {"4",
       {{"router.score", "identity"}, {"router.seq_balance_coef", "0.0001"}},
       {"router.seq_balance_coef = 0.0001", "router.score = identity"}},
      {"6",
       {{"router.semantic", "true"}, {"router.logit_clip", "3"}},
       {"router.logit_clip = 3", "router.semantic = true", "leave logit_clip out"}},
      {"6",
       {{"router.semantic", "true"}, {"router.init", "zeros"}},
       {"router.init = zeros", "router.semantic = true", "undefined", "normal or orthogonal"}},
      {"14",
       {{"router.init", "zeros"}, {"router.tie_break", "lowest_index"}, {"router.balance_loss", "cv_squared"}},
       {"router.tie_break = lowest_index", "router.init = zeros", "router.balance_loss = cv_squared", "rotate"}},
  });
}

TEST(RoutingRules, NothingActsOnRoutingByTokenId) {
  const std::string fix = "no learned router to act on with router.type = token_id; leave it out, or choose type topk";
  for (const auto& [key, value] : Overrides{{"router.balance_coef", "0.01"},
                                            {"router.balance_loss", "switch"},
                                            {"router.z_loss_coef", "0.001"},
                                            {"router.seq_balance_coef", "0.001"},
                                            {"router.noise", "gumbel"},
                                            {"router.bias_balancing", "true"},
                                            {"router.reset_interval", "100"},
                                            {"router.semantic", "true"},
                                            {"router.n_group", "2"},
                                            {"router.logit_clip", "3"},
                                            {"router.force_balanced", "true"},
                                            {"moe.token_importance", "learned"},
                                            {"moe.expert_dropout", "0.1"}})
    expect_refused({{"5", {{"router.type", "token_id"}, {key, value}}, {key.c_str(), value.c_str(), fix.c_str()}}});
  expect_refused({
      {"5", {{"router.type", "token_id"}, {"moe.zero_experts.zero", "1"}}, {"moe.zero_experts", fix.c_str()}},
      {"5",
       {{"router.type", "token_id"}, {"moe.capacity_factor", "1"}, {"moe.overflow", "reroute"}},
       {"moe.overflow = reroute", fix.c_str()}},
  });
  const Outcome untouched = check({{"router.type", "token_id"}});
  EXPECT_EQ(untouched.error, "");
  EXPECT_EQ(
      untouched.messages,
      (std::vector<std::string>{"router.balance_loss: the default switch yields to router.type = token_id; now none",
                                "router.balance_coef: the default 0.01 yields to router.type = token_id; now 0"}));
  EXPECT_EQ(check({{"router.type", "token_id"}, {"router.balance_coef", "0"}}).error, "");
}

TEST(RoutingRules, CapacitiesThatContradict) {
  for (const auto& [key, value] : Overrides{{"moe.min_expert_capacity", "128"},
                                            {"moe.max_expert_capacity", "800"},
                                            {"moe.capacity_ramp_steps", "10"},
                                            {"moe.drop_policy", "weight"},
                                            {"moe.overflow", "null_expert"},
                                            {"moe.null_expert", "copy"},
                                            {"moe.reroute_rounds", "2"},
                                            {"moe.renormalize_after_drop", "true"}})
    expect_refused({{"7, 8",
                     {{key, value}},
                     {(key + " is set").c_str(), "moe.capacity_factor = 0", "moe.expert_capacity = 0", "give one"}}});
  expect_refused({
      {"7",
       {{"moe.capacity_factor", "1.25"}, {"moe.expert_capacity", "64"}},
       {"moe.expert_capacity = 64", "moe.capacity_factor = 1.25", "give one of them"}},
      {"7",
       {{"moe.capacity_factor", "1"}, {"moe.min_expert_capacity", "9"}, {"moe.max_expert_capacity", "8"}},
       {"moe.min_expert_capacity = 9 exceeds moe.max_expert_capacity = 8"}},
      {"8",
       {{"moe.capacity_factor", "1"}, {"moe.drop_policy", "importance"}},
       {"moe.drop_policy = importance", "moe.token_importance = none", "norm or learned"}},
  });
}

TEST(RoutingRules, ExpertsAndWhatStandsBesideThem) {
  expect_refused({
      {"9",
       {{"moe.d_expert", "768"}, {"moe.expert_hidden_mult", "2"}},
       {"moe.d_expert = 768", "moe.expert_hidden_mult = 2", "give one of them"}},
      {"9",
       {{"moe.segments", "5"}, {"moe.d_expert", "768"}},
       {"moe.segments = 5 does not divide", "768", "choose 1, 2, 3, 4, 6"}},
      {"9",
       {{"moe.segments", "2"}, {"moe.n_shared_experts", "4"}},
       {"moe.segments = 2 times router.top_k = 2 less moe.n_shared_experts = 4 leaves 0", "at least 3"}},
      {"10",
       {{"moe.warmup_steps", "10"}, {"moe.warmup_mode", "dense_average"}},
       {"moe.warmup_mode = dense_average", "moe.n_shared_experts", "warmup_mode blend"}},
      {"10, 19",
       {{"moe.warmup_steps", "10"},
        {"moe.warmup_mode", "dense_average"},
        {"moe.n_shared_experts", "1"},
        {"train.cuda_graph", "true"}},
       {"train.cuda_graph = true", "moe.warmup_mode = dense_average", "cuda_graph auto"}},
      {"10",
       {{"moe.warmup_steps", "10"}, {"train.steps", "10"}},
       {"moe.warmup_steps = 10", "train.steps = 10", "choose 0 to 9"}},
      {"11",
       {{"moe.use_moe", "false"}, {"moe.flexible_ffn", "true"}},
       {"moe.flexible_ffn = true", "moe.use_moe = false"}},
      {"11", {{"moe.n_shared_experts", "-1"}}, {"moe.n_shared_experts", "-1"}},
      {"12",
       {{"router.reset_interval", "10"}, {"optim.muon.lr", "0"}},
       {"router.reset_interval = 10", "optim.muon.lr = 0"}},
      {"12",
       {{"router.reset_interval", "10"}, {"optim.router_optimizer", "adamw"}, {"optim.adamw.gate_lr", "0"}},
       {"router.reset_interval = 10", "optim.adamw.gate_lr = 0"}},
      {"13", {{"moe.expert_dropout", "1"}}, {"moe.expert_dropout", "1"}},
      {"15",
       {{"router.force_balanced", "true"}, {"router.noise", "gumbel"}},
       {"router.force_balanced = true", "router.noise = gumbel", "leave one of them out"}},
      {"15",
       {{"router.force_balanced", "true"}, {"router.bias_balancing", "true"}},
       {"router.force_balanced = true", "router.bias_balancing = true"}},
      {"15",
       {{"router.force_balanced", "true"}, {"moe.capacity_factor", "1"}},
       {"router.force_balanced = true", "a capacity of experts"}},
      {"15",
       {{"router.force_balanced", "true"}, {"train.checkpoint_every", "5"}},
       {"train.checkpoint_every = 5", "router.force_balanced = true"}},
      {"19",
       {{"train.cuda_graph", "true"}, {"moe.backend", "reference"}},
       {"train.cuda_graph = true", "moe.backend = reference"}},
      {"19",
       {{"train.cuda_graph", "true"}, {"train.debug", "tensors"}},
       {"train.cuda_graph = true", "train.debug = tensors", "debug stats"}},
  });
}

TEST(RoutingRules, Dynamics) {
  const auto with = [](Overrides keys) {
    keys.insert(keys.begin(), {"model.inl.enabled", "true"});
    return keys;
  };
  expect_refused({
      {"16", with({{"model.inl.beta_max", "25"}}), {"dt = 0.1 times beta_max = 25 is 2.5, more than 2", "at most 20"}},
      {"16", with({{"model.inl.init_alpha", "1"}}), {"model.inl.init_alpha = 1 is not inside 0 to 1"}},
      {"16", with({{"model.inl.init_beta", "2"}}), {"model.inl.init_beta = 2 is not inside 0 to 2"}},
      {"16", with({{"model.inl.init_gate", "0"}}), {"model.inl.init_gate"}},
      {"16", with({{"model.inl.mu_min", "1"}, {"model.inl.mu_max", "1"}}), {"model.inl.mu_min = 1", "mu_max = 1"}},
      {"16", with({{"model.inl.carry_velocity", "true"}}), {"model.inl.carry_velocity = true", "random order"}},
      {"16",
       with({{"model.inl.carry_velocity", "true"}, {"model.inl.shared", "false"}}),
       {"model.inl.carry_velocity = true", "model.inl.shared = false"}},
  });
}

struct Told {
  const char* rule;
  Overrides keys;
  std::vector<const char*> messages;  // each has this in it, and there are no others
};

void expect_told(const std::vector<Told>& cases) {
  for (const Told& c : cases) {
    const Outcome outcome = check(c.keys);
    EXPECT_EQ(outcome.error, "") << c.rule << ": " << text_of(c.keys);
    ASSERT_EQ(outcome.messages.size(), c.messages.size()) << c.rule << ": " << text_of(c.keys) << "\n"
                                                          << join(outcome.messages, "\n");
    for (std::size_t i = 0; i < c.messages.size(); ++i)
      EXPECT_NE(outcome.messages[i].find(c.messages[i]), std::string::npos)
          << c.rule << ": " << outcome.messages[i] << "\nlacks: " << c.messages[i];
  }
}

TEST(RoutingRules, UntouchedDefaultsYield) {
  expect_told({
      {"1", {{"moe.n_experts", "1"}}, {"router.top_k: the default 2 yields to moe.n_experts = 1; now 1"}},
      {"2",
       {{"router.n_group", "8"}, {"router.topk_method", "noaux_tc"}},
       {"router.topk_group: the default 1 yields to router.n_group = 8; now 2"}},
      {"3",
       {{"router.n_group", "2"}},
       {"router.topk_method: the default greedy yields to router.n_group = 2; now noaux_tc"}},
      {"3",
       {{"router.bias_balancing", "true"}, {"router.balance_coef", "0"}},
       {"router.topk_method: the default greedy yields to router.bias_balancing = true; now noaux_tc"}},
      {"4",
       {{"router.score", "identity"}},
       {"router.norm_topk_prob: the default true yields to router.score = identity; now false"}},
      {"6",
       {{"router.semantic", "true"}},
       {"router.init: the default zeros yields to router.semantic = true; now normal",
        "router.init_std: the default 0.02 yields to router.semantic = true; now 0.01"}},
      {"6",
       {{"router.semantic", "true"}, {"router.init_std", "0.5"}},
       {"router.init: the default zeros yields to router.semantic = true; now normal"}},
      {"14",
       {{"router.tie_break", "lowest_index"}, {"router.balance_loss", "cv_squared"}},
       {"router.init: the default zeros yields to router.tie_break = lowest_index; now normal"}},
  });
}

TEST(RoutingRules, WhatIsAllowedButTold) {
  expect_told({
      {"7",
       {{"moe.capacity_factor", "1"}, {"moe.max_expert_capacity", "800"}},
       {"moe.max_expert_capacity = 800 rows: a micro-batch brings an expert 4096 rows on average"}},
      {"7", {{"moe.expert_capacity", "800"}}, {"moe.expert_capacity = 800 rows: a micro-batch brings an expert 4096"}},
      {"7",
       {{"moe.expert_capacity", "4096"}, {"moe.capacity_ramp_steps", "10"}},
       {"moe.capacity_ramp_steps is set but has no effect"}},
      {"8",
       {{"moe.capacity_factor", "1"}, {"moe.null_expert", "copy"}},
       {"moe.null_expert is set but has no effect without moe.overflow = null_expert"}},
      {"8",
       {{"moe.token_importance", "norm"}},
       {"moe.token_importance is set but has no effect without moe.drop_policy = importance"}},
      {"11",
       {{"moe.use_moe", "false"}, {"moe.n_experts", "4"}, {"router.top_k", "2"}, {"router.noise", "gumbel"}},
       {"without effect are moe.n_experts, router.noise"}},
      {"12",
       {{"router.reset_interval", "50"}, {"moe.warmup_steps", "100"}},
       {"router.reset_interval = 50 falls at least twice into moe.warmup_steps = 100"}},
      {"12",
       {{"router.reset_interval", "50"}, {"router.reset_until", "40"}},
       {"router.reset_until = 40 comes before the first reset, router.reset_interval = 50"}},
      {"13",
       {{"moe.expert_dropout", "0.9"}},
       {"moe.expert_dropout = 0.9 leaves 0.8 of 8 experts on average, fewer than router.top_k = 2"}},
      {"15",
       {{"router.bias_balancing", "true"}, {"router.topk_method", "noaux_tc"}},
       {"router.bias_balancing and router.balance_coef = 0.01 both even out the load"}},
      {"5",
       {{"router.type", "token_id"},
        {"router.balance_loss", "none"},
        {"router.balance_coef", "0"},
        {"router.score", "sigmoid"}},
       {"router.score is set but has no effect without router.type = topk"}},
      {"15",
       {{"router.force_spread", "0.5"}},
       {"router.force_spread is set but has no effect without router.force_balanced"}},
  });
}

TEST(Segments, CutExpertsAtUnchangedCost) {
  const Outcome outcome =
      check({{"moe.segments", "4"}, {"moe.n_shared_experts", "1"}, {"moe.n_experts", "16"}, {"router.top_k", "2"}});
  ASSERT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.messages, std::vector<std::string>{
                                  "moe.segments = 4: moe.n_experts is 63, router.top_k 7, moe.d_expert 768, in place "
                                  "of 16, 2 and 3072"});
  ResolvedConfig r = outcome.resolved;
  for (int again = 0; again < 2; ++again, derive(r)) {
    EXPECT_EQ(r.config.moe.n_experts, 63);
    EXPECT_EQ(r.config.router.top_k, 7);
    EXPECT_EQ(r.config.moe.d_expert, 768);
    EXPECT_EQ(r.config.moe.d_shared, 768);
  }
  EXPECT_TRUE(r.was_set("moe.n_experts"));
  EXPECT_EQ(r.source("moe.n_experts"), Source::kDerived);
  // A checkpoint keeps what was given, and gives the same model again, with another value for a key too.
  EXPECT_EQ(parse_config(r.given_json(), "b.json", {}).config.moe.n_experts, 63);
  EXPECT_EQ(parse_config(r.given_json(), "b.json", {{"moe.segments", "2"}}).config.moe.n_experts, 31);
  EXPECT_EQ(parse_config(r.resolved_json(), "b.json", {}).resolved_json(), r.resolved_json());
}

TEST(Segments, LeaveDenseModelsAndTheDefaultAlone) {
  EXPECT_EQ(check({{"moe.segments", "1"}}).messages.size(), 0u);
  EXPECT_EQ(check({{"moe.use_moe", "false"}, {"moe.segments", "4"}}).resolved.config.moe.n_experts, 8);
}

}  // namespace
}  // namespace switchyard
