// Recomputation (moe_spec T4): every gradient bitwise that of a plain call, and nothing counted twice.
#include "ops/recompute.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/add_norm.h"
#include "ops/dropout.h"
#include "ops/linear.h"
#include "ops/moe_ffn.h"
#include "ops/router_scores.h"
#include "ops/value_gate.h"

namespace switchyard::ops {
namespace {

constexpr std::int64_t kTokens = 33, kWidth = 16, kBlocks = 3;

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(shape);
}

std::vector<Tensor> plain(const std::vector<Tensor>& inputs, const TensorFunction& run) { return run(inputs); }
using Runner = std::vector<Tensor> (*)(const std::vector<Tensor>&, const TensorFunction&);

struct Block {
  const char* name;
  double dropout;
  bool shared;  // one weight for every block
  bool first_reads_x0;
};
const std::vector<Block> kBlockCases = {
    {"blocks", 0, false, false},
    {"dropout", 0.3, false, false},
    {"a weight that every block uses", 0, true, false},
    {"x and x0 are one tensor in the first block", 0, false, true},
};

// A small sparse model whose blocks `runner` runs: in-place gradients (norm, value gate, router), integer outputs,
// undefined inputs, parameters used twice.
struct Model {
  explicit Model(const Block& c) : block(c) {
    const Init wide{Init::Kind::kNormal, 0.4};
    keep = &store.add("keep", ParameterKind::kKeepScalar, {kBlocks}, {Init::Kind::kConstant, 0.9});
    again = &store.add("again", ParameterKind::kAgainScalar, {kBlocks}, {Init::Kind::kConstant, 0.2});
    for (int i = 0; i < kBlocks; ++i) {
      const std::string n = std::to_string(i);
      gate.push_back(&store.add("gate" + n, ParameterKind::kValueGate, {kWidth, 8}, wide));
      router.push_back(&store.add("router" + n, ParameterKind::kRouter, {4, kWidth}, wide));
      up.push_back(&store.add("up" + n, ParameterKind::kExpert, {4, 24, kWidth}, wide));
      down.push_back(&store.add("down" + n, ParameterKind::kExpert, {4, kWidth, 24}, wide));
      linear.push_back(c.shared && i > 0 ? linear[0]
                                         : &store.add("linear" + n, ParameterKind::kMlp, {kWidth, kWidth}, wide));
    }
    store.allocate(at::kCPU, at::kFloat, store.contiguous());
    store.initialize(3);
    for (const auto& parameter : store.all())
      parameter->on_ready = [this](const Parameter& p) {
        ready.push_back(p.name);
        at_ready.push_back(p.grad.clone());
      };
    key = {7, at::zeros({1}, at::kLong), at::arange(3), 11};
  }

  // {x, delta, x0} -> {x', delta', x0, probabilities' sum, counts, nothing}
  std::vector<Tensor> run(int i, const std::vector<Tensor>& in) const {
    const Residual residual{keep, again, i, nullptr, 1e-6, router[static_cast<std::size_t>(i)]};
    const Normed n = add_norm(in[0], in[1], in[2], residual);
    const auto at = [i](const std::vector<const Parameter*>& list) { return list[static_cast<std::size_t>(i)]; };
    const RouterScores scores = router_scores(n.logits_TE, {}, {2, 11, 0, 0, Score::kSoftmax, true, true, 1.0});
    const GatedInput gated = value_gate(n.n_TD, *at(gate));
    const Tensor rows = moe_ffn(gated.n_TD, scores.weight_TK, {at(up), at(down), ActivationKind::kGelu},
                                dispatch(scores.expert_TK, 4), GroupedProducts::choose(at::kCPU, at::kFloat));
    const Tensor out = ops::linear(rows, *at(linear)) * at::sigmoid(gated.gate_TK);
    return {n.x_TD,          dropout(out, block.dropout, static_cast<std::uint64_t>(i), key),
            n.x0_TD,         scores.prob_sum_GE,
            scores.count_GE, Tensor()};
  }

  // Gradients of x, x0 and every parameter; the loss reads the probabilities of all blocks but the last.
  std::vector<Tensor> gradients(Runner runner) {
    const Tensor x = random({kTokens, kWidth}, 1).requires_grad_(true),
                 other = random({kTokens, kWidth}, 2).requires_grad_(true);
    const Tensor begin = x * 2, x0 = block.first_reads_x0 ? begin : other * 2;
    std::vector<Tensor> stream{begin, Tensor(), x0};
    Tensor loss = at::zeros({});
    for (int i = 0; i < kBlocks; ++i) {
      const std::vector<Tensor> out = runner(stream, [this, i](const std::vector<Tensor>& in) { return run(i, in); });
      EXPECT_EQ(out[4].scalar_type(), at::kInt);
      EXPECT_FALSE(out[4].requires_grad());
      EXPECT_FALSE(out[5].defined());
      if (i + 1 < kBlocks) loss = loss + (out[3] * random({1, 4}, 5)).sum();
      counts.push_back(out[4]);
      stream = {out[0], out[1], out[2]};
    }
    loss = loss + ((stream[0] + stream[1]) * random({kTokens, kWidth}, 6)).sum();
    torch::autograd::backward({loss}, {});
    std::vector<Tensor> list{loss.detach(), x.grad(), block.first_reads_x0 ? Tensor() : other.grad()};
    for (const auto& parameter : store.all()) list.push_back(parameter->grad);
    return list;
  }

  const Block block;
  ParameterStore store;
  const Parameter *keep, *again;
  std::vector<const Parameter*> gate, router, up, down, linear;
  DropoutKey key;
  std::vector<std::string> ready;
  std::vector<Tensor> at_ready, counts;
};

TEST(Recompute, GradientsAreBitwiseThoseOfAPlainCall) {
  for (const Block& c : kBlockCases) {
    Model kept(c), again(c);
    const auto want = kept.gradients(plain), got = again.gradients(recompute);
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (!want[i].defined()) continue;
      EXPECT_GT(want[i].abs().sum().item<float>(), 0) << c.name << " result " << i;
      EXPECT_TRUE(at::equal(want[i], got[i])) << c.name << " result " << i;
    }
    for (std::size_t i = 0; i < kept.counts.size(); ++i) EXPECT_TRUE(at::equal(kept.counts[i], again.counts[i]));
  }
}

// A bucket may leave as soon as its parameters are ready: each says so once, when nothing more will be added.
TEST(Recompute, EachParameterIsReadyOnceAndComplete) {
  for (const Block& c : kBlockCases) {
    Model kept(c), again(c);
    kept.gradients(plain);
    again.gradients(recompute);
    EXPECT_EQ(kept.ready, again.ready) << c.name;
    EXPECT_EQ(again.ready.size(), again.store.all().size()) << c.name;
    for (std::size_t i = 0; i < again.ready.size(); ++i)
      EXPECT_TRUE(at::equal(again.at_ready[i], again.store.find(again.ready[i])->grad)) << c.name;
  }
}

TEST(Recompute, RunsTwiceAndSaysWhichRunIsTheSecond) {
  const Tensor x = random({4, 4}, 1).requires_grad_(true);
  std::vector<bool> runs;
  const TensorFunction run = [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    runs.push_back(is_recomputing());
    return {in[0].square()};
  };
  const Tensor out = recompute({x}, run)[0];
  EXPECT_EQ(runs, (std::vector<bool>{false}));
  torch::autograd::backward({out.sum()}, {});
  EXPECT_EQ(runs, (std::vector<bool>{false, true}));
  EXPECT_FALSE(is_recomputing());
  {
    const at::NoGradGuard no_grad;
    recompute({x}, run);
  }
  EXPECT_EQ(runs.size(), 3u);
}

TEST(Recompute, ParametersAloneAreACaseToo) {  // no input has a gradient: a plain call, not a lost one
  ParameterStore store;
  const Parameter& w = store.add("w", ParameterKind::kMlp, {4, 4}, {Init::Kind::kConstant, 1});
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(1);
  const Tensor out = recompute(
      {random({3, 4}, 1)}, [&](const std::vector<Tensor>& in) -> std::vector<Tensor> { return {linear(in[0], w)}; })[0];
  torch::autograd::backward({out.sum()}, {});
  EXPECT_GT(w.grad.abs().sum().item<float>(), 0);
}

// What lives between forward and backward: the inputs, the outputs, nothing between.
TEST(Recompute, KeepsNoActivation) {
  const Tensor x = random({4, 4}, 1).requires_grad_(true);
  c10::weak_intrusive_ptr<c10::StorageImpl> inner(c10::intrusive_ptr<c10::StorageImpl>::reclaim(nullptr));
  const Tensor out = recompute({x}, [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
    const Tensor y = in[0].exp();
    inner = c10::weak_intrusive_ptr<c10::StorageImpl>(
        c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(y.storage().unsafeGetStorageImpl()));
    return {y.square()};
  })[0];
  EXPECT_TRUE(inner.expired());
  torch::autograd::backward({out.sum()}, {});
  EXPECT_TRUE(at::equal(x.grad(), (x.exp() * x.exp() * 2).detach()));
}

}  // namespace
}  // namespace switchyard::ops
