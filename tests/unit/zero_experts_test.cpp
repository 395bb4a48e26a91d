// Experts without products against plain ATen, forward and backward, and inside moe_ffn (moe_spec E8, E10).
#include "ops/zero_experts.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/moe_ffn.h"

namespace switchyard::ops {
namespace {

std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) list.push_back(at::Device(at::kCUDA, 0));
  return list;
}

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble);
}

double difference(const Tensor& a, const Tensor& b) {
  return a.numel() == 0 ? 0 : (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// Columns: 4 experts with products, then `zero` that give 0, `copy` and `constant` ones.
struct Case {
  const char* name;
  int tokens, width, top_k, zero, copy, constant;
  int of_dropped;  // kNoZeroExpert: nothing is dropped
  int certain;     // the column that every assignment has; -1: drawn
};
const std::vector<Case> kCases = {
    {"no tokens", 0, 8, 2, 1, 1, 1, kernels::kNoZeroExpert, -1},
    {"one token, a copy", 1, 8, 1, 0, 1, 0, kernels::kNoZeroExpert, 4},
    {"one token, a constant", 1, 8, 1, 0, 0, 1, kernels::kNoZeroExpert, 4},
    {"copies", 37, 24, 2, 1, 2, 0, kernels::kNoZeroExpert, -1},
    {"constants", 37, 24, 3, 0, 0, 3, kernels::kNoZeroExpert, -1},
    {"all kinds", 130, 40, 4, 2, 2, 2, kernels::kNoZeroExpert, -1},
    {"dropped are copied", 70, 16, 2, 0, 0, 0, kernels::kCopy, -1},
    {"dropped go to a constant", 70, 16, 2, 0, 0, 0, kernels::kConstant, -1},
    {"dropped go to the last constant", 70, 16, 8, 1, 1, 1, kernels::kConstant + 1, -1},
    {"none is chosen", 33, 16, 2, 0, 1, 1, kernels::kNoZeroExpert, 0},
    {"every assignment to one constant", 33, 264, 4, 0, 0, 2, kernels::kNoZeroExpert, 5},
};

struct Material {
  ZeroExperts experts;
  Tensor x, dy, weight;

  Material(const Case& c, at::Device device, at::ScalarType type) {
    at::manual_seed(3);
    const auto ints = at::TensorOptions().dtype(at::kInt);
    const int columns = 4 + c.zero + c.copy + c.constant;
    Tensor expert = c.certain < 0 ? at::randint(columns, {c.tokens, c.top_k}, ints)
                                  : at::full({c.tokens, c.top_k}, c.certain, ints);
    experts.first_copy = 4 + c.zero, experts.first_constant = experts.first_copy + c.copy, experts.end = columns;
    experts.of_dropped = c.of_dropped;
    if (c.of_dropped != kernels::kNoZeroExpert) {
      const Tensor dropped = at::rand({c.tokens, c.top_k}).lt(0.4).logical_and(expert.lt(4));
      expert = expert.masked_fill(dropped, -1);
      experts.dropped_TK = dropped.to(device);
    }
    experts.expert_TK = expert.contiguous().to(device);
    const int constants = std::max(c.constant, c.of_dropped - kernels::kConstant + 1);
    const auto on = [&](const Tensor& t) { return t.to(type).to(device).requires_grad_(true); };
    if (constants > 0)
      experts.map_J2D = on(random({constants, 2, c.width}, 4)), experts.vector_JD = on(random({constants, c.width}, 5));
    x = on(random({c.tokens, c.width}, 1)), weight = on(random({c.tokens, c.top_k}, 2));
    dy = random({c.tokens, c.width}, 6).to(type).to(device);
  }
  std::vector<Tensor> inputs() const {
    std::vector<Tensor> all{x, weight};
    if (experts.constants() > 0) all.push_back(experts.map_J2D), all.push_back(experts.vector_JD);
    return all;
  }
};

// In fp64 on a CPU, in fp32 on both.
TEST(ZeroExperts, MatchTheReferenceForwardAndBackward) {
  for (const at::Device device : devices())
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      if (device.is_cuda() && type == at::kDouble) continue;
      const double bound = type == at::kDouble ? 1e-12 : 2e-4;
      for (const Case& c : kCases) {
        SCOPED_TRACE(c.name);
        const Material m(c, device, type);
        const Tensor before = random({c.tokens, c.width}, 7).to(type).to(device);
        Tensor out = before.clone();
        add_zero_experts_(out, m.x.detach(), m.weight.detach(), m.experts);
        const Tensor added = zero_experts_reference(m.x, m.weight, m.experts);
        EXPECT_LT(difference(out, before + added.detach()), bound);

        std::vector<Tensor> want = torch::autograd::grad({added}, m.inputs(), {m.dy}, std::nullopt, false, true);
        const Tensor d_weight_before = random({c.tokens, c.top_k}, 8).to(type).to(device);
        Tensor d_x = before.clone(), d_weight = d_weight_before.clone();
        const auto [d_map, d_vector] =
            zero_experts_backward_(d_x, d_weight, m.x.detach(), m.dy, m.weight.detach(), m.experts);
        if (want[0].defined()) { EXPECT_LT(difference(d_x, before + want[0]), bound); }
        // The gradient of a weight is written where its assignment is to such an expert, and left elsewhere.
        const Tensor& e = m.experts.expert_TK;
        Tensor own = e.ge(m.experts.first_copy);
        if (m.experts.dropped_TK.defined()) own = own.logical_or(m.experts.dropped_TK);
        EXPECT_LT(difference(d_weight, at::where(own, want[1], d_weight_before)), bound);
        if (m.experts.constants() == 0) continue;
        EXPECT_LT(difference(d_map, want[2]), bound);
        EXPECT_LT(difference(d_vector, want[3]), bound);
      }
    }
}

TEST(ZeroExperts, NothingIsReadOfTokensThatChoseNone) {
  Case c{"", 40, 16, 2, 0, 1, 1, kernels::kNoZeroExpert, 0};
  Material m(c, at::kCPU, at::kFloat);
  m.experts.expert_TK[3][1] = 4, m.experts.expert_TK[9][0] = 5;
  Tensor x = at::full({40, 16}, NAN), out = at::zeros({40, 16});
  x[3].fill_(2), x[9].fill_(3);
  add_zero_experts_(out, x, m.weight.detach(), m.experts);
  EXPECT_TRUE(out.isfinite().all().item<bool>());
  EXPECT_EQ(out.ne(0).any(1).sum().item<int>(), 2);
}

// One sum with the experts that have products; the gradient of x and of the weights is that of both.
TEST(ZeroExperts, JoinTheSumOfMoeFfn) {
  const Case c{"", 60, 16, 3, 1, 1, 2, kernels::kNoZeroExpert, -1};
  ParameterStore store;
  Parameter& up = store.add("up", ParameterKind::kExpert, {4, 24, 16}, {Init::Kind::kNormal, 0.3});
  Parameter& down = store.add("down", ParameterKind::kExpert, {4, 16, 24}, {Init::Kind::kNormal, 0.3});
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(5);
  const ExpertWeights weights{&up, &down, ActivationKind::kRelu2};
  const auto& products = GroupedProducts::choose(at::kCPU, at::kFloat);
  std::vector<std::vector<Tensor>> results;
  for (const bool reference : {false, true}) {
    const Material m(c, at::kCPU, at::kFloat);
    store.zero_grad();
    const MoeFfnOptions options{false, {}, m.experts};
    const Tensor real = m.experts.expert_TK.masked_fill(m.experts.expert_TK.ge(4), -1);
    const Tensor out = reference ? moe_ffn_reference(m.x, m.weight, real, weights, options)
                                 : moe_ffn(m.x, m.weight, weights, dispatch(real, 4), products, options);
    std::vector<Tensor> result{out.detach()};
    torch::autograd::backward({out}, {m.dy});
    for (const Tensor& input : m.inputs()) result.push_back(input.grad());
    result.push_back(store.flat_grad.clone());
    results.push_back(result);
  }
  for (std::size_t i = 0; i < results[0].size(); ++i)
    EXPECT_LT(difference(results[0][i], results[1][i]), 2e-4) << "result " << i;
}

}  // namespace
}  // namespace switchyard::ops
