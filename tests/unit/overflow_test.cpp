// What assignments without a routed expert contribute (moe_spec E8, E10): values, gradients and equivalences.
#include "ops/overflow.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>

#include "ops/moe_ffn.h"

namespace switchyard::ops {
namespace {

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble);
}

double difference(const Tensor& a, const Tensor& b) {
  return (a - b).abs().max().item<double>() / (b.abs().max().item<double>() + 1e-12);
}

// Central differences of <op(inputs), fixed> against autograd, in fp64, for every input.
void expect_gradients(const std::function<Tensor(const std::vector<Tensor>&)>& op, std::vector<Tensor> inputs) {
  for (Tensor& t : inputs) t = t.detach().clone().requires_grad_(true);
  const Tensor out = op(inputs), fixed = random(out.sizes().vec(), 99);
  torch::autograd::backward({(out * fixed).sum()}, {});
  at::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Tensor numeric = at::zeros_like(inputs[i]), flat = inputs[i].detach().view(-1);
    for (std::int64_t j = 0; j < flat.numel(); ++j) {
      const double value = flat[j].item<double>();
      flat[j] = value + kStep;
      const double up = (op(inputs) * fixed).sum().item<double>();
      flat[j] = value - kStep;
      const double down = (op(inputs) * fixed).sum().item<double>();
      flat[j] = value;
      numeric.view(-1)[j] = (up - down) / (2 * kStep);
    }
    ASSERT_TRUE(inputs[i].grad().defined()) << "input " << i;
    EXPECT_LT(difference(inputs[i].grad(), numeric), 1e-7) << "input " << i;
  }
}

Tensor ints(std::vector<int> values, std::int64_t top_k) { return at::tensor(values, at::kInt).view({-1, top_k}); }

TEST(Overflow, WithoutCapacitiesNoAssignmentGoesToTheNullExpert) {
  const Tensor chosen = ints({0, 5, 3, 1}, 2);  // 4 routed experts, then zero experts
  EXPECT_TRUE(at::equal(computed_experts({chosen, Tensor(), Tensor()}, 4, /*null_index=*/4), ints({0, -1, 3, 1}, 2)));
  const Tensor dropped = ints({1, 0, 0, 0}, 2).to(at::kBool);
  EXPECT_TRUE(at::equal(computed_experts({chosen, dropped, Tensor()}, 4, /*null_index=*/4), ints({4, -1, 3, 1}, 2)));
}

TEST(Overflow, GradientsAgainstFiniteDifferences) {
  const Tensor weight = random({5, 3}, 2);
  const Tensor dropped = ints({0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1}, 3).to(at::kBool);
  expect_gradients([&](const auto& in) { return renormalized_after_drop(in[0], dropped); }, {weight.abs()});

  Rerouted rerouted;
  rerouted.moved_TK = ints({0, 0, 1, 0, 0, 0, 1, 0}, 2).to(at::kBool);
  rerouted.placement.expert_TK = ints({0, 1, 3, -1, 2, -1, 1, 2}, 2);
  const Tensor chosen = ints({0, 1, 0, 1, 2, 0, 0, 2}, 2);
  for (const bool normalize : {false, true})
    expect_gradients([&](const auto& in) { return rerouted_weight(in[0], in[1], chosen, rerouted, normalize, 1.5); },
                     {random({4, 2}, 5).abs(), random({4, 4}, 6).abs() + 0.1});
}

TEST(Overflow, ReroutedWeightsSumToTheFactorAndOthersStayBitwise) {
  const Tensor score = random({64, 8}, 1).abs() + 0.01;
  const auto best = score.topk(3, 1);
  const Tensor chosen = std::get<1>(best).to(at::kInt).contiguous();
  const Tensor weight = (std::get<0>(best) / std::get<0>(best).sum(1, true)) * 2.5;
  const Rerouted rerouted = reroute(place(chosen, 8, at::full({1}, 20, at::kInt)), score, {}, 1);
  ASSERT_TRUE(rerouted.moved_TK.any().item<bool>());
  ASSERT_TRUE(rerouted.placement.dropped_TK.any().item<bool>());
  const Tensor got = rerouted_weight(weight, score, chosen, rerouted, true, 2.5);
  EXPECT_LT(difference(got.sum(1), at::full({64}, 2.5, at::kDouble)), 1e-12);
  const Tensor stayed = rerouted.moved_TK.any(1).logical_not();
  EXPECT_TRUE(at::equal(got.index({stayed}), weight.index({stayed})));
  const Tensor raw = rerouted_weight(weight, score, chosen, rerouted, false, 2.5);
  const Tensor moved = rerouted.moved_TK;
  const Tensor own = score.gather(1, rerouted.placement.expert_TK.clamp_min(0).to(at::kLong)) * 2.5;
  EXPECT_TRUE(at::equal(raw.index({moved}), own.index({moved})));
}

TEST(Overflow, SurvivorsCarryTheSumOfAll) {
  const Tensor weight = at::tensor(std::vector<double>{1, 2, 3, 1, 2, 3, 1, 2, 3, 1, -1, 5}).view({4, 3});
  const Tensor dropped = ints({0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1}, 3).to(at::kBool);
  const Tensor got = renormalized_after_drop(weight, dropped);
  EXPECT_TRUE(at::equal(got[0], weight[0])) << "nothing dropped";
  EXPECT_NEAR(got[1][1].item<double>() + got[1][2].item<double>(), 6, 1e-12);
  EXPECT_TRUE(at::equal(got[2], weight[2])) << "nothing survived";
  EXPECT_TRUE(at::equal(got[3], weight[3])) << "survivors sum to 0";
}

TEST(Overflow, ComputedExpertsLeaveOutZeroExpertsAndSendDropsToTheNullExpert) {
  const Placement placement{ints({0, -1, 4, 5, 3, -1}, 2), ints({0, 1, 0, 0, 0, 0}, 2).to(at::kBool), {}};
  EXPECT_TRUE(at::equal(computed_experts(placement, 4), ints({0, -1, -1, -1, 3, -1}, 2)));
  EXPECT_TRUE(at::equal(computed_experts(placement, 4, 4), ints({0, 4, -1, -1, 3, -1}, 2)));
}

// Dropped rows: no output, no gradient to the expert or the weight; with a null expert in the stacks they are that
// expert's rows, whatever its load.
TEST(Overflow, DroppedRowsVanishOrGoToTheExtraExpert) {
  at::manual_seed(3);
  const int experts = 4;
  const Tensor chosen =
      at::rand({40, experts}).argsort(static_cast<std::int64_t>(1), false).narrow(1, 0, 2).to(at::kInt).contiguous();
  const Placement placement = place(chosen, experts, at::full({1}, 7, at::kInt));
  for (const int null_index : {-1, experts}) {
    ParameterStore store;
    Parameter& up = store.add("up", ParameterKind::kExpert, {experts + 1, 24, 16}, {Init::Kind::kNormal, 0.3});
    Parameter& down = store.add("down", ParameterKind::kExpert, {experts + 1, 16, 24}, {Init::Kind::kNormal, 0.3});
    store.allocate(at::kCPU, at::kFloat, store.contiguous());
    store.initialize(5);
    const Tensor x = random({40, 16}, 1).to(at::kFloat),
                 weight = random({40, 2}, 2).to(at::kFloat).requires_grad_(true);
    const Tensor computed = computed_experts(placement, experts, null_index);
    const DispatchPlan plan = dispatch(computed, experts + 1);
    EXPECT_EQ(plan.count_E[experts].item<int>(), null_index < 0 ? 0 : placement.dropped_TK.sum().item<int>());
    const ExpertWeights weights{&up, &down, ActivationKind::kRelu2};
    const Tensor out = moe_ffn(x, weight, weights, plan, GroupedProducts::choose(at::kCPU, at::kFloat));
    torch::autograd::backward({out}, {random({40, 16}, 9).to(at::kFloat)});
    const Tensor zero_weight = weight.detach().masked_fill(placement.dropped_TK, 0);
    const Tensor want = null_index < 0 ? moe_ffn_reference(x, zero_weight, chosen, weights)
                                       : moe_ffn_reference(x, weight.detach(),
                                                           chosen.masked_fill(placement.dropped_TK, experts), weights);
    EXPECT_LT(difference(out.detach(), want.detach()), 1e-5);
    EXPECT_EQ(up.grad[experts].ne(0).any().item<bool>(), null_index >= 0);
    EXPECT_EQ(weight.grad().index({placement.dropped_TK}).ne(0).any().item<bool>(), null_index >= 0);
  }
}

}  // namespace
}  // namespace switchyard::ops
