// Every op against its plain-ATen reference: values, gradients of activations, gradients in the parameters' slices; on
// the CPU in fp64 and fp32, on a GPU in fp32 and bf16 where there is one.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/activation.h"
#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/dropout.h"
#include "ops/gradient.h"
#include "ops/head_loss.h"
#include "ops/inject_loss.h"
#include "ops/linear.h"
#include "ops/project_qkv.h"
#include "ops/value_gate.h"

namespace switchyard::ops {
namespace {

// What a run of an op gives: outputs, then gradients of its inputs and of its parameters, for loss = sum(output *
// fixed).
using Results = std::vector<Tensor>;

Tensor random(std::vector<std::int64_t> shape, std::int64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(static_cast<std::uint64_t>(seed));
  return at::randn(shape, at::kDouble).to(type);
}

// Differentiates the sum of outputs, each weighted by fixed random numbers; returns outputs and gradients.
Results differentiate(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs, ParameterStore& store) {
  std::vector<Tensor> roots, seeds;
  std::int64_t seed = 1000;
  for (const Tensor& out : outputs) {
    if (!out.requires_grad()) continue;
    roots.push_back(out);
    seeds.push_back(random(out.sizes().vec(), seed++).to(out.device(), out.scalar_type()));
  }
  torch::autograd::backward(roots, seeds);
  Results results(outputs.begin(), outputs.end());
  for (const Tensor& input : inputs)
    results.push_back(input.grad().defined() ? input.grad().clone() : at::zeros_like(input));
  for (const auto& parameter : store.all()) results.push_back(parameter->grad.clone());
  return results;
}

void expect_close(const Results& got, const Results& want, double tolerance, const std::string& name) {
  ASSERT_EQ(got.size(), want.size()) << name;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const Tensor a = got[i].detach().to(at::kCPU, at::kDouble), b = want[i].detach().to(at::kCPU, at::kDouble);
    ASSERT_EQ(a.sizes(), b.sizes()) << name << " result " << i;
    const double difference = (a - b).norm().item<double>(), scale = b.norm().item<double>() + 1;
    EXPECT_LT(difference / scale, tolerance)
        << name << " result " << i << " (norm of the difference over 1 + the reference's)";
  }
}

std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) list.push_back(at::Device(at::kCUDA, 0));
  return list;
}

Tensor leaf(const Tensor& value, at::Device device) { return value.to(device).detach().clone().requires_grad_(true); }

struct AddNormCase {
  const char* name;
  std::int64_t tokens, width;
  bool delta, scalars, gain;
  int experts = 0;  // of a router that reads the norm
};
const std::vector<AddNormCase> kAddNorm = {
    {"plain norm", 5, 64, false, false, false},      {"norm with gain", 5, 64, false, false, true},
    {"one token", 1, 64, true, false, false},        {"odd tokens", 127, 96, true, true, true},
    {"first block", 64, 128, false, true, false},    {"many tokens", 1000, 64, true, true, false},
    {"router", 77, 72, true, false, false, 8},       {"router, odd experts, gain", 131, 200, true, false, true, 13},
    {"many experts", 77, 72, true, false, true, 20}, {"router after scalars", 33, 64, true, true, false, 4},
    {"wide router", 9, 1280, true, false, true, 5},  {"more experts", 77, 72, true, false, true, 40},
};

TEST(AddNorm, MatchesReference) {
  for (const at::Device device : devices())
    for (const AddNormCase& c : kAddNorm) {
      const auto run = [&](auto op) {
        ParameterStore store;
        Residual r;
        Parameter& keep = store.add("keep", ParameterKind::kKeepScalar, {3}, {Init::Kind::kNormal, 1.0});
        Parameter& again = store.add("again", ParameterKind::kAgainScalar, {3}, {Init::Kind::kNormal, 1.0});
        Parameter& gain = store.add("gain", ParameterKind::kNorm, {c.width}, {Init::Kind::kNormal, 1.0});
        Parameter& router =
            store.add("router", ParameterKind::kRouter, {std::max(c.experts, 1), c.width}, {Init::Kind::kNormal, 0.3});
        store.allocate(device, at::kFloat, store.contiguous());
        store.initialize(7);
        if (c.experts) r.router = &router;
        if (c.scalars) r.keep = &keep, r.again = &again, r.index = 1;
        if (c.gain) r.gain = &gain;
        const Tensor x = leaf(random({c.tokens, c.width}, 1), device),
                     delta = leaf(random({c.tokens, c.width}, 2), device),
                     x0 = leaf(random({c.tokens, c.width}, 3), device);
        const auto [residual, normed, same, logits] = op(x, c.delta ? delta : Tensor(), c.scalars ? x0 : Tensor(), r);
        std::vector<Tensor> outputs{normed};
        if (c.delta || c.scalars) outputs.push_back(residual);
        if (c.experts) outputs.push_back(logits);
        return differentiate(outputs, {x, delta, x0}, store);
      };
      expect_close(run(add_norm), run(add_norm_reference), 2e-5, c.name);
    }
}

// Three blocks that hand x0 on; the first reads it as x too. x0's gradient is one buffer that each block adds to.
TEST(AddNorm, TheGradientOfX0IsSummedAlongTheBlocks) {
  for (const at::Device device : devices()) {
    const auto run = [&](auto op) {
      ParameterStore store;
      Parameter& keep = store.add("keep", ParameterKind::kKeepScalar, {3}, {Init::Kind::kNormal, 1.0});
      Parameter& again = store.add("again", ParameterKind::kAgainScalar, {3}, {Init::Kind::kNormal, 1.0});
      store.allocate(device, at::kFloat, store.contiguous());
      store.initialize(7);
      const Tensor leaves = leaf(random({70, 64}, 1), device), delta = leaf(random({70, 64}, 2), device);
      Normed block{leaves * 2, Tensor(), leaves * 2, Tensor()};
      block.x0_TD = block.x_TD;
      Tensor sum = at::zeros({70, 64}, device);
      for (int i = 0; i < 3; ++i) {
        block = op(block.x_TD, i > 0 ? delta : Tensor(), block.x0_TD, Residual{&keep, &again, i, nullptr, 1e-6});
        sum = sum + block.n_TD * (i + 1);
      }
      return differentiate({sum, block.x_TD}, {leaves, delta}, store);
    };
    expect_close(run(add_norm), run(add_norm_reference), 2e-5, "three blocks");
  }
}

// Doubles; says where its gradient came in, and whether it may be written to.
struct Seen {
  const void* buffer = nullptr;
  bool ours = false;
};
Seen seen;
class Watch : public torch::autograd::Function<Watch> {
 public:
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x * 2; }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list& grads) {
    seen = {grads[0].data_ptr(), is_ours(grads[0])};
    return {grads[0] * 2};
  }
};

TEST(Gradient, OursOnlyWhereNobodyElseReadsIt) {
  const Tensor x = leaf(random({8, 8}, 1), at::kCPU), other = leaf(random({8, 8}, 2), at::kCPU);
  torch::autograd::backward({Watch::apply(x).square().sum()}, {});
  EXPECT_TRUE(seen.ours);  // a product's gradient is its own tensor
  const Tensor seed = at::ones({8, 8});
  torch::autograd::backward({Watch::apply(x)}, {seed});
  EXPECT_FALSE(seen.ours);  // the caller still has it
  torch::autograd::backward({(Watch::apply(x) + other.square()).square().sum()}, {});
  EXPECT_FALSE(seen.ours);  // a sum hands one tensor to both summands, and the other has not read it yet
  torch::autograd::backward({Watch::apply(x).sum()}, {});
  EXPECT_FALSE(seen.ours);  // one number, seen as a matrix
}

TEST(ValueGate, MatchesTheLinearMapOfTheFirstChannels) {
  for (const at::Device device : devices())
    for (const bool shared : {false, true}) {  // shared: the other reader's gradient is also somebody else's
      const auto run = [&](bool fused) {
        ParameterStore store;
        Parameter& w = store.add("gate", ParameterKind::kValueGate, {5, 16}, {Init::Kind::kNormal, 1.0});
        store.allocate(device, at::kFloat, store.contiguous());
        store.initialize(7);
        const Tensor n = leaf(random({33, 48}, 1), device), other = leaf(random({33, 48}, 2), device);
        GatedInput out{Tensor(), n};
        if (fused)
          out = value_gate(n, w);
        else
          out.gate_TK = at::mm(n.narrow(1, 0, 16), attach(w).t());
        const Tensor rest = shared ? out.n_TD + other : out.n_TD * other;
        return differentiate({out.gate_TK, rest}, {n, other}, store);
      };
      expect_close(run(true), run(false), 1e-5, shared ? "a sum reads n" : "a product reads n");
    }
}

struct QkvCase {
  const char* name;
  int sequences, seq_len, heads, kv_heads, head_dim;
  bool norm, value, weights;
};
const std::vector<QkvCase> kQkv = {
    {"nanochat layer with value embedding", 2, 17, 4, 4, 32, true, true, false},
    {"without value embedding", 3, 8, 4, 4, 16, true, false, false},
    {"grouped queries, no norm", 2, 16, 6, 2, 64, false, false, false},
    {"grouped queries with value", 1, 5, 4, 2, 32, true, true, false},
    {"norm weights", 2, 9, 4, 2, 32, true, false, true},
    {"heads of 64", 4, 64, 3, 3, 64, true, true, false},
    {"heads of 128, grouped queries", 1, 512, 6, 2, 128, true, false, false},
    {"heads of 128, no norm", 2, 128, 3, 1, 128, false, true, false},
};

// As kernels::qkv_rope_backward(): what a reader of qkv that takes gradients back through the rotation hands back.
Tensor turned_back(const Tensor& grad, const Tensor& qkv, const QkvRotation& rotation, const QkvShape& s) {
  const std::int64_t rotated = s.heads + s.kv_heads, half = s.head_dim / 2;
  const auto heads = [&](const Tensor& x) { return x.view({x.size(0), -1, s.head_dim}).narrow(1, 0, rotated); };
  Tensor d = heads(grad);
  if (rotation.inverse_rms.defined())
    d = (d - heads(qkv) * (d * heads(qkv)).mean(-1, true)) * rotation.inverse_rms.unsqueeze(-1);
  const auto table = [&](const Tensor& t) {
    return t.narrow(0, 0, s.seq_len).repeat({grad.size(0) / s.seq_len, 1}).unsqueeze(1);
  };
  const Tensor cos = table(rotation.tables.cos_SC), sin = table(rotation.tables.sin_SC);
  const Tensor low = d.narrow(-1, 0, half), high = d.narrow(-1, half, half);
  Tensor result = grad.clone();
  heads(result).copy_(at::cat({low * cos - high * sin, high * cos + low * sin}, -1));
  return result;
}

const auto kProjectQkv = [](const auto&... input) { return project_qkv(input...); };
const auto kTurnedBackByReader = [](const Tensor& x, const Parameter& w, const ValueInput& value,
                                    const RotaryTables& tables, const QkvShape& shape, const LinearProducts& products) {
  QkvRotation rotation;
  const Tensor out = project_qkv(x, w, value, tables, shape, products, &rotation);
  out.register_hook([=, qkv = out.detach()](const Tensor& grad) { return turned_back(grad, qkv, rotation, shape); });
  return out;
};

TEST(ProjectQkv, MatchesReference) {
  for (const at::Device device : devices())
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
      for (const QkvCase& c : kQkv) {
        const std::int64_t tokens = c.sequences * c.seq_len, kv = c.kv_heads * c.head_dim;
        if (device.is_cpu() && type == at::kBFloat16) continue;
        const auto run = [&](auto op) {
          ParameterStore store;
          Parameter& w = store.add("qkv", ParameterKind::kAttention, {c.heads * c.head_dim + 2 * kv, 24},
                                   {Init::Kind::kNormal, 0.3});
          Parameter& q_norm = store.add("q_norm", ParameterKind::kNorm, {c.head_dim}, {Init::Kind::kNormal, 1.0});
          Parameter& k_norm = store.add("k_norm", ParameterKind::kNorm, {c.head_dim}, {Init::Kind::kNormal, 1.0});
          store.allocate(device, type, store.contiguous());
          store.initialize(7);
          const Tensor x = leaf(random({tokens, 24}, 1, type), device),
                       value = leaf(random({tokens, kv}, 2, type), device),
                       gate = leaf(random({tokens, c.kv_heads}, 3, type), device);
          QkvShape shape{c.seq_len, c.heads, c.kv_heads, c.head_dim, c.norm, 1e-6, nullptr, nullptr};
          if (c.weights) shape.q_norm = &q_norm, shape.k_norm = &k_norm;
          const Tensor out = op(x, w, c.value ? ValueInput{value, gate} : ValueInput(),
                                rotary_tables(c.seq_len, c.head_dim, 10000, device), shape, LinearProducts::plain());
          return differentiate({out}, {x, value, gate}, store);
        };
        const Results want = run(project_qkv_reference);
        const double tolerance = type == at::kFloat ? 2e-5 : 2e-2;
        expect_close(run(kProjectQkv), want, tolerance, c.name);
        if (!c.weights) expect_close(run(kTurnedBackByReader), want, tolerance, c.name);
      }
}

// The gradient is turned in place where it is ours alone, and nowhere else; tables may be longer than the sequences, or
// begin at a later position, and x may be columns of a wider tensor.
TEST(ProjectQkv, OverwritesNoGradientOfOthers) {
  const QkvCase c{"", 3, 8, 4, 2, 16, true, false, false};
  for (const at::Device device : devices())
    for (const bool shared : {false, true})
      for (const std::int64_t first : {0, 5}) {
        const auto run = [&](auto op) {
          ParameterStore store;
          Parameter& w = store.add("qkv", ParameterKind::kAttention, {8 * 16, 24}, {Init::Kind::kNormal, 0.3});
          store.allocate(device, at::kFloat, store.contiguous());
          store.initialize(7);
          const Tensor wide = leaf(random({24, 40}, 1), device), other = leaf(random({24, 8 * 16}, 2), device);
          RotaryTables tables = rotary_tables(20, c.head_dim, 10000, device);
          tables = {tables.cos_SC.narrow(0, first, 10), tables.sin_SC.narrow(0, first, 10)};
          const QkvShape shape{c.seq_len, c.heads, c.kv_heads, c.head_dim, c.norm, 1e-6, nullptr, nullptr};
          const Tensor out = op(wide.narrow(1, 8, 24), w, ValueInput(), tables, shape, LinearProducts::plain());
          // A product hands out a gradient of its own; a sum gives both readers the one that it was given.
          const Tensor root = shared ? out + other : out * other, seed = random({24, 8 * 16}, 3).to(device);
          const Tensor kept = seed.clone();
          torch::autograd::backward({root}, {seed});
          EXPECT_TRUE(at::equal(seed, kept));
          return Results{out, wide.grad(), other.grad(), w.grad};
        };
        expect_close(run(kProjectQkv), run(project_qkv_reference), 2e-5,
                     shared ? "a sum reads it" : "a product reads it");
      }
}

// Through attention, where its backward takes the gradient back through the rotation: beside the chain where it is
// project_qkv()'s own.
TEST(ProjectQkv, AttentionMayTurnGradientsBack) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU here";
  const std::vector<QkvCase> cases = {
      {"value embedding", 2, 256, 4, 4, 64, true, true, false},
      {"grouped queries", 3, 200, 4, 2, 64, true, true, false},
      {"no norm", 2, 256, 4, 2, 64, false, false, false},
  };
  for (const QkvCase& c : cases) {
    const std::int64_t tokens = c.sequences * c.seq_len, width = 96, kv = c.kv_heads * c.head_dim;
    const AttentionShape attended{c.seq_len, c.heads, c.kv_heads, c.head_dim, c.seq_len};
    if (!attention_turns_back(at::empty({tokens, width}, at::device(at::kCUDA).dtype(at::kBFloat16)), attended))
      GTEST_SKIP() << "attention's backward is not ours here";
    const auto run = [&](bool turned_back) {
      ParameterStore store;
      Parameter& w = store.add("qkv", ParameterKind::kAttention, {c.heads * c.head_dim + 2 * kv, width},
                               {Init::Kind::kNormal, 0.1});
      store.allocate(at::kCUDA, at::kBFloat16, store.contiguous());
      store.initialize(7);
      const Tensor x = leaf(random({tokens, width}, 1, at::kBFloat16), at::kCUDA),
                   value = leaf(random({tokens, kv}, 2, at::kBFloat16), at::kCUDA),
                   gate = leaf(random({tokens, c.kv_heads}, 3, at::kBFloat16), at::kCUDA);
      QkvRotation rotation;
      QkvRotation* given = turned_back ? &rotation : nullptr;
      const Tensor qkv =
          project_qkv(x, w, c.value ? ValueInput{value, gate} : ValueInput(),
                      rotary_tables(c.seq_len, c.head_dim, 10000, at::kCUDA),
                      {c.seq_len, c.heads, c.kv_heads, c.head_dim, c.norm, 1e-6}, LinearProducts::plain(), given);
      return differentiate({attention(qkv, attended, given)}, {x, value, gate}, store);
    };
    expect_close(run(true), run(false), 1e-2, c.name);
  }
}

TEST(ProjectQkv, ScoresDependOnPositionDifferencesOnly) {
  ParameterStore store;
  Parameter& w = store.add("qkv", ParameterKind::kAttention, {3 * 32, 8}, {Init::Kind::kNormal, 1.0});
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(7);
  const Tensor one = random({1, 8}, 5).expand({40, 8}).contiguous();
  const Tensor out = project_qkv(one, w, {}, rotary_tables(40, 32, 10000, at::kCPU), {40, 1, 1, 32, true, 1e-6});
  const Tensor score = at::mm(out.narrow(1, 0, 32), out.narrow(1, 32, 32).t());
  EXPECT_NEAR(score[10][3].item<float>(), score[30][23].item<float>(), 1e-4);
  EXPECT_NEAR(score[7][7].item<float>(), score[39][39].item<float>(), 1e-4);
}

TEST(Activation, MatchesReference) {
  ParameterStore none;
  for (const at::Device device : devices())
    for (const ActivationKind kind :
         {ActivationKind::kRelu2, ActivationKind::kGelu, ActivationKind::kSwiglu, ActivationKind::kGeglu}) {
      const auto run = [&](auto op) {
        const Tensor pre = leaf(random({77, 128}, 4), device);
        return differentiate({op(pre, kind)}, {pre}, none);
      };
      expect_close(run([](auto&&... a) { return activation(a...); }), run(activation_reference), 2e-5, "activation");
    }
}

TEST(Linear, GradientGoesToTheSliceAndAccumulates) {
  ParameterStore store;
  Parameter& w = store.add("w", ParameterKind::kMlp, {24, 16}, {Init::Kind::kNormal, 1.0});
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(3);
  int ready = 0;
  w.on_ready = [&](const Parameter&) { ++ready; };
  const Tensor x = leaf(random({9, 16}, 1), at::kCPU), dy = random({9, 24}, 2);
  for (int use = 1; use <= 2; ++use) {
    torch::autograd::backward({linear(x, w)}, {dy});
    EXPECT_LT((w.grad - use * at::mm(dy.t(), x.detach())).abs().max().item<float>(), 1e-4);
    EXPECT_EQ(ready, use);
  }
  const Tensor twice = linear(x, w) + linear(x, w);  // two uses in one pass: ready once
  torch::autograd::backward({twice}, {dy});
  EXPECT_EQ(ready, 3);
}

struct HeadCase {
  const char* name;
  std::int64_t tokens, width, vocab, chunk;
  double cap;
  bool ignore;
};
const std::vector<HeadCase> kHead = {
    {"one chunk", 33, 32, 64, 0, 15, false},
    {"odd chunks", 70, 32, 64, 32, 15, true},
    {"no cap", 40, 16, 128, 16, 0, false},
    {"every target ignored but one", 8, 16, 64, 0, 15, true},
};

TEST(HeadLoss, MatchesReference) {
  for (const at::Device device : devices())
    for (const HeadCase& c : kHead) {
      const auto run = [&](auto op) {
        ParameterStore store;
        Parameter& w = store.add("head", ParameterKind::kHead, {c.vocab, c.width}, {Init::Kind::kNormal, 1.0});
        store.allocate(device, at::kFloat, store.contiguous());
        store.initialize(7);
        const Tensor x = leaf(random({c.tokens, c.width}, 1), device);
        at::manual_seed(11);
        Tensor target = at::randint(c.vocab, {c.tokens}, at::kLong);
        if (c.ignore) target.narrow(0, 1, c.tokens - 1).masked_fill_(at::arange(1, c.tokens).remainder(3).ne(0), -1);
        const auto [loss, nll] = op(x, w, target.to(device), HeadLossOptions{c.cap, 0.25, c.chunk});
        torch::autograd::backward({loss}, {});
        return Results{loss, nll, x.grad(), w.grad};
      };
      expect_close(run([](auto&&... a) { return head_loss(a...); }), run(head_loss_reference), 2e-5, c.name);
    }
}

TEST(HeadLoss, EvaluationLeavesTheSliceAlone) {
  ParameterStore store;
  Parameter& w = store.add("head", ParameterKind::kHead, {64, 16}, {Init::Kind::kNormal, 1.0});
  store.allocate(at::kCPU, at::kFloat, store.contiguous());
  store.initialize(7);
  at::NoGradGuard no_grad;
  head_loss(random({8, 16}, 1), w, at::zeros({8}, at::kLong), {});
  EXPECT_EQ(w.grad.abs().max().item<float>(), 0);
}

TEST(Dropout, SameMaskBackwardAndForEveryPlaceTheWindowsAreComputed) {
  const DropoutKey key{5, at::full({1}, 3, at::kLong), at::tensor(std::vector<std::int64_t>{10, 11}), 6};
  const Tensor x = at::ones({12, 8}).requires_grad_(true), out = dropout(x, 0.5, 4, key);
  torch::autograd::backward({out}, {at::ones_like(out)});
  EXPECT_TRUE(at::equal(x.grad(), out.detach()));
  const DropoutKey second{5, key.step, at::tensor(std::vector<std::int64_t>{11}), 6};
  EXPECT_TRUE(at::equal(dropout(at::ones({6, 8}), 0.5, 4, second), out.detach().narrow(0, 6, 6)));
  EXPECT_TRUE(at::equal(dropout(x, 0, 4, key), x));
}

TEST(InjectLoss, EqualsAddingTheLoss) {
  const Tensor x = leaf(random({4, 4}, 1, at::kDouble), at::kCPU), y = leaf(random({4, 4}, 1, at::kDouble), at::kCPU);
  torch::autograd::backward({(2 * x).sum() + 0.25 * x.square().mean()}, {});
  const Tensor same = inject_loss(2 * y, y.square().mean(), 0.25);
  EXPECT_TRUE(at::equal(same, 2 * y));
  torch::autograd::backward({same.sum()}, {});
  EXPECT_LT((x.grad() - y.grad()).abs().max().item<double>(), 1e-12);
}

}  // namespace
}  // namespace switchyard::ops
