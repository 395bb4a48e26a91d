// INL dynamics (moe_spec M8): against plain ATen, finite differences in fp64, and what the dynamics promise.
#include "ops/inl.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

namespace switchyard::ops {
namespace {

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble);
}

struct InlCase {
  const char* name;
  std::int64_t tokens, width, hidden;  // hidden 0: constant coefficients
  bool moving;                         // v given
  InlRule rule;
  double mu = 0.3;
};

InlRule rule(double beta_max = 2, double velocity_max = 10, std::optional<double> mu_min = {},
             std::optional<double> mu_max = {}) {
  InlRule r;
  r.beta_max = beta_max, r.velocity_max = velocity_max, r.mu_min = mu_min, r.mu_max = mu_max;
  return r;
}

const std::vector<InlCase> kCases = {
    {"adaptive", 33, 24, 16, true, rule()},
    {"first block, v = 0", 33, 24, 16, false, rule()},
    {"one token, odd width", 1, 7, 5, true, rule()},
    {"many tokens", 1000, 16, 8, true, rule()},
    {"velocity clamped here and there", 64, 24, 16, true, rule(2, 0.5)},
    {"beta clamped here and there", 64, 24, 16, true, rule(0.7)},
    {"mu inside its bounds", 16, 24, 16, true, rule(2, 10, 0.0, 2.0)},
    {"constant coefficients", 33, 24, 0, true, rule()},
    {"constant coefficients, v = 0, clamped", 33, 24, 0, false, rule(2, 0.1)},
};

// Parameters of one module, drawn wide so that every branch is met.
struct Weights {
  explicit Weights(const InlCase& c, at::ScalarType type = at::kDouble, at::Device device = at::kCPU) {
    const Init wide{Init::Kind::kNormal, 0.5};
    mu = &store.add("mu", ParameterKind::kInlVector, {c.width}, {Init::Kind::kConstant, c.mu});
    if (c.hidden) {
      controller.in = &store.add("in", ParameterKind::kInlController, {c.hidden, 2 * c.width}, wide);
      controller.in_bias = &store.add("in_bias", ParameterKind::kInlVector, {c.hidden}, wide);
      controller.out = &store.add("out", ParameterKind::kInlController, {3 * c.width, c.hidden}, wide);
      controller.out_bias = &store.add("out_bias", ParameterKind::kInlVector, {3 * c.width}, wide);
    }
    store.allocate(device, type, store.contiguous(), type);
    store.initialize(11);
  }
  ParameterStore store;
  const Parameter* mu;
  InlController controller;
};

struct Input {
  Input(const InlCase& c, at::ScalarType type = at::kDouble, at::Device device = at::kCPU)
      : h(random({c.tokens, c.width}, 1).to(device, type).requires_grad_(true)) {
    if (c.moving) v = random({c.tokens, c.width}, 2).to(device, type).requires_grad_(true);
  }
  Tensor h, v;
};

// Both outputs weighted by fixed random numbers.
Tensor loss_of(const InlState& out) {
  const auto fixed = [](const Tensor& t, std::uint64_t seed) {
    return (t * random(t.sizes().vec(), seed).to(t.device(), t.scalar_type())).sum();
  };
  return fixed(out.h_TD, 5) + fixed(out.v_TD, 6);
}

using Op = InlState (*)(const InlState&, const Parameter&, const InlController&, const InlRule&);

std::vector<Tensor> results(Op op, const InlCase& c, at::ScalarType type, at::Device device) {
  Weights weights(c, type, device);
  const Input in(c, type, device);
  const InlState out = op({in.h, in.v}, *weights.mu, weights.controller, c.rule);
  torch::autograd::backward({loss_of(out)}, {});
  std::vector<Tensor> list{out.h_TD.detach(), out.v_TD.detach(), in.h.grad()};
  if (c.moving) list.push_back(in.v.grad());
  for (const auto& parameter : weights.store.all()) list.push_back(parameter->grad.clone());
  return list;
}

TEST(Inl, MatchesReferenceForwardAndBackward) {
  std::vector<std::pair<at::Device, at::ScalarType>> places = {{at::kCPU, at::kDouble}, {at::kCPU, at::kFloat}};
  if (at::hasCUDA()) places.emplace_back(at::Device(at::kCUDA, 0), at::kFloat);
  for (const auto& [device, type] : places)
    for (const InlCase& c : kCases) {
      const auto got = results(inl, c, type, device), want = results(inl_reference, c, type, device);
      ASSERT_EQ(got.size(), want.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        const Tensor a = got[i].to(at::kCPU, at::kDouble), b = want[i].to(at::kCPU, at::kDouble);
        EXPECT_LT(((a - b).norm() / (b.norm() + 1)).item<double>(), type == at::kDouble ? 1e-12 : 1e-5)
            << c.name << " result " << i;
      }
    }
}

TEST(Inl, GradientsAreFiniteDifferences) {
  for (const InlCase& c : kCases) {
    if (c.tokens > 100) continue;
    Weights weights(c);
    const Input in(c);
    const auto loss = [&] { return loss_of(inl({in.h, in.v}, *weights.mu, weights.controller, c.rule)); };
    torch::autograd::backward({loss()}, {});
    std::vector<std::pair<Tensor, Tensor>> pairs{{in.h, in.h.grad()}};
    if (c.moving) pairs.emplace_back(in.v, in.v.grad());
    for (const auto& parameter : weights.store.all()) pairs.emplace_back(parameter->master, parameter->grad.clone());
    const at::NoGradGuard no_grad;
    for (std::size_t which = 0; which < pairs.size(); ++which) {
      const Tensor values = pairs[which].first.detach().view(-1), gradient = pairs[which].second.reshape(-1);
      for (const std::int64_t i : {std::int64_t{0}, values.numel() / 2, values.numel() - 1}) {
        const double before = values[i].item<double>(), step = 1e-6;
        const auto at = [&](double value) {
          values[i].fill_(value);
          return loss().item<double>();
        };
        const double slope = (at(before + step) - at(before - step)) / (2 * step);
        values[i].fill_(before);
        EXPECT_NEAR(gradient[i].item<double>(), slope, 1e-6 * (1 + std::abs(slope)))
            << c.name << " tensor " << which << " element " << i;
      }
    }
  }
}

TEST(Inl, FixedPointsAndBounds) {
  const InlCase still{"", 9, 16, 0, false, rule()};
  Weights weights(still);
  InlRule r = still.rule;
  const Tensor h = random({9, 16}, 1);
  r.beta = 0;
  EXPECT_TRUE(at::equal(inl({h, Tensor()}, *weights.mu, {}, r).h_TD, h)) << "beta = 0, v = 0";
  const Tensor mu = at::full({9, 16}, 0.3, at::kDouble);
  weights.mu->master.copy_(mu[0]);
  const InlState kept = inl({mu, Tensor()}, *weights.mu, {}, still.rule);
  EXPECT_TRUE(at::equal(kept.h_TD, mu)) << "h = mu, v = 0";
  EXPECT_EQ(kept.v_TD.abs().max().item<double>(), 0);
  const InlState fast = inl({100 * h, 100 * h}, *weights.mu, {}, still.rule);
  EXPECT_LE(fast.v_TD.abs().max().item<double>(), still.rule.velocity_max);
  r.beta = 1000;  // stands for a controller gone wild: beta stays at beta_max
  r.velocity_max = 1e9;
  EXPECT_TRUE(at::allclose(inl({h, Tensor()}, *weights.mu, {}, r).v_TD, -2 * (h - 0.3)));
}

// Stable iff 0 <= dt gamma beta <= 2 (1 + alpha) and alpha <= 1: the corners of what a controller can give, with the
// velocity's clamp out of reach.
TEST(Inl, FrozenCoefficientsStayBoundedAtTheCorners) {
  const InlCase c{"", 4, 8, 0, false, rule()};
  Weights weights(c);
  for (const double alpha : {0.0, 0.5, 0.999})
    for (const double gate : {0.0, 1.0})
      for (const double beta : {0.0, 2.0})
        for (const double dt : {0.1, 1.0}) {  // dt beta_max = 2: the limit of what the config lets pass
          InlRule r = rule(2, 1e6);
          r.alpha = alpha, r.gate = gate, r.beta = beta, r.dt = dt;
          InlState state{random({4, 8}, 3), Tensor()};
          for (int i = 0; i < 1000; ++i) state = inl(state, *weights.mu, {}, r);
          EXPECT_LT(state.h_TD.abs().max().item<double>(), 1e3)
              << "alpha " << alpha << " gate " << gate << " beta " << beta << " dt " << dt;
        }
}

TEST(Inl, MuBeyondItsBoundsTakesOnlyAGradientThatLeadsBack) {
  struct Case {
    const char* name;
    double mu;
    int sign;  // of h - mu's gradient: +1 asks mu down
    bool moves;
  };
  for (const Case& c : {Case{"below, asked up", -1, -1, true}, Case{"below, asked further down", -1, 1, false},
                        Case{"above, asked down", 3, 1, true}, Case{"above, asked further up", 3, -1, false},
                        Case{"inside", 1, 1, true}}) {
    const InlCase shape{"", 5, 8, 0, false, rule(2, 10, 0.0, 2.0), c.mu};
    Weights weights(shape);
    const Input in(shape);
    const InlState out = inl({in.h, Tensor()}, *weights.mu, {}, shape.rule);
    torch::autograd::backward({out.v_TD}, {at::full({5, 8}, double(c.sign), at::kDouble)});
    EXPECT_EQ(weights.mu->grad.ne(0).all().item<bool>(), c.moves) << c.name;
  }
}

TEST(Inl, SharedParametersSumTheirUsesAndAreReadyOnce) {
  const InlCase c{"", 12, 16, 8, true, rule()};
  const auto chain = [&](Op op, int uses) {
    Weights weights(c);
    int ready = 0;
    weights.store.find("out")->on_ready = [&](const Parameter&) { ++ready; };
    const Input in(c);
    InlState state{in.h, in.v};
    for (int i = 0; i < uses; ++i) state = op(state, *weights.mu, weights.controller, c.rule);
    torch::autograd::backward({loss_of(state)}, {});
    EXPECT_EQ(ready, 1);
    return weights.store.flat_grad;
  };
  EXPECT_TRUE(at::allclose(chain(inl, 4), chain(inl_reference, 4), 1e-12, 1e-12));
}

}  // namespace
}  // namespace switchyard::ops
