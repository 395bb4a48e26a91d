// The routers as modules: in which order clip, noise, bias, dropout and groups act, what training alone does, and the
// cosine router's gradients (moe_spec R1, R3, R5, R7, R14 to R16, E13).
#include "model/moe/router.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "ops/noise.h"
#include "ops/selection.h"

namespace switchyard {
namespace {

using at::Tensor;

constexpr int kSequence = 16, kSequences = 4, kTokens = kSequence * kSequences, kWidth = 24;

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(type);
}
double largest_difference(const Tensor& a, const Tensor& b) {
  return (a.detach() - b.detach()).abs().max().item<double>();
}
Tensor gradient_of(const Tensor& value, const Tensor& of) {
  return torch::autograd::grad({value}, {of}, {}, /*retain_graph=*/true)[0];
}

Config config_of(int experts = 8, int top_k = 2) {
  Config config;
  config.model.n_embd = kWidth;
  config.moe.n_experts = experts;
  config.router.top_k = top_k;
  config.router.init = "normal";
  config.router.init_std = 0.3;
  return config;
}

StepContext step_of(bool training, std::int64_t number = 5, std::vector<std::int64_t> windows = {3, 1, 8, 2}) {
  StepContext step;
  step.training = training;
  step.seq_len = kSequence;
  step.dropout = {11, at::full({1}, number, at::kLong), at::tensor(windows, at::kLong), kSequence};
  return step;
}

// A router with its parameters, and an input as the norm before it would deliver it.
struct Bench {
  ParameterStore store;
  RoutingState state;
  std::shared_ptr<Router> router;
  Tensor x = random({kTokens, kWidth}, 1);

  explicit Bench(const Config& config, at::ScalarType type = at::kFloat) {
    router = make_router(store, "router", config, RouterPlace{3, 1, &state});
    store.allocate(at::kCPU, type, store.contiguous(), type);
    store.initialize(9);
    x = x.to(type).requires_grad_(true);
  }
  RouterInput input() const {
    const Parameter* weight = router->norm_weight();
    return {x, weight ? ops::router_logits(x, *weight).logits_TE : Tensor()};
  }
  Routing route(const StepContext& step) const {
    RouterInput in = input();
    return router->route(in, step);
  }
  Tensor weight() const { return store.find("router.weight")->compute.detach(); }
  Tensor plain_logits() const { return at::mm(x.detach(), weight().t()); }
};

ops::RoutingRule rule_of(const Config& config) {
  ops::RoutingRule rule;
  rule.top_k = config.router.top_k;
  rule.seq_len = kSequence;
  return rule;
}

void expect_same(const ops::RouterScores& got, const ops::RouterScores& want, const std::string& what) {
  EXPECT_TRUE(at::equal(got.expert_TK, want.expert_TK)) << what;
  EXPECT_TRUE(at::equal(got.weight_TK, want.weight_TK)) << what;
  EXPECT_TRUE(at::equal(got.count_GE, want.count_GE)) << what;
  EXPECT_TRUE(at::equal(got.prob_sum_GE, want.prob_sum_GE)) << what;
  EXPECT_TRUE(at::equal(got.z_sum, want.z_sum)) << what;
}

TEST(TopkRouter, WithoutFeaturesIsTheScoresOfItsLogits) {
  const Config config = config_of();
  const Bench bench(config);
  for (const bool training : {false, true})
    expect_same(bench.route(step_of(training)).scores, ops::router_scores(bench.input().logits_TE, {}, rule_of(config)),
                "plain");
}

// What training does at random, evaluation does without.
TEST(TopkRouter, EvaluationIsFreeOfNoiseAndDropout) {
  const Bench plain(config_of());
  for (const char* noise : {"gumbel", "gaussian", "jitter", "expert dropout"}) {
    Config config = config_of();
    config.router.noise_scale = 0.5;
    if (std::string(noise) == "expert dropout")
      config.moe.expert_dropout = 0.5;
    else
      config.router.noise = noise;
    const Bench bench(config);
    expect_same(bench.route(step_of(false)).scores, plain.route(step_of(false)).scores, noise);
    EXPECT_FALSE(at::equal(bench.route(step_of(true)).scores.expert_TK, plain.route(step_of(true)).scores.expert_TK))
        << noise;
    expect_same(bench.route(step_of(true)).scores, bench.route(step_of(true)).scores, noise);
    EXPECT_FALSE(at::equal(bench.route(step_of(true)).scores.expert_TK, bench.route(step_of(true, 6)).scores.expert_TK))
        << noise << ": another step";
  }
}

TEST(TopkRouter, NoiseChoosesAndCleanScoresWeigh) {
  for (const char* noise : {"gumbel", "gaussian"}) {
    Config config = config_of();
    config.router.noise = noise;
    config.router.noise_scale = 0.7;
    config.router.norm_topk_prob = false;
    const Bench bench(config);
    const Tensor logits = bench.plain_logits();
    const auto kind = std::string(noise) == "gumbel" ? ops::Noise::kGumbel : ops::Noise::kGaussian;
    const StepContext step = step_of(true);
    const Tensor noisy = logits + 0.7 * ops::noise(kind, kTokens, 8, draw_site(RouterDraw::kNoise, 3), step.dropout);
    const ops::RouterScores got = bench.route(step).scores;
    const Tensor chosen = got.expert_TK.to(at::kLong);
    EXPECT_TRUE(at::equal(chosen, std::get<1>(noisy.topk(2, 1)))) << noise;
    EXPECT_LT(largest_difference(got.weight_TK, at::softmax(logits, 1).gather(1, chosen)), 1e-6) << noise;
    EXPECT_LT(largest_difference(got.prob_sum_GE[0], at::softmax(logits, 1).sum(0)), 1e-4) << noise;
  }
}

TEST(TopkRouter, EveryLayoutOfRanksDrawsTheSame) {
  for (const char* noise : {"gumbel", "jitter"}) {
    Config config = config_of();
    config.router.noise = noise;
    config.router.noise_scale = 0.5;
    config.moe.expert_dropout = 0.2;
    Bench bench(config);
    const Tensor whole = bench.route(step_of(true)).scores.expert_TK, x = bench.x;
    const std::vector<std::int64_t> windows{3, 1, 8, 2};
    for (int i = 0; i < kSequences; ++i) {
      bench.x = x.detach().narrow(0, i * kSequence, kSequence);
      EXPECT_TRUE(at::equal(bench.route(step_of(true, 5, {windows[i]})).scores.expert_TK,
                            whole.narrow(0, i * kSequence, kSequence)))
          << noise;
    }
  }
}

TEST(TopkRouter, JitterScalesTheRoutersInputAlone) {
  Config config = config_of();
  config.router.noise = "jitter";
  config.router.noise_scale = 0.1;
  const Bench bench(config);
  EXPECT_EQ(bench.router->norm_weight(), nullptr);
  const StepContext step = step_of(true);
  const Tensor u = ops::noise(ops::Noise::kUniform, kTokens, kWidth, draw_site(RouterDraw::kJitter, 3), step.dropout);
  const Tensor factor = 0.9 + 0.2 * u;
  EXPECT_NEAR(factor.mean().item<double>(), 1, 4 * 0.1 / std::sqrt(3.0 * kTokens * kWidth));
  const Routing got = bench.route(step);
  const Tensor x = bench.x.detach().clone().requires_grad_(true), logits = at::mm(x * factor, bench.weight().t());
  const ops::RouterScores want = ops::router_scores(logits, {}, rule_of(config));
  EXPECT_TRUE(at::equal(got.scores.expert_TK, want.expert_TK));
  EXPECT_LT(largest_difference(got.scores.weight_TK, want.weight_TK), 1e-6);
  EXPECT_LT(largest_difference(gradient_of(got.scores.weight_TK.square().sum(), bench.x),
                               gradient_of(want.weight_TK.square().sum(), x)),
            1e-6);
}

TEST(TopkRouter, ClippedLogitsSaturateAndTheZLossSeesThemWhole) {
  Config config = config_of();
  config.router.logit_clip = 1.0;
  const Bench bench(config, at::kDouble);
  Tensor logits = (random({kTokens, 8}, 3, at::kDouble) * 2).requires_grad_(true);
  for (const bool padded : {false, true}) {
    StepContext step = step_of(true);
    const Tensor real = padded ? at::arange(kTokens).remainder(kSequence).lt(11) : at::ones({kTokens}, at::kBool);
    if (padded) step.real_T = real;
    RouterInput in{bench.x, logits};
    const Routing got = bench.router->route(in, step);
    const Tensor clipped = logits.detach().clamp(-1, 1).requires_grad_(true);
    const ops::RouterScores want = ops::router_scores(clipped, {Tensor(), Tensor(), step.real_T}, rule_of(config));
    EXPECT_TRUE(at::equal(got.scores.expert_TK, want.expert_TK));
    const Tensor outside = logits.detach().abs().gt(1);
    EXPECT_GT(outside.sum().item<double>(), 50);
    const auto loss = [](const ops::RouterScores& s) {
      return s.weight_TK.square().sum() + s.prob_sum_GE.square().sum();
    };
    EXPECT_LT(largest_difference(gradient_of(loss(got.scores), logits),
                                 gradient_of(loss(want), clipped).masked_fill(outside, 0)),
              1e-12);
    const Tensor lse = at::logsumexp(logits.detach(), 1, true) * real.unsqueeze(1);
    EXPECT_LT(largest_difference(got.scores.z_sum, lse.square().sum().reshape({1})), 1e-9);
    EXPECT_LT(largest_difference(gradient_of(got.scores.z_sum.sum(), logits), 2 * lse * at::softmax(logits, 1)), 1e-12);
  }
}

// Groups are scored with noise and bias, after the dropped experts are gone.
TEST(TopkRouter, ActsInTheOrderOfTheSpecification) {
  Config config = config_of(16, 4);
  RouterConfig& r = config.router;
  r.score = "sigmoid";
  r.topk_method = "noaux_tc";
  r.n_group = 4;
  r.topk_group = 2;
  r.bias_balancing = true;
  r.noise = "gumbel";
  r.noise_scale = 0.3;
  r.logit_clip = 2;
  config.moe.expert_dropout = 0.4;
  config.moe.zero_experts.zero = 2;
  Bench bench(config);
  bench.state.bias_LE = 0.2 * random({2, 18}, 4);
  const StepContext step = step_of(true);
  ops::RoutingRule rule = rule_of(config);
  rule.score = ops::Score::kSigmoid;
  const Tensor logits = bench.input().logits_TE.detach().clamp(-2, 2);
  const ops::GroupLimit groups{4, 2, true};
  const Tensor dropped =
      ops::dropped_experts(ops::step_uniform(16, draw_site(RouterDraw::kDropout, 3), step.dropout), 0.4, 4, groups);
  ASSERT_GT(dropped.sum().item<int>(), 0);
  Tensor q = at::sigmoid(
      logits + 0.3 * ops::noise(ops::Noise::kGumbel, kTokens, 18, draw_site(RouterDraw::kNoise, 3), step.dropout));
  q = ops::limit_groups(ops::without_experts(q + bench.state.bias_LE[1], dropped), 16, groups, rule);
  const ops::RouterScores got = bench.route(step).scores,
                          want = ops::router_scores(logits, {Tensor(), q, Tensor()}, rule);
  EXPECT_TRUE(at::equal(got.expert_TK, want.expert_TK));
  EXPECT_TRUE(at::equal(got.weight_TK, want.weight_TK));
  EXPECT_EQ(got.count_GE.narrow(1, 0, 16).masked_select(dropped.unsqueeze(0)).sum().item<int>(), 0);
}

TEST(TopkRouter, TheBiasActsThroughTheChoiceAlone) {
  Config config = config_of(8, 2);
  config.router.topk_method = "noaux_tc";
  config.router.bias_balancing = true;
  Bench bench(config);
  const ops::RouterScores without = bench.route(step_of(true)).scores;
  bench.state.bias_LE = 0.1 * random({2, 8}, 4);
  const ops::RouterScores with = bench.route(step_of(true)).scores;
  expect_same(
      with, ops::router_scores(bench.input().logits_TE, {bench.state.bias_LE[1], Tensor(), Tensor()}, rule_of(config)),
      "bias");
  const Tensor same = with.expert_TK.eq(without.expert_TK).all(1);
  EXPECT_FALSE(same.all().item<bool>());
  EXPECT_TRUE(at::equal(with.weight_TK.index({same}), without.weight_TK.index({same})));
}

TEST(TopkRouter, ForcedBalanceSpreadsEvenlyAndStillLearns) {
  Config config = config_of(8, 2);
  config.router.force_balanced = true;
  const Bench bench(config);
  for (const bool training : {false, true}) {
    const ops::RouterScores got = bench.route(step_of(training)).scores;
    EXPECT_TRUE(got.count_GE.eq(kTokens * 2 / 8).all().item<bool>());
    EXPECT_GT(gradient_of(got.weight_TK.square().sum(), bench.x).abs().sum().item<double>(), 0);
  }
}

TEST(TopkRouter, ForcedSpreadGivesEveryLayerTheSharesOfTheConfig) {
  Config config = config_of(8, 2);
  config.router.force_balanced = true;
  config.router.force_spread = 0.5;
  Bench bench(config);
  bench.state.allocate(config, 2, at::kCPU);
  const Tensor want = ops::share_borders(8, 2, 0.5).diff() * kTokens;
  for (const bool training : {false, true}) {
    const ops::RouterScores got = bench.route(step_of(training)).scores;
    EXPECT_LT((got.count_GE.view({-1}) - want).abs().max().item<double>(), 4);
    EXPECT_GT(gradient_of(got.weight_TK.square().sum(), bench.x).abs().sum().item<double>(), 0);
  }
}

// ---- the cosine router ----

Config semantic_config() {
  Config config = config_of(8, 2);
  config.router.semantic = true;
  config.router.semantic_dim = 12;
  config.router.semantic_scale_init = 3;
  return config;
}

struct Semantic : Bench {
  const Parameter &project, &bias, &vectors, &log_scale;
  explicit Semantic(at::ScalarType type = at::kDouble)
      : Bench(semantic_config(), type),
        project(*store.find("router.semantic.weight")),
        bias(*store.find("router.semantic.bias")),
        vectors(*store.find("router.weight")),
        log_scale(*store.find("router.semantic.log_scale")) {}
  Tensor logits() const { return route(step_of(true)).logits_TE; }
};

TEST(SemanticRouter, DirectionsCountAndLengthsDoNot) {
  Semantic s;
  EXPECT_EQ(s.router->norm_weight(), nullptr);
  const Tensor before = s.logits().detach(), x = s.x.detach();
  EXPECT_NEAR(s.log_scale.master.item<double>(), std::log(3), 1e-6);
  EXPECT_LE(before.abs().max().item<double>(), 3 + 1e-9);
  s.x = 10 * x;
  EXPECT_LT(largest_difference(s.logits(), before), 1e-9);
  s.x = x;
  const at::NoGradGuard no_grad;
  s.vectors.master.select(0, 2).mul_(7);
  EXPECT_LT(largest_difference(s.logits(), before), 1e-9);
  s.log_scale.master.fill_(50.0);
  EXPECT_LE(s.logits().abs().max().item<double>(), 100 + 1e-9);
  s.x = at::zeros_like(x);
  EXPECT_TRUE(s.logits().eq(0).all().item<bool>());
}

TEST(SemanticRouter, GradientsAreTheClosedForms) {
  for (const bool capped : {false, true}) {
    Semantic s;
    const auto value = [](const Parameter& p) { return p.master.detach(); };
    {
      const at::NoGradGuard no_grad;
      s.bias.master.copy_(random({12}, 6, at::kDouble));
      if (capped) s.log_scale.master.fill_(5.0);
    }
    const double kappa = std::min(100.0, std::exp(value(s.log_scale).item<double>()));
    const Tensor l = s.logits(), dl = random(l.sizes().vec(), 7, at::kDouble);
    torch::autograd::backward({l}, {dl});

    const auto length = [](const Tensor& rows) { return rows.norm(2, {1}, true); };
    // Back through v / |v|.
    const auto through_unit = [&](const Tensor& d, const Tensor& v) {
      const Tensor unit = v / length(v);
      return (d - (d * unit).sum(1, true) * unit) / length(v);
    };
    const Tensor r = at::mm(s.x.detach(), value(s.project).t()) + value(s.bias), w = value(s.vectors);
    const Tensor dr = through_unit(kappa * at::mm(dl, w / length(w)), r);
    EXPECT_LT(largest_difference(s.vectors.grad, through_unit(kappa * at::mm(dl.t(), r / length(r)), w)), 1e-9);
    EXPECT_LT(largest_difference(s.project.grad, at::mm(dr.t(), s.x.detach())), 1e-9);
    EXPECT_LT(largest_difference(s.bias.grad, dr.sum(0)), 1e-9);
    EXPECT_LT(largest_difference(s.x.grad(), at::mm(dr, value(s.project))), 1e-9);
    EXPECT_NEAR(s.log_scale.grad.item<double>(), capped ? 0 : (dl * l.detach()).sum().item<double>(), 1e-9);
  }
}

TEST(SemanticRouter, GradientsStayFiniteAtZero) {
  Semantic s;
  s.x = at::zeros({kTokens, kWidth}, at::kDouble).requires_grad_(true);
  torch::autograd::backward({s.logits().square().sum() + s.logits().sum()}, {});
  for (const Tensor& grad : {s.project.grad, s.bias.grad, s.vectors.grad, s.log_scale.grad, s.x.grad()})
    EXPECT_TRUE(grad.isfinite().all().item<bool>());
}

// ---- routing by token id ----

TEST(TokenIdRouter, GoesByTheTokenAndHasNoParameters) {
  Config config = config_of(7, 3);
  config.router.type = "token_id";
  config.router.routed_scaling_factor = 1.5;
  const Bench bench(config);
  EXPECT_TRUE(bench.store.all().empty());
  EXPECT_EQ(bench.router->norm_weight(), nullptr);
  StepContext step = step_of(true);
  step.token_T = at::arange(kTokens, at::kLong) * 5 % 11;
  for (const bool padded : {false, true}) {
    const Tensor real = padded ? at::arange(kTokens).remainder(kSequence).lt(11) : at::ones({kTokens}, at::kBool);
    if (padded) step.real_T = real;
    const ops::RouterScores got = bench.route(step).scores;
    Tensor count = at::zeros({1, 7}, at::kInt);
    for (int t = 0; t < kTokens; ++t)
      for (int k = 0; k < 3; ++k) {
        const bool is_real = real[t].item<bool>();
        const int want = is_real ? (t * 5 % 11 + k * 2) % 7 : -1;
        EXPECT_EQ(got.expert_TK[t][k].item<int>(), want);
        EXPECT_NEAR(got.weight_TK[t][k].item<double>(), is_real ? 0.5 : 0, 1e-7);
        if (is_real) count[0][want] += 1;
      }
    EXPECT_TRUE(at::equal(got.count_GE, count));
    EXPECT_FALSE(got.weight_TK.requires_grad());
  }
}

}  // namespace
}  // namespace switchyard
