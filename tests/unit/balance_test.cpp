// The losses on routing against their definitions: ramp, sequences, zero experts, padding, and both ways in which they
// reach the gradient (moe_spec R8, R9, R11, R16, E10, E15).
#include "model/moe/balance.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/inject_loss.h"

namespace switchyard {
namespace {

using at::Tensor;

constexpr int kSequence = 8, kSequences = 3, kTokens = kSequence * kSequences;

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble);
}

Config config_of(int experts = 8, int top_k = 2) {
  Config config;
  config.moe.n_experts = experts;
  config.router.top_k = top_k;
  return config;
}

StepContext at_step(std::int64_t step) {
  StepContext context;
  context.training = true;
  context.seq_len = kSequence;
  context.step = at::full({1}, step, at::kLong);
  return context;
}

Routing route(const Tensor& logits_TE, const Config& config, const Tensor& real_T = {}) {
  ops::RoutingRule rule;
  rule.top_k = config.router.top_k;
  rule.seq_len = kSequence;
  rule.group_size = sums_by_sequence(config.router) ? kSequence : 0;
  ops::Selection selection;
  selection.real_T = real_T;
  Routing routing;
  routing.scores = ops::router_scores(logits_TE, selection, rule);
  routing.tokens = logits_TE.size(0);
  routing.group_size = rule.group_size ? rule.group_size : routing.tokens;
  routing.experts = static_cast<int>(logits_TE.size(1));
  routing.top_k = rule.top_k;
  return routing;
}

// f_i P_i of a range of tokens, from the choices themselves.
Tensor switch_terms(const Tensor& logits_TE, const Routing& routing, std::int64_t begin, std::int64_t count) {
  const Tensor p = at::softmax(logits_TE.narrow(0, begin, count), 1).mean(0);
  const Tensor chosen = routing.scores.expert_TK.narrow(0, begin, count).to(at::kLong).flatten();
  return at::bincount(chosen, {}, logits_TE.size(1)).to(at::kDouble) / static_cast<double>(count) * p;
}

double value(const Tensor& t) { return t.detach().sum().item<double>(); }

TEST(Ramp, GoesFromStartToEndAndStays) {
  struct Case {
    const char* name;
    int ramp;
    double start, end;
    std::int64_t step;
    double coef;
  };
  for (const Case& c : {Case{"at 0", 10, 1, 5, 0, 0.01}, Case{"in the middle", 10, 1, 5, 5, 0.03},
                        Case{"at the end", 10, 1, 5, 10, 0.05}, Case{"beyond", 10, 1, 5, 1000, 0.05},
                        Case{"from 0", 4, 0, 1, 0, 0}, Case{"falling", 4, 2, 0, 3, 0.005},
                        Case{"no ramp", 0, 7, 1, 0, 0.01}, Case{"no ramp, another end", 0, 7, 3, 9, 0.03}}) {
    Config config = config_of();
    config.router.aux_ramp_steps = c.ramp;
    config.router.aux_ramp_start = c.start;
    config.router.aux_ramp_end = c.end;
    const RoutingSums sums = stacked({route(random({kTokens, 8}, 1), config)});
    const LayerLosses losses = layer_losses(sums, config, at_step(c.step));
    EXPECT_NEAR(value(losses.weighted_L), c.coef * value(losses.balance_L), 1e-15) << c.name;
  }
}

TEST(Ramp, OffIsBitwiseTheLossTimesTheCoefficientAndReadsNoStep) {
  const Config config = config_of();
  const RoutingSums sums = stacked({route(random({kTokens, 8}, 1).to(at::kFloat), config)});
  StepContext step = at_step(0);
  step.step = Tensor();
  const LayerLosses losses = layer_losses(sums, config, step);
  EXPECT_TRUE(at::equal(losses.weighted_L, losses.balance_L * 0.01));
}

TEST(SequenceLoss, IsTheMeanOverSequencesAndLeavesTheOtherLossAlone) {
  Config config = config_of(), plain = config;
  config.router.seq_balance_coef = 0.5;
  const Tensor logits = random({kTokens, 8}, 2).requires_grad_(true);
  const Routing by_sequence = route(logits, config), whole = route(logits, plain);
  const LayerLosses both = layer_losses(stacked({by_sequence}), config, at_step(0)),
                    one = layer_losses(stacked({whole}), plain, at_step(0));
  EXPECT_NEAR(value(both.balance_L), value(one.balance_L), 1e-12);
  EXPECT_FALSE(one.seq_balance_L.defined());

  Tensor expected = at::zeros({}, at::kDouble);
  for (int s = 0; s < kSequences; ++s)
    expected = expected + switch_terms(logits, by_sequence, s * kSequence, kSequence).sum() * 8 / 2 / kSequences;
  EXPECT_NEAR(value(both.seq_balance_L), value(expected), 1e-12);
  const auto gradient = [&](const Tensor& loss) {
    return torch::autograd::grad({loss.sum()}, {logits}, {}, /*retain_graph=*/true)[0];
  };
  const Tensor difference = gradient(both.weighted_L) - gradient(one.weighted_L) - 0.5 * gradient(expected);
  EXPECT_LT(difference.abs().max().item<double>(), 1e-12);
}

TEST(SequenceLoss, OfOneSequenceIsTheSwitchLossOverK) {
  Config config = config_of();
  config.router.seq_balance_coef = 1;
  const LayerLosses losses = layer_losses(stacked({route(random({kSequence, 8}, 3), config)}), config, at_step(0));
  EXPECT_NEAR(value(losses.seq_balance_L), value(losses.balance_L) / 2, 1e-12);
}

TEST(ZeroExperts, HaveTheirTermsScaled) {
  for (const double tau : {1.0, 0.25, 0.0}) {
    Config config = config_of(6);
    config.moe.zero_experts.zero = 1;
    config.moe.zero_experts.copy = 1;
    config.moe.zero_expert_tau = tau;
    const Tensor logits = random({kTokens, 8}, 4);
    const Routing routing = route(logits, config);
    const Tensor terms = switch_terms(logits, routing, 0, kTokens);
    const double expected = 8 * (value(terms.narrow(0, 0, 6)) + tau * value(terms.narrow(0, 6, 2)));
    EXPECT_NEAR(value(balance_loss(stacked({routing}), config, at_step(0))), expected, 1e-12) << tau;
  }
}

// Padding after each sequence, and a sequence of nothing else.
TEST(Padding, ChangesNoLossAndNoGradient) {
  for (const char* loss : {"switch", "cv_squared", "cv_squared_topk"})
    for (const char* scope : {"micro", "sequence"}) {
      Config config = config_of();
      config.router.balance_loss = loss;
      config.router.balance_scope = scope;
      config.router.seq_balance_coef = 0.1;
      config.router.z_loss_coef = 0.01;
      const Tensor logits = random({kTokens, 8}, 5).requires_grad_(true);
      const Tensor nothing = at::full({kSequence, 8}, 30.0, at::kDouble);
      const Tensor padded = at::cat({logits, nothing});
      StepContext step = at_step(0), with_padding = step;
      with_padding.real_T = at::arange(kTokens + kSequence).lt(kTokens);
      const LayerLosses a = layer_losses(stacked({route(logits, config)}), config, step);
      const LayerLosses b = layer_losses(stacked({route(padded, config, with_padding.real_T)}), config, with_padding);
      EXPECT_NEAR(value(a.balance_L), value(b.balance_L), 1e-12) << loss << " " << scope;
      EXPECT_NEAR(value(a.seq_balance_L), value(b.seq_balance_L), 1e-12) << loss << " " << scope;
      EXPECT_NEAR(value(a.z_loss_L), value(b.z_loss_L), 1e-12) << loss << " " << scope;
      const Tensor da = torch::autograd::grad({a.weighted_L.sum()}, {logits})[0],
                   db = torch::autograd::grad({b.weighted_L.sum()}, {logits})[0];
      EXPECT_LT((da - db).abs().max().item<double>(), 1e-12) << loss << " " << scope;
    }
}

TEST(GlobalScope, CountsOfAllRanksGiveTheLossOfTheJoinedBatch) {
  Config config = config_of();
  config.router.balance_scope = "global";
  const Tensor first = random({kTokens, 8}, 6), second = random({kTokens, 8}, 7);
  const Routing a = route(first, config), b = route(second, config), joined = route(at::cat({first, second}), config);
  const auto on_rank = [&](const Routing& mine, const Routing& other) {
    StepContext step = at_step(0);
    step.data_ranks = 2;
    step.sum_over_ranks = [&other](const Tensor& count) {
      return count + other.scores.count_GE.to(count.scalar_type()).unsqueeze(0);
    };
    return value(balance_loss(stacked({mine}), config, step));
  };
  EXPECT_NEAR((on_rank(a, b) + on_rank(b, a)) / 2, value(balance_loss(stacked({joined}), config, at_step(0))), 1e-12);
}

TEST(Injection, GivesTheGradientsOfTheSum) {
  Config config = config_of();
  config.router.z_loss_coef = 0.01;
  config.router.seq_balance_coef = 0.1;
  config.router.aux_ramp_steps = 10;
  config.router.aux_ramp_start = 1;
  config.router.aux_ramp_end = 5;
  for (const int micro_batches : {1, 4}) {
    const double scale = 1.0 / micro_batches;
    const auto gradient = [&](bool injects) {
      const Tensor w = random({12, 8}, 1).requires_grad_(true);
      for (int i = 0; i < micro_batches; ++i) {
        const Routing routing = route(at::mm(random({kTokens, 12}, 10 + i), w), config);
        const Tensor weighted = layer_losses(stacked({routing}), config, at_step(3)).weighted_L;
        const Tensor y = routing.scores.weight_TK, out = injects ? ops::inject_loss(y, weighted, scale) : y;
        EXPECT_TRUE(at::equal(out, y));
        Tensor loss = (out * random({kTokens, 2}, 20 + i)).sum() * scale;
        if (!injects) loss = loss + weighted.sum() * scale;
        torch::autograd::backward({loss}, {});
      }
      return w.grad();
    };
    EXPECT_LT((gradient(true) - gradient(false)).abs().max().item<double>(), 1e-12) << micro_batches;
  }
}

}  // namespace
}  // namespace switchyard
