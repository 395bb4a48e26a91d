// What stands around the sparse layer: parallel blocks (moe_spec M7), INL dynamics in the model (M8), the flexible FFN
// (E11), the experts' warm-up (E12), and blocks that are computed again (T4).
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>

#include "base/error.h"
#include "config/load.h"
#include "model/gpt.h"

namespace switchyard {
namespace {

constexpr int kSequences = 3, kLength = 16, kTokens = kSequences * kLength;

// A small model whose every weight is moved off its initial value.
struct Built {
  explicit Built(const Overrides& overrides) : Built(parsed(overrides)) {}
  explicit Built(const Config& config) : model(config) {
    ParameterStore& store = model.store();
    store.allocate(at::kCPU, at::kFloat, store.contiguous());
    store.initialize(5);
    at::manual_seed(9);
    for (const auto& parameter : store.all()) parameter->master.add_(at::randn(parameter->shape), 0.15);
    model.prepare(at::kCPU, at::kFloat);
    at::manual_seed(10);
    tokens = at::randint(config.model.vocab_size, {kTokens}, at::kLong);
    targets = at::randint(config.model.vocab_size, {kTokens}, at::kLong);
    context.seq_len = kLength;
    context.dropout = {3, at::zeros({1}, at::kLong), at::arange(kSequences), kLength};
  }
  static Config parsed(const Overrides& overrides) {
    Overrides all = {{"device", "cpu"},           {"precision.mode", "fp32"}, {"model.n_layer", "3"},
                     {"model.n_embd", "32"},      {"model.head_dim", "8"},    {"model.seq_len", "16"},
                     {"model.vocab_size", "264"}, {"train.micro_batch", "3"}, {"train.batch_tokens", "48"},
                     {"moe.n_experts", "4"},      {"moe.d_expert", "24"},     {"model.ffn_hidden", "40"},
                     {"model.logit_softcap", "0"}};
    all.insert(all.end(), overrides.begin(), overrides.end());
    return parse_config("{}", "", all).config;
  }
  // Weights of the same names, where the other has them.
  void copy_weights(Built& from) {
    for (const auto& parameter : model.store().all())
      if (const Parameter* other = from.model.store().find(parameter->name)) parameter->master.copy_(other->master);
  }
  Parameter& weight(const std::string& name) {
    Parameter* found = model.store().find(name);
    SWITCHYARD_ASSERT(found, "no parameter " + name);
    return *found;
  }
  // Scales every parameter whose name ends so.
  void scale(const std::string& ending, double factor) {
    for (const auto& parameter : model.store().all())
      if (parameter->name.size() >= ending.size() &&
          parameter->name.compare(parameter->name.size() - ending.size(), ending.size(), ending) == 0)
        parameter->master.mul_(factor);
  }
  at::Tensor logits() { return model.logits(tokens, context); }
  // Of one training micro-batch; the gradients are in the store.
  at::Tensor train() {
    context.training = true;
    const ModelOutput output = model.forward(tokens, targets, context);
    torch::autograd::backward({output.total}, {});
    context.training = false;
    return output.total.detach();
  }

  Gpt model;
  at::Tensor tokens, targets;
  StepContext context;
};

using Case = std::pair<const char*, Overrides>;

Overrides joined(Overrides a, const Overrides& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const Overrides kLlama = {{"model.mlp", "swiglu"},         {"model.n_kv_head", "2"},
                          {"model.norm_weight", "true"},   {"model.qk_norm_weight", "true"},
                          {"model.value_embeds", "false"}, {"model.resid_scalars", "false"},
                          {"model.embed_norm", "false"}};
const Overrides kSparse = {{"moe.use_moe", "true"}};
const Overrides kInl = {{"model.inl.enabled", "true"}, {"model.inl.controller_hidden", "5"}};
const Overrides kEverything = joined(
    joined(kSparse, kInl), {{"moe.flexible_ffn", "true"}, {"moe.n_shared_experts", "1"}, {"moe.first_dense", "1"}});

const std::vector<Case> kModels = {
    {"dense", {}},
    {"dense llama", kLlama},
    {"parallel", {{"model.block", "parallel"}}},
    {"INL shared", kInl},
    {"INL a module a layer, llama", joined(joined(kLlama, kInl), {{"model.inl.shared", "false"}})},
    {"INL lite", joined(kInl, {{"model.inl.mode", "lite"}})},
#ifdef SWITCHYARD_WITH_MOE
    {"sparse", kSparse},
    {"sparse llama, losses injected", joined(joined(kLlama, kSparse), {{"moe.aux_injection", "autograd"}})},
    {"parallel, sparse", joined(kSparse, {{"model.block", "parallel"}})},
    {"parallel, sparse, weighted norms", joined(joined(kLlama, kSparse), {{"model.block", "parallel"}})},
    {"everything", kEverything},
    {"everything, parallel, dropout", joined(kEverything, {{"model.block", "parallel"}, {"model.dropout", "0.2"}})},
    {"everything, half warm", joined(kEverything, {{"moe.warmup_steps", "10"}})},
    {"everything, averaging", joined(kEverything, {{"moe.warmup_steps", "10"}, {"moe.warmup_mode", "dense_average"}})},
#endif
};

// Bitwise: two micro-batches summed, so that nothing overwrites and nothing counts twice.
void expect_same_training(const char* name, Built& kept, Built& again) {
  for (Built* built : {&kept, &again}) built->model.set_step(5);
  std::map<std::string, int> ready;
  for (const auto& parameter : again.model.store().all())
    parameter->on_ready = [&ready](const Parameter& p) { ++ready[p.name]; };
  for (int micro = 0; micro < 2; ++micro) EXPECT_TRUE(at::equal(kept.train(), again.train())) << name;
  const auto& parameters = kept.model.store().all();
  for (std::size_t i = 0; i < parameters.size(); ++i)
    EXPECT_TRUE(at::equal(parameters[i]->grad, again.model.store().all()[i]->grad))
        << name << ": " << parameters[i]->name;
  for (const auto& [parameter, times] : ready) EXPECT_EQ(times, 2) << name << ": " << parameter;
  const RoutingTotals &want = kept.model.routing_totals(), &got = again.model.routing_totals();
  if (!want.count_LE.defined()) return;
  EXPECT_TRUE(at::equal(want.count_LE, got.count_LE)) << name;
  EXPECT_TRUE(at::equal(want.prob_LE, got.prob_LE)) << name;
  EXPECT_TRUE(at::equal(want.balance_L, got.balance_L)) << name;
#ifdef SWITCHYARD_WITH_MOE
  const RoutingState &kept_state = kept.model.routing_state(), &again_state = again.model.routing_state();
  if (kept_state.bias_count_LE.defined()) {
    EXPECT_TRUE(at::equal(kept_state.bias_count_LE, again_state.bias_count_LE)) << name;
  }
#endif
}

TEST(Recompute, BlocksGiveTheSameGradientsAndCounts) {
  for (const auto& [name, overrides] : kModels) {
    Built kept(overrides), again(joined(overrides, {{"train.recompute", "block"}}));
    expect_same_training(name, kept, again);
  }
}

#ifdef SWITCHYARD_WITH_MOE
TEST(Recompute, EveryKindOfRoutingGivesTheSame) {
  for (const auto& [name, overrides] : std::vector<Case>{
           {"biases", {{"router.bias_balancing", "true"}}},
           {"noise and dropped experts", {{"router.noise", "gumbel"}, {"moe.expert_dropout", "0.3"}}},
           {"rerouting, hidden dropout",
            {{"moe.capacity_factor", "0.8"}, {"moe.overflow", "reroute"}, {"moe.expert_hidden_dropout", "0.2"}}},
           {"null experts, learned importance",
            {{"moe.capacity_factor", "0.8"},
             {"moe.overflow", "null_expert"},
             {"moe.null_expert", "constant"},
             {"moe.token_importance", "learned"},
             {"moe.drop_policy", "importance"}}},
           {"cosine router, sequence loss", {{"router.semantic", "true"}, {"router.seq_balance_coef", "0.1"}}},
           {"zero experts", {{"moe.zero_experts.copy", "1"}, {"router.z_loss_coef", "0.01"}}}})
    for (const char* mode : {"moe", "block"}) {
      const Overrides all = joined(kSparse, overrides);
      Built kept(all), again(joined(all, {{"train.recompute", mode}}));
      expect_same_training(name, kept, again);
    }
}
#endif

TEST(Blocks, GenerationWithACacheEqualsTheFullForward) {
  for (const auto& [name, overrides] : kModels) {
    SCOPED_TRACE(name);
    Built built(overrides);
    built.model.set_step(5);
    const at::Tensor all = built.logits().view({kSequences, kLength, -1});
    const at::Tensor tokens = built.tokens.view({kSequences, kLength});
    KvCache cache = built.model.make_cache(kSequences, kLength);
    StepContext step = built.context;
    for (int begin = 0; begin < kLength; begin += step.seq_len) {
      step.seq_len = begin == 0 ? 7 : 1;
      const at::Tensor next = tokens.narrow(1, begin, step.seq_len).reshape({-1}).contiguous();
      const at::Tensor last = built.model.logits_cached(next, step, cache);
      EXPECT_TRUE(at::allclose(last, all.select(1, begin + step.seq_len - 1), 1e-4, 1e-4)) << name << " at " << begin;
    }
  }
}

// With one of its halves silent, a block is the same in either order.
TEST(ParallelBlock, AddsAttentionAndMlpOfOneX) {
  for (const auto& [name, overrides] : std::vector<Case>{
#ifdef SWITCHYARD_WITH_MOE
           {"sparse", kSparse},
           {"sparse, weighted norms", joined(kLlama, kSparse)},
#endif
           {"one norm", {}},
           {"weighted norms", kLlama}}) {
    const auto logits = [&, overrides = overrides](const char* block, bool attention, bool mlp) {
      const Config config = Built::parsed(joined(overrides, {{"model.block", block},
                                                             {"model.n_layer", "1"},
                                                             {"model.value_embeds", "false"},
                                                             {"model.resid_scalars", "false"}}));
      Built built(config);
      if (!attention) built.scale("attn.out.weight", 0);
      if (!mlp) built.scale(".down", 0), built.scale(".down.weight", 0);
      return built.logits();
    };
    EXPECT_TRUE(at::equal(logits("parallel", true, false), logits("sequential", true, false))) << name;
    EXPECT_TRUE(at::equal(logits("parallel", false, true), logits("sequential", false, true))) << name;
    EXPECT_FALSE(at::allclose(logits("parallel", true, true), logits("sequential", true, true))) << name;
  }
}

TEST(ParallelBlock, IsTheSumOfItsPartsInPlainAten) {
  Built built(joined(kLlama, {{"model.block", "parallel"}, {"model.n_layer", "1"}}));
  const auto w = [&](const char* name) { return built.weight(name).master; };
  const auto norm = [](const at::Tensor& x, const at::Tensor& gain) {
    return x * (x.pow(2).mean(-1, true) + 1e-6).rsqrt() * gain;
  };
  const at::Tensor x = w("embed.weight").index_select(0, built.tokens);
  const at::Tensor n2 = norm(x, w("blocks.0.mlp_norm.weight"));
  const std::vector<at::Tensor> up = at::mm(n2, w("blocks.0.mlp.up.weight").t()).chunk(2, 1);
  const at::Tensor mlp = at::mm(at::silu(up[0]) * up[1], w("blocks.0.mlp.down.weight").t());
  const auto logits_of = [&](const at::Tensor& sum) {
    return at::mm(norm(sum, w("final_norm.weight")), w("head.weight").t());
  };
  const at::Tensor both = built.logits();
  built.weight("blocks.0.attn.out.weight").master.zero_();
  EXPECT_TRUE(at::allclose(built.logits(), logits_of(x + mlp), 1e-4, 1e-4));
  EXPECT_FALSE(at::allclose(both, logits_of(x + mlp), 1e-2, 1e-2));
}

TEST(InlInTheModel, StartsAtItsInitialCoefficients) {
  const Config config = Built::parsed({{"model.inl.enabled", "true"}});
  ParameterStore store;
  InlDynamics inl(store, "inl", config.model);
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(5);
  std::int64_t count = 0;
  for (const auto& parameter : store.all()) count += parameter->count();
  EXPECT_EQ(count, 324 * config.model.n_embd + 64);
  const at::NoGradGuard no_grad;
  const at::Tensor zero = at::zeros({5, config.model.n_embd}), small = at::full_like(zero, 1e-2);
  const ops::InlState kept = inl.forward({zero, small}), pulled = inl.forward({small, at::Tensor()});
  EXPECT_LT((kept.v_TD / small - 0.9).abs().max().item<float>(), 1e-3);
  EXPECT_LT((pulled.v_TD / small + 0.1).abs().max().item<float>(), 1e-3);
  EXPECT_LT((kept.h_TD / (0.1 * kept.v_TD) - 0.5).abs().max().item<float>(), 1e-3);
}

TEST(InlInTheModel, ASharedModuleTakesTheSumOfItsUses) {
  Built shared(kInl), own(joined(kInl, {{"model.inl.shared", "false"}}));
  own.copy_weights(shared);
  for (int layer = 0; layer < 3; ++layer)
    for (const char* name : {"mean", "in.weight", "in.bias", "out.weight", "out.bias"})
      own.weight("blocks." + std::to_string(layer) + ".inl." + name)
          .master.copy_(shared.weight(std::string("inl.") + name).master);
  EXPECT_TRUE(at::equal(shared.train(), own.train()));
  for (const char* name : {"mean", "in.weight", "in.bias", "out.weight", "out.bias"}) {
    at::Tensor sum = at::zeros_like(shared.weight(std::string("inl.") + name).grad);
    for (int layer = 0; layer < 3; ++layer) sum += own.weight("blocks." + std::to_string(layer) + ".inl." + name).grad;
    EXPECT_GT(sum.abs().sum().item<float>(), 0) << name;
    EXPECT_TRUE(at::allclose(sum, shared.weight(std::string("inl.") + name).grad, 1e-4, 1e-7)) << name;
  }
}

#ifdef SWITCHYARD_WITH_MOE

struct Layer0 {
  ParameterStore store;
  std::shared_ptr<FlexibleFfn> flexible;
  Layer0() {
    const Init wide{Init::Kind::kNormal, 0.3};
    flexible = std::make_shared<FlexibleFfn>(store, "moe", ExpertShape{16, 24, ops::ActivationKind::kGelu, wide, wide},
                                             0.5, PrecisionPolicy{});
    store.allocate(at::kCPU, at::kFloat, store.contiguous());
    store.initialize(5);
  }
};

TEST(Flexible, TheShareGoesFromOneToTheOther) {
  Layer0 layer;
  at::manual_seed(1);
  const at::Tensor x = at::randn({33, 16}), moe = at::randn({33, 16});
  const at::NoGradGuard no_grad;
  const auto with = [&](double mix, const at::Tensor& fade = {}) {
    layer.store.find("moe.mix")->master.fill_(mix);
    return layer.flexible->forward(x, moe, fade, {});
  };
  const at::Tensor dense = with(-200);
  EXPECT_TRUE(at::equal(with(200), moe));
  EXPECT_FALSE(at::allclose(dense, moe));
  EXPECT_TRUE(at::equal(with(0.5, at::zeros({1})), dense)) << "m = 0";
  EXPECT_TRUE(at::equal(with(0.5, at::ones({1})), with(0.5))) << "m = 1";
  const double share = 1 / (1 + std::exp(-0.5));
  EXPECT_NEAR(share, 0.622, 1e-3);
  EXPECT_TRUE(at::allclose(with(0.5), share * moe + (1 - share) * dense, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(with(0.5, at::full({1}, 0.25)), share / 4 * moe + (1 - share / 4) * dense, 1e-5, 1e-6));
}

TEST(Flexible, GradientOfTheShare) {
  for (const double m : {1.0, 0.25}) {
    Layer0 layer;
    at::manual_seed(1);
    const at::Tensor x = at::randn({33, 16}), moe = at::randn({33, 16}).requires_grad_(true), dy = at::randn({33, 16});
    torch::autograd::backward({layer.flexible->forward(x, moe, at::full({1}, m), {})}, {dy});
    const at::Tensor gradient = layer.store.find("moe.mix")->grad.clone();
    layer.store.find("moe.mix")->master.fill_(-200);
    const at::NoGradGuard no_grad;
    const at::Tensor dense = layer.flexible->forward(x, moe, {}, {});
    const double share = 1 / (1 + std::exp(-0.5));
    EXPECT_NEAR(gradient.item<double>(), m * share * (1 - share) * (dy * (moe - dense)).sum().item<double>(), 1e-4);
    EXPECT_TRUE(at::allclose(moe.grad(), m * share * dy, 1e-5, 1e-6));
  }
}

// A dense model's weights in the dense path, and none of the experts: the dense model.
TEST(Flexible, HoldsADenseModel) {
  for (const auto& [name, family] : std::vector<Case>{{"nanochat", {}}, {"llama", kLlama}}) {
    Built dense(family), flexible(joined(family, joined(kSparse, {{"moe.flexible_ffn", "true"}})));
    flexible.copy_weights(dense);
    for (int layer = 0; layer < 3; ++layer) {
      const std::string block = "blocks." + std::to_string(layer);
      for (const char* matrix : {".up.weight", ".down.weight"})
        flexible.weight(block + ".moe.dense" + matrix).master.copy_(dense.weight(block + ".mlp" + matrix).master);
      flexible.weight(block + ".moe.mix").master.fill_(-200);
    }
    EXPECT_TRUE(at::allclose(dense.logits(), flexible.logits(), 1e-5, 1e-5)) << name;
  }
}

const Overrides kShared = joined(kSparse, {{"moe.n_shared_experts", "1"}});

// The routed sum is linear in the experts' output matrices, so m = 1/2 is an exact half of them, m = 0 none.
TEST(WarmUp, BlendScalesTheRoutedSumAlone) {
  const Overrides warming = {{"moe.warmup_steps", "10"}};
  for (const auto& [name, overrides] : std::vector<Case>{{"alone", kSparse}, {"beside shared experts", kShared}})
    for (const auto& [step, m] : std::vector<std::pair<int, double>>{{0, 0}, {5, 0.5}, {10, 1}, {11, 1}}) {
      Built warm(joined(overrides, warming)), scaled(overrides);
      warm.model.set_step(step);
      scaled.scale("experts.down", m);
      EXPECT_TRUE(at::equal(warm.logits(), scaled.logits())) << name << " at step " << step;
    }
  Built flexible(joined(kEverything, warming)), dense(kEverything);
  for (int layer = 1; layer < 3; ++layer)
    dense.weight("blocks." + std::to_string(layer) + ".moe.mix").master.fill_(-200);
  EXPECT_TRUE(at::equal(flexible.logits(), dense.logits())) << "m = 0 leaves the dense path";
}

TEST(WarmUp, AveragingLeavesPaddingOut) {
  const at::Tensor real = at::tensor({1, 0, 1}).to(at::kBool);
  const Dispatched rows = WarmUp::every_expert(at::zeros({3, 8}), 4, real);
  EXPECT_TRUE(at::equal(rows.expert_TK.ge(0), real.unsqueeze(1).expand({3, 4})));
  EXPECT_TRUE(WarmUp::every_expert(at::zeros({3, 8}), 4, {}).expert_TK.ge(0).all().item<bool>());
}

TEST(WarmUp, IsOffBitwiseOnceItIsOver) {
  for (const char* mode : {"blend", "dense_average"}) {
    Built warm(joined(kEverything, {{"moe.warmup_steps", "10"}, {"moe.warmup_mode", mode}})), off(kEverything);
    for (Built* built : {&warm, &off}) built->model.set_step(10);
    EXPECT_TRUE(at::equal(warm.train(), off.train())) << mode;
    EXPECT_TRUE(at::equal(warm.model.store().flat_grad, off.model.store().flat_grad)) << mode;
  }
}

// Every expert chosen by a router of zeros is the mean too.
TEST(WarmUp, DenseAverageIsTheMeanOfAllExperts) {
  for (const char* backend : {"auto", "reference"}) {
    Built average(
        joined(kSparse, {{"moe.warmup_steps", "8"}, {"moe.warmup_mode", "dense_average"}, {"moe.backend", backend}})),
        every(joined(kSparse, {{"router.top_k", "4"}}));
    every.scale("router.weight", 0);
    average.scale("router.weight", 0);
    every.scale("experts.down", 0.25);
    average.model.set_step(2);
    EXPECT_TRUE(at::allclose(average.logits(), every.logits(), 1e-5, 1e-5)) << backend;
    average.train();
    for (int e = 0; e < 4; ++e)
      EXPECT_GT(average.weight("blocks.0.moe.experts.up").grad[e].abs().sum().item<float>(), 0) << "expert " << e;
  }
  Built shared(joined(kShared, {{"moe.warmup_steps", "8"}, {"moe.warmup_mode", "dense_average"}})), base(kShared);
  base.scale("experts.down", 0);
  EXPECT_TRUE(at::equal(shared.logits(), base.logits())) << "m = 0 leaves the shared experts";
}

#endif

}  // namespace
}  // namespace switchyard
