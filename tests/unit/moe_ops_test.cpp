// The sparse layer's operations: routing scores, dispatch, and the experts, each against plain ATen and finite
// differences.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/grouped_gemm.h"
#include "ops/fused_mlp.h"
#include "ops/moe_ffn.h"
#include "ops/router_scores.h"

namespace switchyard::ops {
namespace {

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(type);
}

double relative(const Tensor& a, const Tensor& b) {
  const Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  return ((x - y).norm() / (y.norm() + 1e-12)).item<double>();
}

std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) list.push_back(at::Device(at::kCUDA, 0));
  if (list.size() == 1 && std::getenv("SWITCHYARD_PORTABLE_KERNELS")) std::puts("no GPU here");  // the test is skipped
  return list;
}

struct ScoreCase {
  const char* name;
  std::int64_t tokens;
  int experts, top_k;
  Score score;
  bool normalize;
  std::int64_t group;
};
const std::vector<ScoreCase> kScores = {
    {"softmax, normalised", 64, 8, 2, Score::kSoftmax, true, 0},
    {"softmax as it is", 64, 8, 2, Score::kSoftmax, false, 0},
    {"sigmoid, normalised", 63, 16, 4, Score::kSigmoid, true, 0},
    {"sigmoid as it is", 64, 8, 1, Score::kSigmoid, false, 0},
    {"identity", 40, 4, 2, Score::kIdentity, false, 0},
    {"one expert", 33, 1, 1, Score::kSoftmax, true, 0},
    {"every expert", 32, 4, 4, Score::kSoftmax, true, 0},
    {"by sequence", 64, 8, 2, Score::kSoftmax, true, 16},
    {"top 1 keeps its weight", 64, 8, 1, Score::kSoftmax, true, 0},
    {"many experts", 1000, 64, 8, Score::kSoftmax, true, 0},
};

TEST(RouterScores, MatchesReferenceForwardAndBackward) {
  for (const at::Device device : devices())
    for (const ScoreCase& c : kScores) {
      const RoutingRule rule{c.top_k, 16, 0, c.group, c.score, c.normalize, true, 1.5};
      const auto run = [&](auto op, at::ScalarType type) {
        const Tensor logits = random({c.tokens, c.experts}, 3, type).to(device).requires_grad_(true);
        const RouterScores s = op(logits, Selection{}, rule);
        const auto fixed = [&](const Tensor& t, std::uint64_t seed) {
          return (t * random(t.sizes().vec(), seed, type).to(device)).sum();
        };
        torch::autograd::backward(
            {fixed(s.weight_TK, 1) + fixed(s.prob_sum_GE, 2) + fixed(s.importance_E, 4) + fixed(s.z_sum, 5)}, {});
        return std::pair<RouterScores, Tensor>(s, logits.grad());
      };
      const at::ScalarType type = device.is_cpu() ? at::kDouble : at::kFloat;
      const double bound = device.is_cpu() ? 1e-10 : 1e-4;
      const auto [got, d_got] = run(router_scores, type);
      const auto [want, d_want] = run(router_scores_reference, type);
      EXPECT_TRUE(at::equal(got.expert_TK, want.expert_TK)) << c.name;
      EXPECT_TRUE(at::equal(got.count_GE, want.count_GE)) << c.name;
      EXPECT_LT(relative(got.weight_TK, want.weight_TK), bound) << c.name;
      EXPECT_LT(relative(got.prob_sum_GE, want.prob_sum_GE), bound) << c.name;
      EXPECT_LT(relative(got.importance_E, want.importance_E), bound) << c.name;
      EXPECT_LT(relative(got.z_sum, want.z_sum), bound) << c.name;
      EXPECT_LT(relative(d_got, d_want), bound) << c.name;
    }
}

// Of the weights' gradient g (dense, 0 where not chosen), moe_spec section 3.
Tensor closed_form(const ScoreCase& c, double scale, const Tensor& logits, const Tensor& chosen, const Tensor& g) {
  if (c.score == Score::kIdentity) return scale * g;
  const Tensor s = c.score == Score::kSoftmax ? at::softmax(logits, 1) : at::sigmoid(logits);
  if (!c.normalize || c.top_k == 1) {
    if (c.score == Score::kSoftmax) return scale * s * (g - (s * g).sum(1, true));
    return scale * s * (1 - s) * g;
  }
  const Tensor total = (s * chosen).sum(1, true), w = s * chosen / total, rest = (g - (w * g).sum(1, true)) * chosen;
  return c.score == Score::kSoftmax ? scale * w * rest : scale * s * (1 - s) / total * rest;
}

TEST(RouterScores, GradientsAreTheClosedForms) {
  const double scale = 1.5;
  for (const ScoreCase& c : kScores) {
    const Tensor logits = random({c.tokens, c.experts}, 3, at::kDouble).requires_grad_(true), l = logits.detach();
    const RouterScores got =
        router_scores(logits, {}, RoutingRule{c.top_k, 16, 0, 0, c.score, c.normalize, true, scale});
    const auto gradient = [&](const Tensor& loss) {
      return torch::autograd::grad({loss}, {logits}, {}, /*retain_graph=*/true)[0];
    };
    const Tensor index = got.expert_TK.to(at::kLong), none = at::zeros_like(l);
    const Tensor g = random({c.tokens, c.top_k}, 4, at::kDouble), chosen = none.scatter(1, index, 1.0);
    const Tensor d = gradient((got.weight_TK * g).sum());
    EXPECT_LT((d - closed_form(c, scale, l, chosen, none.scatter(1, index, g))).abs().max().item<double>(), 1e-12)
        << c.name;

    // The losses: switch, squared coefficient of variation, z.
    const double tokens = static_cast<double>(c.tokens);
    const Tensor s = at::sigmoid(l), softmax = at::softmax(l, 1);
    const Tensor p = c.score == Score::kSigmoid ? s / s.sum(1, true) : softmax;
    const Tensor inner = c.score == Score::kSigmoid ? 1 - s : at::ones_like(s);
    const auto of_mean_prob = [&](const Tensor& a) { return p * inner * (a - (a * p).sum(1, true)) / tokens; };
    const auto expect = [&](const char* loss, const Tensor& value, const Tensor& want) {
      EXPECT_LT((gradient(value) - want).abs().max().item<double>(), 1e-12) << c.name << ", " << loss;
    };
    const Tensor f = got.count_GE[0].to(at::kDouble) / tokens, mean_prob = got.prob_sum_GE[0] / tokens;
    expect("switch", c.experts * (f * mean_prob).sum(), of_mean_prob(c.experts * f));
    const Tensor off = mean_prob - 1.0 / c.experts;
    expect("cv_squared", c.experts * off.square().sum(), of_mean_prob(2.0 * c.experts * off.detach()));
    expect("z", got.z_sum.sum() / tokens, 2 / tokens * at::logsumexp(l, 1, true) * softmax);
  }
}

TEST(RouterScores, EqualLogitsRotateOverAllExpertsOrGoToTheFirst) {
  for (const at::Device device : devices()) {
    const Tensor zeros = at::zeros({96, 8}, device);
    const RoutingRule rotate{2, 32, 0, 0, Score::kSoftmax, true, true, 1.0};
    EXPECT_TRUE(router_scores(zeros, {}, rotate).count_GE.eq(24).all().item<bool>());
    RoutingRule lowest = rotate;
    lowest.rotate_ties = false;
    const Tensor count = router_scores(zeros, {}, lowest).count_GE.cpu();
    EXPECT_EQ(count[0][0].item<int>(), 96);
    EXPECT_EQ(count[0][1].item<int>(), 96);
    EXPECT_EQ(count[0][2].item<int>(), 0);
  }
}

// Beside the router, x is read by a product (whose gradient is added to in place) or a sum (whose gradient is not
// ours).
TEST(RouterLogits, MatchesReferenceBesideAnotherReader) {
  for (const at::Device device : devices())
    for (const int experts : {1, 8, 13, 64, 130})
      for (const bool shared : {false, true}) {
        const auto run = [&](bool fused) {
          ParameterStore store;
          Parameter& w = store.add("router", ParameterKind::kRouter, {experts, 72}, {Init::Kind::kNormal, 0.3});
          store.allocate(device, at::kFloat, store.contiguous());
          store.initialize(5);
          const Tensor x = random({77, 72}, 1).to(device).requires_grad_(true),
                       other = random({77, 72}, 2).to(device).requires_grad_(true);
          RouterLogits out{Tensor(), x};
          if (fused)
            out = router_logits(x, w);
          else
            out.logits_TE = at::mm(x, attach(w).t());
          const Tensor rest = shared ? out.x_TD + other : out.x_TD * other;
          torch::autograd::backward({out.logits_TE, rest},
                                    {random({77, experts}, 3).to(device), random({77, 72}, 4).to(device)});
          return std::vector<Tensor>{out.logits_TE, x.grad(), other.grad(), w.grad};
        };
        const auto got = run(true), want = run(false);
        for (std::size_t i = 0; i < got.size(); ++i)
          EXPECT_LT(relative(got[i], want[i]), 1e-5) << experts << " experts, result " << i;
      }
}

enum class Skew { kRandom, kSingle, kHalfEmpty };
struct ExpertCase {
  const char* name;
  std::int64_t tokens;
  int width, hidden, experts, top_k;
  ActivationKind kind;
  Skew skew;
};
const std::vector<ExpertCase> kExperts = {
    {"one token", 1, 16, 24, 8, 2, ActivationKind::kRelu2, Skew::kRandom},
    {"odd rows", 127, 24, 40, 8, 2, ActivationKind::kRelu2, Skew::kRandom},
    {"swiglu", 64, 32, 16, 4, 2, ActivationKind::kSwiglu, Skew::kRandom},
    {"swiglu, odd rows", 301, 72, 200, 8, 2, ActivationKind::kSwiglu, Skew::kRandom},
    {"swiglu, all on one expert", 64, 16, 136, 8, 1, ActivationKind::kSwiglu, Skew::kSingle},
    {"swiglu, half the experts empty", 96, 16, 24, 16, 2, ActivationKind::kSwiglu, Skew::kHalfEmpty},
    {"every expert chosen", 64, 16, 16, 4, 4, ActivationKind::kGelu, Skew::kRandom},
    {"all on one expert", 64, 16, 24, 8, 1, ActivationKind::kRelu2, Skew::kSingle},
    {"half the experts empty", 96, 16, 24, 16, 2, ActivationKind::kGeglu, Skew::kHalfEmpty},
    {"one expert", 31, 16, 24, 1, 1, ActivationKind::kRelu2, Skew::kRandom},
    // More hidden units than those for which weight gradients on Hopper gather tokens: of both products, or of up
    // alone.
    {"wide", 150, 24, kernels::kMostUnitsToGather + 8, 4, 2, ActivationKind::kRelu2, Skew::kRandom},
    {"swiglu, wide", 150, 24, kernels::kMostUnitsToGather + 8, 4, 2, ActivationKind::kSwiglu, Skew::kRandom},
    {"swiglu, wide with its gates", 150, 24, kernels::kMostUnitsToGather / 2 + 8, 4, 2, ActivationKind::kSwiglu,
     Skew::kRandom},
};

Tensor choices(const ExpertCase& c) {
  at::manual_seed(17);
  const int used = c.skew == Skew::kSingle ? 1 : c.skew == Skew::kHalfEmpty ? c.experts / 2 : c.experts;
  return at::rand({c.tokens, used})
      .argsort(static_cast<std::int64_t>(1), false)
      .narrow(1, 0, c.top_k)
      .to(at::kInt)
      .contiguous();
}

struct Backend {
  at::Device device;
  at::ScalarType compute;
  double tolerance;
};
// In bf16 each product rounds its result to 8 bits.
std::vector<Backend> backends() {
  std::vector<Backend> all;
  for (const at::Device device : devices()) {
    all.push_back({device, at::kFloat, 3e-5});
    if (device.is_cuda()) all.push_back({device, at::kBFloat16, 2e-2});
  }
  return all;
}

TEST(MoeFfn, MatchesTheLoopOverExperts) {
  for (const Backend& backend : backends())
    for (const ExpertCase& c : kExperts) {
      const at::Device device = backend.device;
      const Tensor expert = choices(c).to(device);
      const GroupedProducts& products = GroupedProducts::choose(device, backend.compute);
      const auto run = [&](bool fused) {
        ParameterStore store;
        const std::int64_t up_rows = is_gated(c.kind) ? 2 * c.hidden : c.hidden;
        Parameter& up =
            store.add("up", ParameterKind::kExpert, {c.experts, up_rows, c.width}, {Init::Kind::kNormal, 0.3});
        Parameter& down =
            store.add("down", ParameterKind::kExpert, {c.experts, c.width, c.hidden}, {Init::Kind::kNormal, 0.3});
        store.allocate(device, backend.compute, store.contiguous());
        store.initialize(5);
        const Tensor x = random({c.tokens, c.width}, 1).to(device, backend.compute).requires_grad_(true);
        const Tensor weight = random({c.tokens, c.top_k}, 2).to(device).requires_grad_(true);
        const ExpertWeights weights{&up, &down, c.kind};
        const Tensor out =
            fused ? moe_ffn(x, weight, weights,
                            dispatch(expert, c.experts, products.alignment(expert.numel(), c.experts)), products)
                  : moe_ffn_reference(x, weight, expert, weights);
        torch::autograd::backward({out}, {random({c.tokens, c.width}, 9).to(device, backend.compute)});
        return std::vector<Tensor>{out, x.grad(), weight.grad(), up.grad, down.grad};
      };
      const auto got = run(true), want = run(false);
      for (std::size_t i = 0; i < got.size(); ++i)
        EXPECT_LT(relative(got[i].to(at::kFloat), want[i].to(at::kFloat)), backend.tolerance)
            << c.name << " result " << i;
    }
}

// Products that take every row have no tables, but hand out their tiles as all do.
TEST(AllRows, HasASchedulerAtRest) {
  for (const Backend& backend : backends()) {
    const Tensor x = random({256, 8}, 1).to(backend.device, backend.compute);
    const DispatchPlan plan = all_rows(x, 128);
    EXPECT_FALSE(plan.tile_expert.defined() || plan.offset_E1.defined());
    ASSERT_TRUE(plan.scheduler.defined() && plan.scheduler.device() == x.device());
    EXPECT_TRUE(at::equal(plan.scheduler.cpu(), at::zeros({2}, at::kInt)));
  }
}

// Where there is one: on GPUs with our products, in bf16.
TEST(FusedMlp, MatchesPlainProducts) {
  for (const Backend& backend : backends())
    for (const ActivationKind kind : {ActivationKind::kRelu2, ActivationKind::kSwiglu})
      for (const int hidden : {136, 384}) {
        const Tensor given = random({384, 72}, 1).to(backend.device, backend.compute);
        if (!has_fused_mlp(given, kind)) continue;
        const auto run = [&](bool fused) {
          ParameterStore store;
          Parameter& up = store.add("up", ParameterKind::kMlp, {is_gated(kind) ? 2 * hidden : hidden, 72},
                                    {Init::Kind::kNormal, 0.3});
          Parameter& down = store.add("down", ParameterKind::kMlp, {72, hidden}, {Init::Kind::kNormal, 0.3});
          store.allocate(backend.device, backend.compute, store.contiguous());
          store.initialize(5);
          const Tensor x = given.clone().requires_grad_(true);
          const Tensor out = fused ? fused_mlp(x, up, down, kind)
                                   : at::mm(activation_reference(at::mm(x, attach(up).t()), kind), attach(down).t());
          torch::autograd::backward({out}, {random({384, 72}, 9).to(backend.device, backend.compute)});
          return std::vector<Tensor>{out, x.grad(), up.grad, down.grad};
        };
        const auto got = run(true), want = run(false);
        for (std::size_t i = 0; i < got.size(); ++i)
          EXPECT_LT(relative(got[i], want[i]), backend.tolerance) << hidden << " hidden units, result " << i;
      }
}

TEST(MoeFfn, EmptyExpertsLeaveTheirGradientBitwise) {
  for (const at::Device device : devices()) {
    ParameterStore store;
    Parameter& up = store.add("up", ParameterKind::kExpert, {4, 16, 16}, {Init::Kind::kNormal, 0.3});
    Parameter& down = store.add("down", ParameterKind::kExpert, {4, 16, 16}, {Init::Kind::kNormal, 0.3});
    store.allocate(device, at::kFloat, store.contiguous());
    store.initialize(5);
    up.grad.fill_(0.37);
    down.grad.fill_(-1.25);
    const Tensor x = random({8, 16}, 1).to(device).requires_grad_(true),
                 weight = at::ones({8, 1}, device).requires_grad_(true);
    const Tensor expert = at::full({8, 1}, 2, at::TensorOptions().dtype(at::kInt).device(device));
    const GroupedProducts& products = GroupedProducts::choose(device, at::kFloat);
    const Tensor out = moe_ffn(x, weight, {&up, &down, ActivationKind::kRelu2},
                               dispatch(expert, 4, products.alignment(expert.numel(), 4)), products);
    torch::autograd::backward({out}, {at::ones_like(out)});
    for (const int e : {0, 1, 3}) {
      EXPECT_TRUE(up.grad[e].eq(0.37).all().item<bool>());
      EXPECT_TRUE(down.grad[e].eq(-1.25).all().item<bool>());
    }
    EXPECT_FALSE(up.grad[2].eq(0.37).all().item<bool>());
  }
}

TEST(MoeFfn, PermutedExpertsGiveTheSameOutput) {
  const ExpertCase c{"", 40, 16, 24, 4, 2, ActivationKind::kRelu2, Skew::kRandom};
  const Tensor expert = choices(c), order = at::tensor(std::vector<std::int64_t>{2, 0, 3, 1});
  ParameterStore store;
  Parameter& up = store.add("up", ParameterKind::kExpert, {4, 24, 16}, {Init::Kind::kNormal, 0.3});
  Parameter& down = store.add("down", ParameterKind::kExpert, {4, 16, 24}, {Init::Kind::kNormal, 0.3});
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(5);
  at::NoGradGuard no_grad;
  const Tensor x = random({40, 16}, 1), weight = random({40, 2}, 2);
  const auto run = [&](const Tensor& chosen) {
    return moe_ffn(x, weight, {&up, &down, c.kind}, dispatch(chosen, 4), GroupedProducts::choose(at::kCPU, at::kFloat));
  };
  const Tensor before = run(expert);
  for (Parameter* p : {&up, &down}) p->master.copy_(p->master.index_select(0, order).clone());
  const Tensor inverse = order.argsort(static_cast<std::int64_t>(0), false).to(at::kInt);
  EXPECT_LT(relative(run(inverse.index_select(0, expert.flatten().to(at::kLong)).view_as(expert).contiguous()), before),
            1e-6);
}

}  // namespace
}  // namespace switchyard::ops
