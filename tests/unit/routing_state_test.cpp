// What routing keeps over steps, through the whole model: biases, counts, resets, totals and their figures
// (moe_spec R12, R13, T1, T3, T9, 4.3).
#include "model/moe/routing_state.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "optim/optimizer.h"
#include "small_model.h"
#include "train/activation_watch.h"
#include "train/collapse_watch.h"
#include "train/kept_routing.h"
#include "train/routing_reader.h"
#include "train/run_state.h"

namespace switchyard {
namespace {

using at::Tensor;

constexpr int kExperts = 8, kTopK = 2;

Config config_of() {
  Config config = small_sparse_model(kExperts, kTopK);
  config.log.routing = "layer";
  config.log.dead_window = 3;
  return config;
}

Config balanced() {
  Config config = config_of();
  config.router.topk_method = "noaux_tc";
  config.router.bias_balancing = true;
  config.router.bias_update_rate = 0.01;
  return config;
}

struct Model {
  explicit Model(const Config& config, std::uint64_t seed = 1) : gpt(config), control(0, 1, 5, {}) {
    gpt.store().allocate(at::kCPU, at::kFloat, gpt.store().contiguous());
    gpt.store().initialize(seed);
    gpt.prepare(at::kCPU, at::kFloat);
  }
  ModelOutput pass(std::uint64_t seed, bool training = true) {
    at::manual_seed(seed);
    const Tensor tokens = at::randint(64, {4 * 16}, at::kLong);
    StepContext step;
    step.training = training;
    step.seq_len = 16;
    return gpt.forward(tokens, tokens, step);
  }
  RoutingState& state() { return gpt.routing_state(); }
  void finish(bool applied) { gpt.finish_step(at::full({1}, applied ? 1 : 0, at::kInt), {}); }

  Gpt gpt;
  Control control;
};

Tensor counts(std::vector<std::int64_t> values) { return at::tensor(values, at::kLong).unsqueeze(0); }

TEST(Bias, RisesBelowTheMeanFallsAboveItByExactlyTheRate) {
  struct Case {
    const char* name;
    std::vector<std::int64_t> count;
    bool applied;
    std::vector<double> sign;
  };
  for (const Case& c :
       {Case{"skewed", {9, 1, 1, 1}, true, {-1, 1, 1, 1}}, Case{"even", {3, 3, 3, 3}, true, {0, 0, 0, 0}},
        Case{"one at the mean", {4, 2, 0, 2}, true, {-1, 0, 1, 0}},
        Case{"a mean that is no integer", {2, 1, 1, 1}, true, {-1, 1, 1, 1}},
        Case{"skipped", {9, 1, 1, 1}, false, {0, 0, 0, 0}},
        Case{
            "beyond fp32's integers", {(1LL << 40) + 1, 1LL << 40, (1LL << 40) - 1, 1LL << 40}, true, {-1, 0, 1, 0}}}) {
    RoutingState state;
    state.bias_LE = at::full({1, 4}, 0.5);
    state.bias_count_LE = counts(c.count);
    state.update_bias(0.25, at::full({1}, c.applied ? 1 : 0, at::kInt), {});
    EXPECT_TRUE(at::equal(state.bias_LE, at::tensor(c.sign).unsqueeze(0).to(at::kFloat) * 0.25 + 0.5)) << c.name;
    EXPECT_TRUE(state.bias_count_LE.eq(0).all().item<bool>()) << c.name;
  }
}

TEST(Bias, CountsOfMicroBatchesAndRanksAreOne) {
  Model whole(balanced()), first(balanced()), second(balanced());
  for (const std::uint64_t seed : {1, 2, 3, 4}) whole.pass(seed);
  for (const std::uint64_t seed : {1, 2}) first.pass(seed);
  for (const std::uint64_t seed : {3, 4}) second.pass(seed);
  whole.finish(true);
  const Tensor other = second.state().bias_count_LE.clone();
  first.gpt.finish_step(at::ones({1}, at::kInt), [&](const Tensor& count) { return count + other; });
  EXPECT_TRUE(at::equal(whole.state().bias_LE, first.state().bias_LE));
  EXPECT_GT(whole.state().bias_LE.abs().max().item<double>(), 0);
}

// A stream whose tokens prefer a few experts, fresh ones at each step; its scores never learn. A few steps are skipped.
TEST(Bias, EvensOutASkewedStream) {
  RoutingState state;
  state.bias_LE = at::zeros({1, kExperts});
  state.bias_count_LE = at::zeros({1, kExperts}, at::kLong);
  ops::RoutingRule rule;
  rule.score = ops::Score::kSigmoid;
  const Tensor preferred = at::linspace(-1, 1, kExperts);
  at::manual_seed(1);
  double first = 0, last = 0;
  for (int step = 0; step < 400; ++step) {
    const ops::RouterScores scores =
        ops::router_scores(at::randn({4096, kExperts}) + preferred, {state.bias_E(0), {}, {}}, rule);
    const Tensor count = scores.count_GE[0].to(at::kDouble);
    const double violation = (count.max() / count.mean() - 1).item<double>();
    if (step == 0) first = violation;
    if (step >= 390) last = std::max(last, violation);
    state.bias_count_LE.add_(scores.count_GE);
    state.update_bias(0.002, at::full({1}, step % 50 == 7 ? 0 : 1, at::kInt), {});
  }
  EXPECT_GT(first, 0.5);
  EXPECT_LT(last, 0.1);
}

TEST(Off, KeepsNothingAndAllocatesNothing) {
  Config config = config_of();
  config.log.routing = "summary";
  Model model(config);
  EXPECT_TRUE(model.gpt.kept_tensors().empty());
  EXPECT_FALSE(model.gpt.routing_totals().importance_LE.defined());
  EXPECT_FALSE(model.gpt.routing_totals().seq_balance_L.defined());
}

TEST(Logging, ChangesNoBitOfTheLossOrTheGradient) {
  Config quiet = config_of();
  quiet.log.routing = "summary";
  Model a(config_of()), b(quiet);
  for (Model* model : {&a, &b}) torch::autograd::backward({model->pass(3).total}, {});
  EXPECT_TRUE(at::equal(a.gpt.store().flat_grad, b.gpt.store().flat_grad));
}

TEST(Reset, DrawsAnewByStepAndTouchesRoutersAlone) {
  Config config = balanced();
  Model model(config), again(config);
  Optimizer optimizer(whole_parameters(model.gpt.store()), config);
  for (const OptimizerState& state : optimizer.states()) Tensor(state.values).fill_(1);
  model.state().bias_LE.fill_(3);
  const Tensor before = model.gpt.store().flat_master.clone();
  for (const Parameter* p : model.gpt.reset_routers(11, 20)) optimizer.forget(*p);
  again.gpt.reset_routers(11, 20);
  EXPECT_TRUE(at::equal(model.gpt.store().flat_master, again.gpt.store().flat_master));
  again.gpt.reset_routers(11, 40);
  for (const auto& p : model.gpt.store().all()) {
    const bool router = p->kind == ParameterKind::kRouter;
    const Tensor old = before.narrow(0, p->master.storage_offset(), p->count()).view(p->shape);
    EXPECT_EQ(at::equal(p->master, old), !router) << p->name;
    if (router) {
      EXPECT_FALSE(at::equal(p->master, again.gpt.store().find(p->name)->master)) << "another step, another draw";
    }
  }
  for (const OptimizerState& state : optimizer.states())
    EXPECT_EQ(state.values.eq(0).all().item<bool>(), state.slice.parameter->kind == ParameterKind::kRouter);
  EXPECT_TRUE(model.state().bias_LE.eq(0).all().item<bool>());
}

TEST(Reset, IsTheInitialRulePlusNoise) {
  Config config = config_of();
  config.router.init = "zeros";
  config.router.reset_noise = 0.5;
  config.model.n_embd = 512;
  Model model(config);
  model.gpt.reset_routers(1, 10);
  const Tensor w = model.gpt.store().find("blocks.0.moe.router.weight")->master;
  EXPECT_NEAR(w.std().item<double>(), 0.5, 0.02);
  EXPECT_NEAR(w.mean().item<double>(), 0, 0.03);
}

TEST(Kept, ComesBackBitwise) {
  Model model(balanced()), other(balanced());
  for (int step = 0; step < 3; ++step) {
    model.gpt.set_step(step);
    model.pass(static_cast<std::uint64_t>(step));
    if (step < 2) model.finish(true);
  }
  const NamedTensors kept = gather_kept(model.gpt, model.control);
  restore_kept(other.gpt, kept, true, "here");
  for (const KeptTensor& tensor : model.gpt.kept_tensors()) {
    const auto all = other.gpt.kept_tensors();
    const auto same = std::find_if(all.begin(), all.end(), [&](const KeptTensor& t) { return t.name == tensor.name; });
    EXPECT_TRUE(at::equal(same->values, tensor.values)) << tensor.name;
  }
  EXPECT_EQ(model.state().bias_LE.scalar_type(), at::kFloat);

  Model second_rank(balanced());
  restore_kept(second_rank.gpt, kept, false, "here");
  EXPECT_TRUE(second_rank.state().bias_count_LE.eq(0).all().item<bool>());
  EXPECT_TRUE(at::equal(second_rank.state().bias_LE, model.state().bias_LE));
  restore_kept(other.gpt, {}, true, "a checkpoint of old");  // a warning, no error

  Config wider = balanced();
  wider.moe.n_experts = 16;
  Model misfit(wider);
  EXPECT_THROW(restore_kept(misfit.gpt, kept, true, "here"), RunError);
}

TEST(Figures, AreThoseOfTheRoutingItself) {
  Config config = config_of();
  config.router.seq_balance_coef = 0.1;
  Model model(config);
  RoutingReader reader(model.gpt, model.control);
  std::vector<Tensor> count(2), last(2);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    count[layer] = at::zeros({kExperts}, at::kLong);
    last[layer] = at::full({kExperts}, -1, at::kLong);
  }
  double balance = 0;
  for (int step = 0; step < 5; ++step) {
    model.gpt.set_step(step);
    const ModelOutput training = model.pass(static_cast<std::uint64_t>(step)),
                      seen = model.pass(static_cast<std::uint64_t>(step), /*training=*/false);
    balance += training.balance_L.sum().item<double>() / 5;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const Tensor chosen = seen.routing[layer].scores.expert_TK.to(at::kLong).flatten();
      const Tensor mine = at::bincount(chosen, {}, kExperts);
      EXPECT_TRUE(at::equal(mine, training.count_LE[static_cast<std::int64_t>(layer)].to(at::kLong)));
      count[layer] += mine;
      last[layer] = at::where(mine.gt(0), step, last[layer]);
    }
  }
  const RoutingInterval interval = reader.read(5, 5);
  EXPECT_NEAR(interval.balance_loss, balance, 1e-4);
  ASSERT_EQ(interval.layers.size(), 2u);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const LayerRouting& figures = interval.layers[layer];
    double importance = 0;
    for (std::size_t e = 0; e < kExperts; ++e) {
      EXPECT_EQ(figures.count_E[e], count[layer][static_cast<std::int64_t>(e)].item<std::int64_t>());
      EXPECT_EQ(figures.idle_steps_E[e], 4 - last[layer][static_cast<std::int64_t>(e)].item<std::int64_t>());
      importance += figures.importance_E[e];
    }
    EXPECT_NEAR(importance, 1, 1e-4);  // normalised weights
    const Tensor share = count[layer].to(at::kDouble) / count[layer].sum();
    EXPECT_NEAR(max_violation(figures.count_E), (share.max() * kExperts - 1).item<double>(), 1e-12);
    EXPECT_NEAR(load_distance(figures.count_E), (share - 1.0 / kExperts).abs().sum().item<double>(), 1e-12);
    EXPECT_EQ(figures.dropped, -1);
    EXPECT_LT(figures.max_bias, 0);
  }
  EXPECT_EQ(reader.read(6, 1).layers[0].count_E, std::vector<std::int64_t>(kExperts, 0));  // anew after each reading
}

TEST(Figures, OfDivertedAssignmentsCountFromTheLastReading) {
  Config config = config_of();
  config.moe.capacity_factor = 1;
  Model model(config);
  model.state().dropped_L.fill_(100);  // of a checkpoint
  RoutingReader reader(model.gpt, model.control);
  model.state().dropped_L.add_(7);
  const LayerRouting layer = reader.read(1, 1).layers[0];
  EXPECT_EQ(layer.dropped, 7);
  EXPECT_EQ(layer.to_null, -1);
  EXPECT_EQ(reader.read(2, 1).layers[0].dropped, 0);
}

TEST(Collapse, IsToldOnceUntilItRecovers) {
  CollapseWatch watch(2, 20);
  const auto layer = [](std::vector<std::int64_t> count) { return std::vector<LayerRouting>{{3, std::move(count)}}; };
  EXPECT_TRUE(watch.look(layer({10, 10, 10, 10}), 10).empty());
  const auto found = watch.look(layer({50, 48, 1, 1}), 10);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_NE(found[0].find("layer 3: the router has collapsed, 98% of the assignments go to 2 of 4 experts"),
            std::string::npos)
      << found[0];
  EXPECT_TRUE(watch.look(layer({50, 48, 1, 1}), 10).empty());
  EXPECT_TRUE(watch.look(layer({10, 10, 10, 10}), 10).empty());
  EXPECT_EQ(watch.look(layer({99, 1, 0, 0}), 10).size(), 1u);

  CollapseWatch dead(4, 20);
  const std::vector<std::int64_t> half_dead{5, 5, 5, 5, 0, 0, 0, 0, 0, 0};
  EXPECT_TRUE(dead.look(layer(half_dead), 10).size() == 1);  // all on 4 of 10
  CollapseWatch wide(1, 20);
  EXPECT_TRUE(wide.look(layer(half_dead), 10).empty());  // not yet for the window
  const auto idle = wide.look(layer(half_dead), 10);
  ASSERT_EQ(idle.size(), 1u);
  EXPECT_NE(idle[0].find("6 of 10 experts had no token for 20 steps"), std::string::npos) << idle[0];
  CollapseWatch all(3, 20);
  EXPECT_TRUE(all.look(layer({10, 10, 10}), 10).empty());  // every expert is chosen
}

TEST(Collapse, IsNotToldAgainByARunThatIsResumed) {
  const std::vector<LayerRouting> all_on_two{{3, {50, 48, 1, 1}}}, idle{{5, {50, 50, 50, 0, 0, 0, 0}}};
  CollapseWatch before(2, 20), fresh(2, 20), after(2, 20);
  ASSERT_EQ(before.look(all_on_two, 10).size(), 1u);
  EXPECT_TRUE(before.look(idle, 10).empty());
  RunState saved;
  saved.collapse = before.state();
  after.restore(RunState::from_json(saved.to_json()).collapse);
  EXPECT_EQ(fresh.look(all_on_two, 10).size(), 1u);
  EXPECT_TRUE(after.look(all_on_two, 10).empty());
  EXPECT_TRUE(fresh.look(idle, 10).empty());
  EXPECT_EQ(after.look(idle, 10).size(), 1u) << "the steps without a token go on";
}

TEST(Activations, NameTheFirstLayerThatIsNotFinite) {
  struct Case {
    const char* parameter;
    const char* where;
  };
  for (const Case& c : {Case{"", ""}, Case{"blocks.0.attn.out.weight", "layer 0, attention"},
                        Case{"blocks.1.moe.router.weight", "layer 1, router logits"},
                        Case{"blocks.1.moe.experts.down", "layer 1, ffn"}, Case{"embed.weight", "layer 0, residual"}}) {
    Model model(config_of());
    if (*c.parameter) {
      Parameter* p = model.gpt.store().find(c.parameter);
      ASSERT_NE(p, nullptr) << c.parameter;
      p->master.fill_(std::numeric_limits<float>::quiet_NaN());
    }
    ActivationWatch watch(2, at::kCPU);
    at::NoGradGuard no_grad;
    StepContext step;
    step.seq_len = 16;
    step.watch = watch.watcher();
    watch.keep_tensors(true);
    const Tensor tokens = at::arange(64);
    model.gpt.forward(tokens, tokens, step);
    EXPECT_EQ(watch.first_nonfinite(model.control), c.where) << c.parameter;
    EXPECT_EQ(watch.take_tensors().size(), 8u);
    EXPECT_TRUE(watch.take_tensors().empty());
    if (!*c.parameter) { EXPECT_GT(watch.norms()[1].router_logits, 0); }
  }
}

}  // namespace
}  // namespace switchyard
