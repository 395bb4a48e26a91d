// The sparse layer with capacities, null and zero experts, token importance and hidden dropout (moe_spec E6-E10, E13).
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>

#include "model/moe/moe.h"

namespace switchyard {
namespace {

constexpr int kWidth = 16, kHidden = 24, kTokens = 60, kSequence = 20;

at::Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(at::kFloat);
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>() / (b.abs().max().item<double>() + 1e-12);
}

Config base() {
  Config config;
  config.model.n_embd = kWidth;
  config.moe.use_moe = true;
  config.moe.n_experts = 6;
  config.moe.d_expert = kHidden;
  config.router.top_k = 2;
  config.router.init = "normal";
  config.router.init_std = 0.4;
  return config;
}

Config with_capacity(double factor, const std::string& overflow = "drop", const std::string& null_expert = "zero") {
  Config config = base();
  config.moe.capacity_factor = factor;
  config.moe.overflow = overflow;
  config.moe.null_expert = null_expert;
  return config;
}

StepContext step_of(bool training = true, std::int64_t number = 3) {
  StepContext step;
  step.training = training;
  step.seq_len = kSequence;
  step.step = at::full({1}, number, at::kLong);
  step.dropout = {7, step.step, at::arange(kTokens / kSequence, at::kLong), kSequence};
  return step;
}

struct Outcome {
  at::Tensor out, dx;
  Routing routing;
  std::map<std::string, at::Tensor> grad;  // by parameter
};

class SparseLayer {
 public:
  explicit SparseLayer(const Config& config) {
    const Init normal{Init::Kind::kNormal, 0.3};
    const MoeShape shape{{kWidth, kHidden, ops::ActivationKind::kRelu2, normal, normal}, {}, {}};
    moe = std::make_shared<Moe>(store, "moe", shape, config, RouterPlace{0, 0, &state}, PrecisionPolicy());
    store.allocate(at::kCPU, at::kFloat, store.contiguous());
    store.initialize(5);
  }
  const Parameter& parameter(const std::string& name) const { return *store.find("moe." + name); }

  Outcome run(const StepContext& step, const at::Tensor& given_x = random({kTokens, kWidth}, 1),
              const at::Tensor& given_logits = {}) {
    store.zero_grad();
    const at::Tensor x = given_x.clone().requires_grad_(true);
    const at::Tensor logits = given_logits.defined() ? given_logits : at::mm(x, attach(parameter("router.weight")).t());
    const MoeOutput output = moe->forward({x, logits}, step);
    const at::Tensor out = ops::summed(output.out);
    torch::autograd::backward({out}, {random({x.size(0), kWidth}, 9)});
    Outcome result{out.detach(), x.grad(), output.routing, {}};
    for (const auto& p : store.all()) result.grad[p->name] = p->grad.clone();
    return result;
  }

  ParameterStore store;
  RoutingState state;
  std::shared_ptr<Moe> moe;
};

Outcome run(const Config& config) { return SparseLayer(config).run(step_of()); }

// Of the parameters that both have.
void expect_same(const Outcome& got, const Outcome& want) {
  EXPECT_TRUE(at::equal(got.out, want.out));
  EXPECT_TRUE(at::equal(got.dx, want.dx));
  for (const auto& [name, grad] : want.grad) {
    ASSERT_TRUE(got.grad.count(name)) << name;
    EXPECT_TRUE(at::equal(got.grad.at(name).narrow(0, 0, grad.size(0)), grad)) << name;
  }
}

// Most tokens prefer expert 1.
at::Tensor skewed_logits() {
  at::Tensor logits = random({kTokens, 6}, 1);
  logits.select(1, 1) += 2;
  return logits;
}

std::int64_t number(const at::Tensor& counter) { return counter.item<std::int64_t>(); }

// Which layers leave the sum of their rows to the norm behind them: all whose output is the experts' sum alone.
TEST(SparseLayer, LeavesTheSumToTheNorm) {
  const auto leaves = [](const std::function<void(Config&)>& change) {
    Config config = base();
    change(config);
    SparseLayer layer(config);
    const at::Tensor x = random({kTokens, kWidth}, 1);
    return layer.moe->forward({x, random({kTokens, 6}, 2)}, step_of()).out.rows.rows_RD.defined();
  };
  EXPECT_TRUE(leaves([](Config&) {}));
  EXPECT_TRUE(leaves([](Config& c) { c.moe.capacity_factor = 0.8; }));
  EXPECT_TRUE(leaves([](Config& c) { c.moe.aux_injection = "autograd"; }));
  EXPECT_TRUE(leaves([](Config& c) { c.moe.warmup_steps = 10; }));
  EXPECT_FALSE(leaves([](Config& c) { c.moe.warmup_steps = 10, c.moe.warmup_mode = "dense_average"; }));
  EXPECT_FALSE(leaves([](Config& c) { c.moe.backend = "reference"; }));
}

TEST(Dispatcher, OffHandsOnTheRoutersOwnTensors) {
  const Config config = base();
  ParameterStore store;
  const Dispatcher dispatcher(store, "moe", config);
  EXPECT_TRUE(store.all().empty());
  Routing routing;
  routing.scores = ops::router_scores(random({kTokens, 6}, 1), {}, {});
  routing.experts = 6;
  const Dispatched rows = dispatcher.place(random({kTokens, kWidth}, 2), routing, step_of());
  EXPECT_TRUE(rows.expert_TK.is_same(routing.scores.expert_TK));
  EXPECT_TRUE(rows.weight_TK.is_same(routing.scores.weight_TK));
  EXPECT_FALSE(rows.zero.any());
  EXPECT_FALSE(routing.diverted.dropped.defined());
}

TEST(Dispatcher, AmpleCapacityIsBitwiseDropless) {
  const Outcome dropless = run(base());
  for (const char* policy : {"position", "weight", "importance"})
    for (const auto& [overflow, null_expert] :
         std::vector<std::pair<std::string, std::string>>{{"drop", "zero"},
                                                          {"reroute", "zero"},
                                                          {"null_expert", "zero"},
                                                          {"null_expert", "copy"},
                                                          {"null_expert", "constant"},
                                                          {"null_expert", "ffn"}})
      for (const bool renormalize : {false, true}) {
        SCOPED_TRACE(overflow + " " + null_expert + " " + policy);
        Config config = with_capacity(6, overflow, null_expert);
        config.moe.drop_policy = policy;
        config.moe.token_importance = "norm";
        config.moe.renormalize_after_drop = renormalize;
        const Outcome got = run(config);
        expect_same(got, dropless);
        const Diverted& diverted = got.routing.diverted;
        EXPECT_EQ(number(diverted.dropped) + number(diverted.to_null) + number(diverted.rerouted), 0);
      }
}

TEST(Dispatcher, CapacityFollowsItsFormulaAtEveryStep) {
  struct Case {
    const char* name;
    double factor;
    int fixed, low, high, ramp;
    std::int64_t at_0, at_half, at_ramp, beyond;  // of T 60, K 2, E 6: an even share of 20 rows
  };
  const std::vector<Case> cases = {
      {"even share", 1.0, 0, 1, 0, 10, 1, 10, 20, 20},
      {"no ramp", 1.25, 0, 1, 0, 0, 25, 25, 25, 25},
      {"rounded up", 1.01, 0, 1, 0, 0, 21, 21, 21, 21},
      {"whole but for its rounding", 1.1, 0, 1, 0, 0, 22, 22, 22, 22},
      {"bounds", 2.0, 0, 8, 30, 10, 8, 19, 30, 30},
      {"share below the bound", 1.0, 0, 8, 30, 10, 8, 19, 20, 20},
      {"never below min", 0.1, 0, 5, 0, 10, 5, 5, 5, 5},
      {"given as rows", 0, 7, 1, 0, 10, 7, 7, 7, 7},
      {"rounded down", 1.0, 0, 1, 4, 10, 1, 2, 4, 4},
  };
  for (const Case& c : cases) {
    Config config = base();
    config.moe.capacity_factor = c.factor;
    config.moe.expert_capacity = c.fixed;
    config.moe.min_expert_capacity = c.low;
    config.moe.max_expert_capacity = c.high;
    config.moe.capacity_ramp_steps = c.ramp;
    const std::vector<std::pair<std::int64_t, std::int64_t>> steps = {
        {0, c.at_0}, {5, c.at_half}, {10, c.at_ramp}, {1000, c.beyond}};
    for (const auto& [at, want] : steps) {
      const at::Tensor got = expert_capacity(config, kTokens, step_of(true, at));
      EXPECT_EQ(got.scalar_type(), at::kInt);
      EXPECT_EQ(got.item<int>(), want) << c.name << " at step " << at;
    }
  }
}

TEST(Dispatcher, EvaluationIsDroplessUnlessGivenItsOwnFactor) {
  Config config = with_capacity(0.3);
  SparseLayer layer(config), dropless(base());
  EXPECT_TRUE(at::equal(layer.run(step_of(false)).out, dropless.run(step_of(false)).out));
  EXPECT_FALSE(at::equal(layer.run(step_of(true)).out, dropless.run(step_of(true)).out));
  config.moe.eval_capacity_factor = 0.3;
  const Outcome evaluated = SparseLayer(config).run(step_of(false));
  EXPECT_TRUE(at::equal(evaluated.out, layer.run(step_of(true)).out));
}

TEST(Dispatcher, NullZeroIsDropButForTheCounters) {
  const Outcome drop = run(with_capacity(0.5)), zero = run(with_capacity(0.5, "null_expert"));
  expect_same(zero, drop);
  EXPECT_GT(number(drop.routing.diverted.dropped), 0);
  EXPECT_EQ(number(drop.routing.diverted.to_null), 0);
  EXPECT_EQ(number(zero.routing.diverted.dropped), 0);
  EXPECT_EQ(number(zero.routing.diverted.to_null), number(drop.routing.diverted.dropped));
  EXPECT_TRUE(at::equal(drop.routing.scores.count_GE, run(base()).routing.scores.count_GE)) << "counts come before";
}

// What a null expert adds is its output times the weights that found no place.
TEST(Dispatcher, NullExpertsAddTheirOutputTimesTheLostWeight) {
  const at::Tensor x = random({kTokens, kWidth}, 1);
  const Outcome drop = run(with_capacity(0.5));
  const ops::Placement placement = ops::place(drop.routing.scores.expert_TK, 6, at::full({1}, 10, at::kInt));
  ASSERT_EQ(placement.dropped_TK.sum().item<std::int64_t>(), number(drop.routing.diverted.dropped));
  const at::Tensor weight = drop.routing.scores.weight_TK.detach();
  const at::Tensor lost = (weight * placement.dropped_TK).sum(1, true);
  EXPECT_LT(difference(run(with_capacity(0.5, "null_expert", "copy")).out, drop.out + lost * x), 1e-5);

  SparseLayer constant(with_capacity(0.5, "null_expert", "constant"));
  constant.parameter("null.weight").master.copy_(random({2, kWidth}, 21));
  constant.parameter("null.value").master.copy_(random({kWidth}, 22));
  const at::Tensor share = at::mm(x, constant.parameter("null.weight").master.t()).softmax(1);
  const at::Tensor z = share.narrow(1, 0, 1) * x + share.narrow(1, 1, 1) * constant.parameter("null.value").master;
  const Outcome got = constant.run(step_of());
  EXPECT_LT(difference(got.out, drop.out + lost * z), 1e-5);
  EXPECT_LT(
      difference(got.grad.at("moe.null.value"), (random({kTokens, kWidth}, 9) * lost * share.narrow(1, 1, 1)).sum(0)),
      1e-4);
  EXPECT_GT(got.grad.at("moe.null.weight").abs().max().item<double>(), 0);

  SparseLayer ffn(with_capacity(0.5, "null_expert", "ffn"));
  const ops::ExpertWeights stacks{&ffn.parameter("experts.up"), &ffn.parameter("experts.down"),
                                  ops::ActivationKind::kRelu2};
  ASSERT_EQ(stacks.up->shape[0], 7);
  const at::Tensor expert = drop.routing.scores.expert_TK.masked_fill(placement.dropped_TK, 6);
  const at::Tensor want = ops::moe_ffn_reference(x, weight, expert, stacks).detach();
  for (const auto& p : ffn.store.all()) p->forget_uses();
  EXPECT_LT(difference(ffn.run(step_of()).out, want), 1e-5);
}

TEST(Dispatcher, ReroutedAssignmentsAreComputedElsewhere) {
  for (const std::string score : {"softmax", "sigmoid"}) {
    Config config = with_capacity(0.9, "reroute");
    config.router.score = score;
    config.router.routed_scaling_factor = 1.5;
    config.moe.reroute_rounds = 3;
    ParameterStore store;
    const Dispatcher dispatcher(store, "moe", config);
    const at::Tensor logits = skewed_logits().requires_grad_(true);
    Routing routing;
    routing.scores = ops::router_scores(logits, {}, {2, kSequence, 0, 0, ops::parse_score(score), true, true, 1.5});
    routing.logits_TE = logits;
    routing.tokens = kTokens, routing.experts = 6, routing.top_k = 2;
    const Dispatched rows = dispatcher.place(at::Tensor(), routing, step_of());
    const at::Tensor load = rows.expert_TK.unsqueeze(2).eq(at::arange(6, at::kInt)).sum(at::IntArrayRef({0, 1}));
    EXPECT_LE(load.max().item<std::int64_t>(), 18);
    EXPECT_EQ(load.sum().item<std::int64_t>() + number(routing.diverted.dropped), 2 * kTokens);
    EXPECT_GT(number(routing.diverted.rerouted), 0);
    EXPECT_TRUE(rows.expert_TK.select(1, 0)
                    .ne(rows.expert_TK.select(1, 1))
                    .logical_or(rows.expert_TK.select(1, 0).lt(0))
                    .all()
                    .item<bool>())
        << "an expert twice in a token";
    EXPECT_LT(difference(rows.weight_TK.detach().sum(1), at::full({kTokens}, 1.5f)), 1e-5) << score;
    torch::autograd::backward({(rows.weight_TK * random({kTokens, 2}, 4)).sum()}, {});
    EXPECT_GT(logits.grad().abs().max().item<double>(), 0);
  }
}

TEST(Dispatcher, ReroutingObeysTheSelectionScoresOfTheRouter) {
  Config config = with_capacity(1.0, "reroute");
  config.moe.reroute_rounds = 6;
  ParameterStore store;
  const Dispatcher dispatcher(store, "moe", config);
  const at::Tensor logits = skewed_logits();
  Routing routing;
  routing.q_TE = logits.softmax(1);
  routing.q_TE.select(1, 4).fill_(-INFINITY);  // as a dropped expert or another group's
  routing.scores = ops::router_scores(logits, {}, {});
  routing.scores.expert_TK = routing.scores.expert_TK.masked_fill(routing.scores.expert_TK.eq(4), 5);
  routing.logits_TE = logits;
  routing.tokens = kTokens, routing.experts = 6, routing.top_k = 2;
  const Dispatched rows = dispatcher.place(at::Tensor(), routing, step_of());
  EXPECT_FALSE(rows.expert_TK.eq(4).any().item<bool>());
  EXPECT_GT(number(routing.diverted.rerouted), 0);
}

TEST(Dispatcher, RenormalizedSurvivorsCarryTheWholeWeight) {
  Config config = with_capacity(0.5);
  ParameterStore store;
  config.moe.renormalize_after_drop = true;
  const Dispatcher dispatcher(store, "moe", config);
  Routing routing;
  routing.scores = ops::router_scores(random({kTokens, 6}, 1), {}, {});
  routing.tokens = kTokens, routing.experts = 6, routing.top_k = 2;
  const Dispatched rows = dispatcher.place(at::Tensor(), routing, step_of());
  const at::Tensor kept = rows.expert_TK.ge(0);
  const at::Tensor sum = (rows.weight_TK * kept).sum(1);
  EXPECT_LT(difference(sum, kept.any(1).to(at::kFloat)), 1e-6);
}

TEST(TokenImportance, LearnedStartsAsNoneAndScalesByTwiceTheSigmoid) {
  Config learned = base();
  learned.moe.token_importance = "learned";
  expect_same(run(learned), run(base()));

  SparseLayer layer(learned), plain(base());
  layer.parameter("importance.weight").master.copy_(random({kWidth}, 31));
  layer.parameter("importance.bias").master.fill_(0.3);
  const at::Tensor x = random({kTokens, kWidth}, 1), dy = random({kTokens, kWidth}, 9);
  const Outcome got = layer.run(step_of()), without = plain.run(step_of());
  const at::Tensor i = at::mv(x, layer.parameter("importance.weight").master) + 0.3, s = at::sigmoid(i);
  EXPECT_LT(difference(got.out, without.out * (2 * s).unsqueeze(1)), 1e-5);
  // di_t = sum_k g_tk w_tk 2 s (1 - s), and sum_k g_tk w_tk = <dy_t, y_t> of the layer without
  const at::Tensor di = (dy * without.out).sum(1) * 2 * s * (1 - s);
  EXPECT_LT(difference(got.grad.at("moe.importance.weight"), at::mv(x.t(), di)), 1e-4);
  EXPECT_LT(difference(got.grad.at("moe.importance.bias"), di.sum().view({1})), 1e-4);
}

TEST(TokenImportance, ALargeTokenKeepsItsPlace) {
  Config config = base();
  config.moe.expert_capacity = 1;
  config.moe.drop_policy = "importance";
  config.moe.token_importance = "norm";
  ParameterStore store;
  const Dispatcher dispatcher(store, "moe", config);
  for (const int token : {0, 17, kTokens - 1}) {
    at::Tensor x = random({kTokens, kWidth}, 1);
    x[token] *= 100;
    Routing routing;
    routing.scores =
        ops::router_scores(at::zeros({kTokens, 6}), {}, {2, kTokens, 0, 0, ops::Score::kSoftmax, true, false, 1.0});
    routing.tokens = kTokens, routing.experts = 6, routing.top_k = 2;
    const Dispatched rows = dispatcher.place(x, routing, step_of());
    EXPECT_TRUE(rows.expert_TK[token].ge(0).all().item<bool>());
    EXPECT_EQ(rows.expert_TK.ge(0).sum().item<int>(), 2) << "everyone else lost theirs";
  }
}

// All tokens to two zero experts: columns 6 to 8 are zero, 9 and 10 copy, 11 and 12 constant.
TEST(ZeroExperts, TakeTokensWithoutProductsAndWithoutCapacity) {
  Config config = with_capacity(0.1);
  config.moe.zero_experts = {3, 2, 2};
  const at::Tensor x = random({kTokens, kWidth}, 1);
  const auto sent_to = [&](int first, int second) {
    SparseLayer layer(config);
    for (const char* name : {"zero.0.weight", "zero.0.value", "zero.1.weight", "zero.1.value"}) {
      const at::Tensor& master = layer.parameter(name).master;
      master.copy_(random(master.sizes().vec(), 40));
    }
    at::Tensor logits = at::zeros({kTokens, 13});
    logits.select(1, first).fill_(12);
    logits.select(1, second).fill_(11);
    return layer.run(step_of(), x, logits);
  };
  const Outcome zero = sent_to(6, 8), copy = sent_to(9, 10), mixed = sent_to(0, 9), constant = sent_to(11, 7);
  EXPECT_FALSE(zero.out.ne(0).any().item<bool>());
  EXPECT_EQ(number(zero.routing.diverted.dropped), 0);
  EXPECT_LT(difference(copy.out, x), 1e-6) << "weights sum to 1";
  EXPECT_LT(difference(copy.dx, random({kTokens, kWidth}, 9)), 1e-6);
  EXPECT_EQ(number(mixed.routing.diverted.dropped), kTokens - 2) << "the real expert has its capacity";
  const at::Tensor share = at::mm(x, random({2, kWidth}, 40).t()).softmax(1);
  const at::Tensor z = share.narrow(1, 0, 1) * x + share.narrow(1, 1, 1) * random({kWidth}, 40);
  EXPECT_LT(difference(constant.out, z * constant.routing.scores.weight_TK.detach().narrow(1, 0, 1)), 1e-5);
  EXPECT_GT(constant.grad.at("moe.zero.0.value").abs().max().item<double>(), 0);
  EXPECT_FALSE(constant.grad.at("moe.zero.1.value").ne(0).any().item<bool>());
  for (const Outcome* outcome : {&zero, &copy, &constant})
    EXPECT_FALSE(outcome->grad.at("moe.experts.up").ne(0).any().item<bool>()) << "no row for the products";
}

TEST(HiddenDropout, BelongsToTrainingAndIsTheSameInEveryBackendAndRecomputed) {
  Config config = base();
  config.moe.expert_hidden_dropout = 0.4;
  SparseLayer layer(config), plain(base());
  EXPECT_TRUE(at::equal(layer.run(step_of(false)).out, plain.run(step_of(false)).out));
  const Outcome first = layer.run(step_of(true, 3));
  EXPECT_GT(difference(first.out, plain.run(step_of()).out), 0.1);
  EXPECT_TRUE(at::equal(layer.run(step_of(true, 3)).out, first.out));
  EXPECT_FALSE(at::equal(layer.run(step_of(true, 4)).out, first.out));

  Config again = config, reference = config;
  again.train.recompute = "moe";
  reference.moe.backend = "reference";
  expect_same(run(again), first);
  const Outcome looped = run(reference);
  EXPECT_LT(difference(looped.out, first.out), 1e-5);
  for (const auto& [name, grad] : first.grad) EXPECT_LT(difference(looped.grad.at(name), grad), 1e-4) << name;
}

}  // namespace
}  // namespace switchyard
