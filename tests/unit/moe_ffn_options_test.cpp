// Dropout of hidden units (moe_spec E13) and recomputing them in backward (T4), as options of moe_ffn.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernels/dropout.h"
#include "ops/moe_ffn.h"

namespace switchyard::ops {
namespace {

constexpr int kExperts = 4, kWidth = 16;

std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) list.push_back(at::Device(at::kCUDA, 0));
  if (list.size() == 1 && std::getenv("SWITCHYARD_PORTABLE_KERNELS")) std::puts("no GPU here");  // the test is skipped
  return list;
}

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(at::kFloat);
}

double relative(const Tensor& a, const Tensor& b) {
  const Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  return ((x - y).norm() / (y.norm() + 1e-12)).item<double>();
}

HiddenDropout draws(double p, std::vector<std::int64_t> windows, at::Device device) {
  return {p,
          3,
          {77, at::full({1}, 5, at::TensorOptions(at::kLong).device(device)), at::tensor(windows, at::kLong).to(device),
           12}};
}

struct Layer {
  ParameterStore store;
  Parameter *up, *down;
  ActivationKind kind;
  at::Device device;

  Layer(ActivationKind activation, int hidden, at::Device on, at::ScalarType compute = at::kFloat)
      : kind(activation), device(on) {
    const std::int64_t rows = is_gated(kind) ? 2 * hidden : hidden;
    up = &store.add("up", ParameterKind::kExpert, {kExperts, rows, kWidth}, {Init::Kind::kNormal, 0.3});
    down = &store.add("down", ParameterKind::kExpert, {kExperts, kWidth, hidden}, {Init::Kind::kNormal, 0.3});
    store.allocate(device, compute, store.contiguous());
    store.initialize(5);
  }
  ExpertWeights weights() const { return {up, down, kind}; }
};

// 36 tokens in 3 sequences; a fifth of the assignments dropped.
Tensor choices(at::Device device) {
  at::manual_seed(17);
  Tensor expert =
      at::rand({36, kExperts}).argsort(static_cast<std::int64_t>(1), false).narrow(1, 0, 2).to(at::kInt).contiguous();
  expert.view(-1).slice(0, 0, 72, 5).fill_(-1);
  return expert.to(device);
}

// Output and every gradient.
template <class Run>
std::vector<Tensor> outcome(const Layer& layer, Run run) {
  layer.store.flat_grad.detach().zero_();
  const at::ScalarType compute = layer.up->compute.scalar_type();
  const Tensor x = random({36, kWidth}, 1).to(layer.device, compute).requires_grad_(true);
  const Tensor weight = random({36, 2}, 2).to(layer.device).requires_grad_(true);
  const Tensor out = run(x, weight);
  torch::autograd::backward({out}, {random({36, kWidth}, 9).to(layer.device, compute)});
  return {out.detach(), x.grad(), weight.grad(), layer.up->grad.clone(), layer.down->grad.clone()};
}

std::vector<Tensor> with(const Layer& layer, const MoeFfnOptions& options) {
  const GroupedProducts& products = GroupedProducts::choose(layer.device, layer.up->compute.scalar_type());
  const DispatchPlan plan = dispatch(choices(layer.device), kExperts, products.alignment(72, kExperts));
  return outcome(layer, [&](const Tensor& x, const Tensor& weight) {
    return moe_ffn(x, weight, layer.weights(), plan, products, options);
  });
}

const std::vector<ActivationKind> kKinds = {ActivationKind::kRelu2, ActivationKind::kGelu, ActivationKind::kSwiglu,
                                            ActivationKind::kGeglu};

TEST(HiddenDropout, MatchesTheLoopOverExpertsWithTheSameMask) {
  for (const at::Device device : devices())
    for (const ActivationKind kind : kKinds)
      for (const int hidden : {24, 30})
        for (const double p : {0.0, 0.3, 0.9}) {
          if (device.is_cuda() && hidden % 8) continue;
          const Layer layer(kind, hidden, device);
          const HiddenDropout dropout = draws(p, {4, 900, 17}, device);
          const auto got = with(layer, {false, dropout});
          const auto want = outcome(layer, [&](const Tensor& x, const Tensor& weight) {
            return moe_ffn_reference(x, weight, choices(device), layer.weights(), {false, dropout, {}});
          });
          for (std::size_t i = 0; i < got.size(); ++i)
            EXPECT_LT(relative(got[i], want[i]), 3e-5) << p << " result " << i;
        }
}

// The definition, drawn here number by number.
TEST(HiddenDropout, TheMaskIsThatOfTheDefinition) {
  for (const at::Device device : devices()) {
    const HiddenDropout dropout = draws(0.3, {4, 900, 17}, device);
    const Tensor rows = at::ones({72, 40}, device),
                 in_use = at::full({1}, 70, at::TensorOptions(at::kInt).device(device));
    drop_hidden_(rows, assignment_ids(dropout.key, 36, 2).view(-1), in_use, dropout);
    const Tensor mask = rows.cpu();
    EXPECT_TRUE(mask.narrow(0, 70, 2).eq(1).all().item<bool>()) << "rows that are not in use";
    const std::vector<std::int64_t> windows = {4, 900, 17};
    double kept = 0;
    for (int row = 0; row < 70; ++row)
      for (int n = 0; n < 40; ++n) {
        const int t = row / 2, k = row % 2;
        const std::int64_t id = (windows[t / 12] * 12 + t % 12) * 2 + k;
        const Words4 w = philox(kernels::dropout_key(77, 5, 3), id, n / 4);
        const std::uint32_t word[4] = {w.x, w.y, w.z, w.w};
        const bool keep = to_uniform(word[n % 4]) >= 0.3f;
        ASSERT_FLOAT_EQ(mask[row][n].item<float>(), keep ? 1 / 0.7f : 0.0f) << t << " " << k << " " << n;
        kept += keep;
      }
    EXPECT_NEAR(kept / (70 * 40), 0.7, 4 * std::sqrt(0.21 / (70 * 40)));
  }
}

TEST(HiddenDropout, DoesNotDependOnTheOrderOfRowsOrOnWhoHoldsTheSequence) {
  const Layer layer(ActivationKind::kRelu2, 24, at::kCPU);
  const GroupedProducts& products = GroupedProducts::choose(at::kCPU, at::kFloat);
  const Tensor x = random({36, kWidth}, 1), weight = random({36, 2}, 2), expert = choices(at::kCPU);
  at::NoGradGuard no_grad;
  const auto run = [&](const Tensor& tokens, std::vector<std::int64_t> windows, int alignment) {
    const Tensor own = expert.index_select(0, tokens);
    return moe_ffn(x.index_select(0, tokens), weight.index_select(0, tokens), layer.weights(),
                   dispatch(own, kExperts, alignment), products, {false, draws(0.5, windows, at::kCPU)});
  };
  const Tensor all = at::arange(36, at::kLong), base = run(all, {4, 900, 17}, 1);
  EXPECT_LT(relative(run(all, {4, 900, 17}, 8), base), 1e-6) << "rows with padding between them";
  EXPECT_LT(relative(run(all.narrow(0, 24, 12), {17}, 1), base.narrow(0, 24, 12)), 1e-6) << "one sequence alone";
  EXPECT_LT(relative(run(at::cat({all.narrow(0, 12, 24), all.narrow(0, 0, 12)}), {900, 17, 4}, 1).narrow(0, 24, 12),
                     base.narrow(0, 0, 12)),
            1e-6)
      << "sequences in another order";
  EXPECT_GT(relative(run(all, {5, 901, 18}, 1), base), 0.1) << "other windows, other masks";
}

TEST(HiddenDropout, OffIsBitwiseWithout) {
  for (const at::Device device : devices()) {
    const Layer layer(ActivationKind::kRelu2, 24, device);
    const auto off = with(layer, {}), zero = with(layer, {false, draws(0, {1, 2, 3}, device)});
    for (std::size_t i = 0; i < off.size(); ++i) EXPECT_TRUE(at::equal(off[i], zero[i]));
  }
}

TEST(Recompute, GivesBitwiseTheSameGradients) {
  for (const at::Device device : devices())
    for (const ActivationKind kind : kKinds)
      for (const double p : {0.0, 0.4})
        for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
          if (device.is_cpu() && compute == at::kBFloat16) continue;
          const Layer layer(kind, 24, device, compute);
          const HiddenDropout dropout = draws(p, {4, 900, 17}, device);
          const auto kept = with(layer, {false, dropout}), again = with(layer, {true, dropout});
          for (std::size_t i = 0; i < kept.size(); ++i)
            EXPECT_TRUE(at::equal(kept[i], again[i])) << p << " result " << i;
        }
}

}  // namespace
}  // namespace switchyard::ops
