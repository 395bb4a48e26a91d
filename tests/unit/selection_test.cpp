// Who is chosen: noise, groups of experts, whole-expert dropout, forced and token-id choices, padding, and the closed
// forms of the router's gradients (moe_spec R1, R3, R6, R7, R15, R16, E13 and section 3).
#include "ops/selection.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <numeric>
#include <set>

#include "ops/noise.h"
#include "selection_testing.h"

namespace switchyard::ops {
namespace {

// ---- noise ----

struct NoiseCase {
  const char* name;
  Noise kind;
  double mean, deviation, mean_square_error;  // the last of one draw's square, for the bound on the variance
};
const std::vector<NoiseCase> kNoise = {
    {"uniform", Noise::kUniform, 0.5, std::sqrt(1 / 12.0), 0.08},
    {"gumbel", Noise::kGumbel, 0.57721566, M_PI / std::sqrt(6.0), 4.0},
    {"gaussian", Noise::kGaussian, 0, 1, 1.42},
};

TEST(Noise, HasItsDistribution) {
  for (const at::Device device : devices())
    for (const NoiseCase& c : kNoise) {
      const Tensor draws = noise(c.kind, 8000, 50, 1, key_of({1, 5}, 4000, 3, device)).to(at::kDouble);
      const double count = static_cast<double>(draws.numel());
      EXPECT_TRUE(draws.isfinite().all().item<bool>()) << c.name;
      EXPECT_NEAR(draws.mean().item<double>(), c.mean, 4 * c.deviation / std::sqrt(count)) << c.name;
      EXPECT_NEAR(draws.var().item<double>(), c.deviation * c.deviation, 4 * c.mean_square_error / std::sqrt(count))
          << c.name;
      const Tensor centred = draws - draws.mean();
      EXPECT_NEAR((centred.narrow(1, 0, 49) * centred.narrow(1, 1, 49)).mean().item<double>(), 0,
                  5 * c.deviation * c.deviation / std::sqrt(count))
          << c.name << ": neighbouring columns";
    }
}

TEST(Noise, DependsOnNothingButItsPlace) {
  for (const at::Device device : devices())
    for (const NoiseCase& c : kNoise) {
      const Tensor whole = noise(c.kind, 24, 13, 5, key_of({9, 2, 4}, 8, 3, device));
      const std::vector<std::int64_t> windows{9, 2, 4};
      for (int i = 0; i < 3; ++i)
        EXPECT_TRUE(at::equal(noise(c.kind, 8, 13, 5, key_of({windows[i]}, 8, 3, device)), whole.narrow(0, 8 * i, 8)))
            << c.name << " on a rank that has window " << windows[i] << " alone";
      EXPECT_TRUE(at::equal(noise(c.kind, 24, 16, 5, key_of(windows, 8, 3, device)).narrow(1, 0, 13), whole)) << c.name;
      EXPECT_FALSE(at::equal(noise(c.kind, 24, 13, 6, key_of(windows, 8, 3, device)), whole)) << c.name << ": site";
      EXPECT_FALSE(at::equal(noise(c.kind, 24, 13, 5, key_of(windows, 8, 4, device)), whole)) << c.name << ": step";
      if (device.is_cuda()) {
        EXPECT_LT(largest_difference(whole.cpu(), noise(c.kind, 24, 13, 5, key_of(windows, 8))), 1e-5) << c.name;
      }
    }
}

TEST(Noise, OfAStepIsTheSameOnEveryRank) {
  const Tensor u = step_uniform(11, 5, key_of({9, 2, 4}, 8));
  EXPECT_TRUE(at::equal(u, step_uniform(11, 5, key_of({1}, 16))));
  EXPECT_FALSE(at::equal(u, step_uniform(11, 5, key_of({1}, 16, 4))));
  EXPECT_FALSE(at::equal(u, step_uniform(11, 6, key_of({1}, 16))));
  EXPECT_EQ(step_uniform(11, 5, key_of({}, 8)).sizes(), (std::vector<std::int64_t>{11}));
}

// The argmax of l + gumbel is a draw from softmax(l); the best two are two draws without replacement.
TEST(Noise, GumbelChoicesAreDrawsFromTheSoftmax) {
  const std::int64_t tokens = 400000;
  const Tensor logits = at::tensor({0.3f, -1.2f, 1.1f, 0.0f, -0.4f}).expand({tokens, 5}).contiguous();
  const Tensor q = scores_of(logits + noise(Noise::kGumbel, tokens, 5, 2, key_of({0}, 400000)), Score::kSoftmax);
  const Tensor p = at::softmax(logits[0].to(at::kDouble), 0);
  const RouterScores one = router_scores(logits, {Tensor(), q, Tensor()}, rule_of(1, 400000));
  EXPECT_LT(largest_difference(one.count_GE[0].to(at::kDouble) / static_cast<double>(tokens), p), 0.002);
  EXPECT_LT(largest_difference(one.weight_TK, at::softmax(logits, 1).gather(1, one.expert_TK.to(at::kLong))), 1e-6);

  const Tensor two = router_scores(logits, {Tensor(), q, Tensor()}, rule_of(2, 400000)).expert_TK;
  const auto frequency = [&](int first, int second) {
    return two.select(1, 0).eq(first).logical_and(two.select(1, 1).eq(second)).to(at::kDouble).mean().item<double>();
  };
  for (const auto& [a, b] : {std::pair(0, 2), std::pair(2, 0), std::pair(2, 4)}) {
    const double pa = p[a].item<double>(), pb = p[b].item<double>();
    EXPECT_NEAR(frequency(a, b), pa * pb / (1 - pa), 0.002) << a << " then " << b;
  }
}

// ---- groups ----

struct GroupCase {
  const char* name;
  int experts, zero_experts, groups, kept, top_k;
  bool sum_of_two, ties, rotate;
};
const std::vector<GroupCase> kGroups = {
    {"DeepSeek-V3", 16, 0, 4, 2, 4, true, false, true},
    {"DeepSeek-V2", 16, 0, 4, 2, 4, false, false, true},
    {"003", 8, 0, 2, 1, 2, true, false, true},
    {"groups of one expert", 8, 0, 8, 3, 3, true, false, true},
    {"ties", 12, 0, 4, 2, 3, true, true, true},
    {"ties, largest of a group", 12, 0, 6, 2, 2, false, true, true},
    {"ties, lowest index", 12, 0, 4, 2, 3, true, true, false},
    {"zero experts are in no group", 8, 3, 4, 1, 2, true, false, true},
    {"zero experts, ties", 8, 3, 4, 2, 3, true, true, true},
};

// The definition, one token at a time.
std::vector<int> grouped_choice(const GroupCase& c, const float* q, int position) {
  const int columns = c.experts + c.zero_experts, size = c.experts / c.groups;
  const auto place = [&](int e) { return c.rotate ? ((e - position * c.top_k) % columns + columns) % columns : e; };
  std::vector<float> score(c.groups);
  std::vector<int> first(c.groups, columns), group(c.groups), order(columns);
  for (int g = 0; g < c.groups; ++g) {
    std::vector<float> members(q + g * size, q + (g + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    score[g] = members[0] + (c.sum_of_two && size > 1 ? members[1] : 0.0f);
    for (int e = g * size; e < (g + 1) * size; ++e) first[g] = std::min(first[g], place(e));
  }
  std::iota(group.begin(), group.end(), 0);
  std::sort(group.begin(), group.end(),
            [&](int a, int b) { return score[a] != score[b] ? score[a] > score[b] : first[a] < first[b]; });
  std::vector<float> allowed(q, q + columns);
  for (int i = c.kept; i < c.groups; ++i)
    std::fill_n(allowed.begin() + static_cast<std::ptrdiff_t>(group[i]) * size, size, kNever);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return allowed[a] != allowed[b] ? allowed[a] > allowed[b] : place(a) < place(b); });
  order.resize(c.top_k);
  return order;
}

TEST(Groups, MatchTheDefinitionOnRandomRows) {
  const int tokens = 10000, seq_len = 40;
  for (const at::Device device : devices())
    for (const GroupCase& c : kGroups) {
      const int columns = c.experts + c.zero_experts;
      // Sigmoid scores with a bias that makes about half of q negative.
      const Tensor logits = random({tokens, columns}, 11);
      Tensor q = at::sigmoid(logits) - 0.5 + 0.3 * random({columns}, 12);
      if (c.ties) q = (q * 4).round();
      RoutingRule rule = rule_of(c.top_k, seq_len);
      rule.rotate_ties = c.rotate;
      rule.first_position = 5;
      const Tensor limited = limit_groups(q.to(device), c.experts, {c.groups, c.kept, c.sum_of_two}, rule);
      const Tensor chosen = router_scores(logits.to(device), {Tensor(), limited, Tensor()}, rule).expert_TK.cpu();
      for (int t = 0; t < tokens; ++t) {
        const std::vector<int> want = grouped_choice(c, q.data_ptr<float>() + t * columns, 5 + t % seq_len);
        const int* got = chosen.data_ptr<int>() + t * c.top_k;
        ASSERT_EQ(std::vector<int>(got, got + c.top_k), want) << c.name << ", token " << t;
        std::set<int> groups;
        for (const int e : want)
          if (e < c.experts) groups.insert(e / (c.experts / c.groups));
        ASSERT_LE(static_cast<int>(groups.size()), c.kept) << c.name;
      }
    }
}

TEST(Groups, AllKeptMaskNothing) {
  const Tensor q = random({20, 12}, 1);
  EXPECT_TRUE(at::equal(limit_groups(q, 12, {4, 4, true}, rule_of(2, 20)), q));
}

TEST(Groups, OneExpertLeftGivesTheGroupItsScore) {
  const Tensor q = at::tensor({0.9f, kNever, 0.4f, 0.3f, kNever, kNever}).unsqueeze(0);
  const Tensor limited = limit_groups(q, 6, {3, 1, true}, rule_of(1, 1));
  EXPECT_TRUE(at::equal(limited, at::tensor({0.9f, kNever, kNever, kNever, kNever, kNever}).unsqueeze(0)));
}

TEST(Groups, NanScoresStillChooseDistinctExperts) {
  Tensor q = random({8, 12}, 1);
  q[0].fill_(NAN);
  q[1].narrow(0, 0, 7).fill_(NAN);
  const Tensor logits = random({8, 12}, 2), limited = limit_groups(q, 12, {4, 2, true}, rule_of(3, 8));
  const Tensor chosen = router_scores(logits, {Tensor(), limited, Tensor()}, rule_of(3, 8)).expert_TK;
  for (int t = 0; t < 8; ++t) {
    const int* e = chosen.data_ptr<int>() + t * 3;
    EXPECT_EQ(std::set<int>(e, e + 3).size(), 3u) << "token " << t;
  }
}

// ---- whole-expert dropout ----

TEST(ExpertDropout, DropsAtItsRate) {
  const int experts = 64, steps = 2000;
  for (const double p : {0.0, 0.1, 0.5}) {
    double dropped = 0;
    for (int s = 0; s < steps; ++s)
      dropped += dropped_experts(step_uniform(experts, 3, key_of({}, 1, s)), p, 2, {}).sum().item<double>();
    const double draws = static_cast<double>(experts) * steps;
    EXPECT_NEAR(dropped / draws, p, 4 * std::sqrt(p * (1 - p) / draws)) << "p = " << p;
  }
}

struct SurvivorCase {
  const char* name;
  int experts, top_k;
  GroupLimit limit;
  int a_group;  // survivors when all would drop
};
const std::vector<SurvivorCase> kSurvivors = {
    {"no groups", 16, 3, {}, 3},
    {"every expert is needed", 4, 4, {}, 4},
    {"two of four groups serve four", 16, 4, {4, 2, true}, 2},
    {"two of four groups serve three", 16, 3, {4, 2, false}, 2},
    {"one group serves all", 8, 4, {2, 1, true}, 4},
};

TEST(ExpertDropout, EnoughSurviveWhenAllWouldDrop) {
  for (const at::Device device : devices())
    for (const SurvivorCase& c : kSurvivors)
      for (int s = 0; s < 20; ++s) {
        const Tensor u = step_uniform(c.experts, 3, key_of({}, 1, s, device));
        const Tensor dropped = dropped_experts(u, 0.9999999, c.top_k, c.limit).view({c.limit.groups, -1});
        EXPECT_TRUE(dropped.logical_not().sum(1).eq(c.a_group).all().item<bool>()) << c.name;
        const Tensor kept = u.view_as(dropped).masked_fill(dropped, 2).amin(1),
                     gone = u.view_as(dropped).masked_fill(dropped.logical_not(), -1).amax(1);
        EXPECT_TRUE(gone.lt(kept).all().item<bool>()) << c.name << ": the largest u stay";

        // Whatever groups a token takes, it finds top_k that are left.
        const RoutingRule rule = rule_of(c.top_k, 32);
        const Tensor logits = random({32, c.experts}, s).to(device);
        const Tensor q =
            limit_groups(without_experts(scores_of(logits, rule.score), dropped.view({-1})), c.experts, c.limit, rule);
        const RouterScores scores = router_scores(logits, {Tensor(), q, Tensor()}, rule);
        EXPECT_EQ(scores.count_GE.masked_select(dropped.view({1, -1})).sum().item<int>(), 0) << c.name;
      }
}

TEST(ExpertDropout, LeavesZeroExperts) {
  const Tensor dropped = at::tensor({1, 0, 1}).to(at::kBool), q = at::zeros({2, 5});
  EXPECT_TRUE(
      at::equal(without_experts(q, dropped).isfinite(), at::tensor({0, 1, 0, 1, 1}).to(at::kBool).expand({2, 5})));
}

// ---- choices that no score makes ----

TEST(ForcedBalance, GivesEveryExpertTheSame) {
  struct Case {
    int tokens, experts, zero_experts, top_k, seq_len;
  };
  for (const at::Device device : devices())
    for (const Case& c : {Case{64, 8, 0, 2, 16}, Case{48, 6, 2, 4, 48}, Case{13, 13, 0, 5, 13}, Case{32, 4, 1, 4, 8}}) {
      const int columns = c.experts + c.zero_experts;
      const Tensor logits = random({c.tokens, columns}, 3).to(device).requires_grad_(true);
      const Tensor q = forced_balance(c.tokens, c.experts, columns, c.top_k, logits.options().requires_grad(false));
      const RouterScores scores = router_scores(logits, {Tensor(), q, Tensor()}, rule_of(c.top_k, c.seq_len));
      const Tensor want = at::arange(c.tokens * c.top_k, at::kInt).remainder(c.experts).view({c.tokens, c.top_k});
      EXPECT_TRUE(at::equal(scores.expert_TK.cpu(), want)) << c.experts;
      EXPECT_TRUE(scores.count_GE.narrow(1, 0, c.experts).eq(c.tokens * c.top_k / c.experts).all().item<bool>());
      torch::autograd::backward({scores.weight_TK.square().sum()}, {});
      EXPECT_GT(logits.grad().abs().sum().item<double>(), 0);
    }
}

TEST(ForcedShares, AreProportionalToASoftmaxOfQuantilesAndAtMostOneOfAToken) {
  struct Case {
    int experts, zero_experts, top_k;
    double spread, largest_over_mean;
  };
  // By hand: e^(spread z) over its mean, z the normal quantiles at (e + 1/2) / E; a share of at most 1 is E / K.
  for (const at::Device device : devices())
    for (const Case& c :
         {Case{8, 0, 2, 1e-6, 1}, Case{8, 1, 2, 0.5, 1.9391}, Case{64, 0, 8, 0.5, 2.9648}, Case{5, 0, 1, 0.5, 1.7273},
          Case{4, 0, 2, 4, 2}, Case{8, 0, 7, 1, 8.0 / 7}, Case{3, 2, 3, 0.5, 1}, Case{1, 0, 1, 0.5, 1}}) {
      const std::string name = std::to_string(c.experts) + " of " + std::to_string(c.top_k);
      const int tokens = 8192, columns = c.experts + c.zero_experts;
      const Tensor border = share_borders(c.experts, c.top_k, c.spread).to(device);
      const Tensor logits = random({tokens, columns}, 3).to(device);
      const Tensor q = forced_shares(tokens, border, columns, logits.options());
      EXPECT_TRUE(q.narrow(1, 0, c.experts).sum(1).eq(c.top_k).all().item<bool>()) << name;
      const RouterScores scores = router_scores(logits, {Tensor(), q, Tensor()}, rule_of(c.top_k, 64));
      const Tensor count = scores.count_GE.view({-1}).narrow(0, 0, c.experts).to(at::kFloat).cpu();
      const Tensor want = border.cpu().diff() * tokens;
      EXPECT_EQ(count.sum().item<float>(), tokens * c.top_k) << name;
      EXPECT_LT((count - want).abs().max().item<double>(), 4) << name;
      EXPECT_LE(want.max().item<double>(), tokens * (1 + 1e-6)) << name;
      EXPECT_NEAR(want.max().item<double>() * c.experts / (tokens * c.top_k), c.largest_over_mean, 1e-3) << name;
    }
}

TEST(TokenIds, ChooseDistinctExpertsByFormula) {
  for (const int experts : {1, 2, 5, 8, 13, 64})
    for (int top_k = 1; top_k <= experts; ++top_k) {
      const Tensor id = at::arange(100, at::kInt) * 7, chosen = experts_of_ids(id, experts, top_k);
      for (int t = 0; t < 100; ++t) {
        std::set<int> seen;
        for (int k = 0; k < top_k; ++k) {
          ASSERT_EQ(chosen[t][k].item<int>(), (t * 7 + k * (experts / top_k)) % experts);
          seen.insert(chosen[t][k].item<int>());
        }
        ASSERT_EQ(static_cast<int>(seen.size()), top_k);
        if (experts > 13) break;
      }
    }
}

// ---- router_scores: ties, given scores, padding ----

TEST(RouterScores, EqualLogitsLoadExpertsEvenlyWhateverTheShape) {
  for (const int tokens : {1, 3, 64, 1000})
    for (const int experts : {1, 2, 8, 16, 64})
      for (const int top_k : std::set<int>{1, 2, 4, experts}) {
        if (top_k > experts) continue;
        const Tensor count = router_scores(at::zeros({tokens, experts}), {}, rule_of(top_k, tokens)).count_GE;
        EXPECT_LE((count.max() - count.min()).item<int>(), 1) << tokens << " tokens, " << experts << " experts";
      }
}

// s is read back from unnormalised weights of all experts, as the kernel has it.
TEST(RouterScores, GivenScoresChooseAsTheBiasDoes) {
  for (const at::Device device : devices())
    for (const Score score : {Score::kSoftmax, Score::kSigmoid, Score::kIdentity}) {
      const Tensor logits = random({200, 16}, 3).to(device), bias = (0.3 * random({16}, 4)).to(device);
      RoutingRule all = rule_of(16, 40, score), rule = rule_of(4, 40, score);
      all.normalize = false;
      const RouterScores every = router_scores(logits, {}, all);
      const Tensor s = at::zeros_like(logits).scatter(1, every.expert_TK.to(at::kLong), every.weight_TK);
      const RouterScores by_bias = router_scores(logits, {bias, Tensor(), Tensor()}, rule),
                         by_score = router_scores(logits, {Tensor(), s + bias, Tensor()}, rule);
      EXPECT_TRUE(at::equal(by_bias.expert_TK, by_score.expert_TK));
      EXPECT_TRUE(at::equal(by_bias.weight_TK, by_score.weight_TK));
      EXPECT_TRUE(at::equal(by_bias.count_GE, by_score.count_GE));
      EXPECT_TRUE(at::equal(by_bias.importance_E, by_score.importance_E));
      EXPECT_FALSE(at::equal(by_bias.expert_TK, router_scores(logits, {}, rule).expert_TK));
    }
}

// Sequences of 16 of which the last 5 are padding, against sequences of 11.
TEST(RouterScores, PaddingChangesNothingForRealTokens) {
  const std::int64_t sequences = 4, length = 16, real_length = 11, experts = 8;
  const auto real_part = [&](const Tensor& t) {
    return t.view({sequences, length, -1}).narrow(1, 0, real_length).reshape({sequences * real_length, -1});
  };
  for (const at::Device device : devices())
    for (const bool by_sequence : {false, true})
      for (const Score score : {Score::kSoftmax, Score::kSigmoid})
        for (const bool given : {false, true}) {
          Tensor logits = random({sequences * length, experts}, 3).to(device), q = random(logits.sizes().vec(), 4);
          q = q.to(device);
          const Tensor real =
              at::arange(length, logits.options().dtype(at::kLong)).lt(real_length).repeat({sequences}).contiguous();
          logits.masked_fill_(~real.unsqueeze(1), NAN);  // whatever padding holds
          const auto run = [&](auto op, const Tensor& l, const Tensor& selection, const Tensor& mask,
                               std::int64_t seq_len) {
            RoutingRule rule = rule_of(2, static_cast<int>(seq_len), score);
            rule.group_size = by_sequence ? seq_len : 0;
            const Tensor leaf = l.clone().requires_grad_(true);
            const RouterScores s = op(leaf, Selection{Tensor(), given ? selection : Tensor(), mask}, rule);
            torch::autograd::backward({s.weight_TK.square().sum() + s.prob_sum_GE.square().sum() +
                                       s.importance_E.square().sum() + s.z_sum.sum()},
                                      {});
            return std::pair<RouterScores, Tensor>(s, leaf.grad());
          };
          const auto [want, d_want] = run(router_scores, real_part(logits), real_part(q), Tensor(), real_length);
          for (const bool reference : {false, true}) {
            const auto [got, d_got] = reference ? run(router_scores_reference, logits, q, real, length)
                                                : run(router_scores, logits, q, real, length);
            EXPECT_TRUE(at::equal(real_part(got.expert_TK), want.expert_TK));
            EXPECT_TRUE(at::equal(got.count_GE, want.count_GE));
            EXPECT_LT(largest_difference(real_part(got.weight_TK), want.weight_TK), 1e-6);
            EXPECT_LT(largest_difference(got.prob_sum_GE, want.prob_sum_GE), 1e-5);
            EXPECT_LT(largest_difference(got.importance_E, want.importance_E), 1e-5);
            EXPECT_LT(largest_difference(got.z_sum, want.z_sum), 1e-3);
            EXPECT_LT(largest_difference(real_part(d_got), d_want), 1e-4);
            EXPECT_TRUE(got.expert_TK.masked_select(~real.unsqueeze(1)).eq(-1).all().item<bool>());
            EXPECT_TRUE(got.weight_TK.masked_select(~real.unsqueeze(1)).eq(0).all().item<bool>());
            if (!reference) { EXPECT_TRUE(d_got.masked_select(~real.unsqueeze(1)).eq(0).all().item<bool>()); }
          }
        }
}

}  // namespace
}  // namespace switchyard::ops
