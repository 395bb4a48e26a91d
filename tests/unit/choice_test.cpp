// The scores of a choice in one pass, and the jitter of the router's input, against plain ATen (moe_spec R3, R7, E13).
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/jitter.h"
#include "ops/selection.h"
#include "selection_testing.h"

namespace switchyard::ops {
namespace {

// ---- scores for the choice in one pass ----

struct ChoiceCase {
  const char* name;
  int experts, zero_experts;
  double noise;
  bool bias, dropped;
  GroupLimit groups;
  bool rotate = true;
};
const std::vector<ChoiceCase> kChoices = {
    {"nothing", 8, 0, 0, false, false, {}},
    {"one expert", 1, 0, 1, true, false, {}},
    {"noise", 16, 0, 0.7, false, false, {}},
    {"odd columns, all", 13, 2, 0.7, true, true, {}},
    {"greedy groups", 8, 0, 0, false, false, {4, 2, false}},
    {"greedy groups, lowest index", 8, 0, 0, false, false, {4, 2, false}, false},
    {"DeepSeek-V3", 64, 0, 0, true, false, {8, 4, true}},
    {"all", 64, 0, 0.5, true, true, {8, 4, true}},
    {"all and zero experts", 12, 3, 0.5, true, true, {3, 1, true}},
    {"groups of one expert", 8, 1, 0, true, false, {8, 3, true}},
    {"512", 512, 0, 0.5, true, true, {32, 7, true}},
    {"200", 200, 0, 0.5, true, true, {200, 16, false}},
};

// q of the two differ by rounding, so a group's fate may hang on it: such tokens, few, are passed over.
TEST(ChoiceScores, MatchTheReference) {
  const int seq_len = 24, tokens = 3 * seq_len;
  for (const at::Device device : devices())
    for (const at::ScalarType type : {at::kFloat, at::kDouble})
      for (const Score score : {Score::kSoftmax, Score::kSigmoid, Score::kIdentity})
        for (const ChoiceCase& c : kChoices) {
          if (device.is_cuda() && type == at::kDouble) continue;
          SCOPED_TRACE(std::string(c.name) + " score " + std::to_string(static_cast<int>(score)));
          const int columns = c.experts + c.zero_experts;
          RoutingRule rule = rule_of(2, seq_len, score);
          rule.rotate_ties = c.rotate, rule.first_position = 3;
          Choice choice;
          choice.experts = c.experts, choice.groups = c.groups;
          choice.noise = {Noise::kGaussian, c.noise, 5, key_of({9, 2, 4}, seq_len, 3, device)};
          if (c.bias) choice.bias_E = (0.1 * random({columns}, 3)).to(device);
          if (c.dropped) choice.dropped_E = at::arange(c.experts).remainder(3).eq(1).to(device);
          const Tensor logits = random({tokens, columns}, 2, type).to(device);
          const Tensor got = choice_scores(logits, choice, rule), want = choice_scores_reference(logits, choice, rule);
          const Tensor same = got.isfinite().eq(want.isfinite()).all(1);
          EXPECT_GE(same.sum().item<int>(), c.groups.groups > 100 ? tokens - 6 : tokens - 1);
          const Tensor both = got.isfinite().logical_and(same.unsqueeze(1));
          EXPECT_LT(largest_difference(got.masked_fill(both.logical_not(), 0), want.masked_fill(both.logical_not(), 0)),
                    2e-5);
          EXPECT_TRUE(got.masked_fill(got.isfinite(), kNever).eq(kNever).all().item<bool>()) << "the rest is -inf";
        }
}

// Scores without noise or bias are those that the router kernel makes, bit for bit: ties stay ties.
TEST(ChoiceScores, TiedGroupsRankByTheTurn) {
  for (const at::Device device : devices()) {
    const Tensor logits = at::zeros({12, 12}).to(device);
    Choice choice;
    choice.experts = 12, choice.groups = {4, 2, true};
    const RoutingRule rule = rule_of(3, 12);
    EXPECT_TRUE(at::equal(choice_scores(logits, choice, rule).isfinite(),
                          choice_scores_reference(logits, choice, rule).isfinite()));
  }
}

// ---- jitter ----

TEST(Jitter, ScalesChannelsByTheirDrawsForwardAndBackward) {
  for (const at::Device device : devices())
    for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
      if (device.is_cuda() && type == at::kDouble) continue;
      for (const bool others : {false, true}) {
        const DropoutKey key = key_of({9, 2, 4}, 5, 3, device);
        std::vector<std::vector<Tensor>> results;
        for (const bool reference : {false, true}) {
          const Tensor x = random({15, 24}, 1, type).to(device).requires_grad_(true);
          const auto [scaled, same] = (reference ? jitter_reference : jitter)(x, 0.2, 7, key);
          Tensor loss = (scaled * random({15, 24}, 2, type).to(device)).sum();
          if (others) loss = loss + (same * random({15, 24}, 3, type).to(device)).sum();
          torch::autograd::backward({loss}, {});
          results.push_back({scaled.detach(), x.grad()});
        }
        for (int i = 0; i < 2; ++i) EXPECT_LT(largest_difference(results[0][i], results[1][i]), 1e-6);
      }
    }
}

}  // namespace
}  // namespace switchyard::ops
