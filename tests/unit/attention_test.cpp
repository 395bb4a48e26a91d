// Attention over packed q, k, v: against the plain-ATen reference and finite differences on the CPU; on a GPU in bf16
// against the reference in fp32, twice in a fixed order, and recorded as a CUDA graph.
#include "ops/attention.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>

#ifdef SWITCHYARD_WITH_CUDA
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include "kernels/attention_backward.h"
#include "kernels/qkv_rope.h"
#include "ops/launch.h"
#endif

namespace switchyard::ops {
namespace {

Tensor random(std::vector<std::int64_t> shape, std::uint64_t seed, at::ScalarType type = at::kFloat) {
  at::manual_seed(seed);
  return at::randn(shape, at::kDouble).to(type);
}

struct Case {
  const char* name;
  int sequences, seq_len, heads, kv_heads, head_dim, window;
};

AttentionShape shape_of(const Case& c) { return {c.seq_len, c.heads, c.kv_heads, c.head_dim, c.window}; }
Tensor packed(const Case& c, at::ScalarType type) {
  return random({c.sequences * c.seq_len, (c.heads + 2 * c.kv_heads) * c.head_dim}, 1, type);
}
Tensor seed_of(const Case& c, at::ScalarType type) {
  return random({c.sequences * c.seq_len, c.heads * c.head_dim}, 2, type);
}

// The output and the gradient of sum(output * d_out).
using Op = std::function<Tensor(const Tensor&, const AttentionShape&)>;
std::pair<Tensor, Tensor> differentiate(const Op& op, const Tensor& qkv, const Tensor& d_out, const Case& c) {
  const Tensor leaf = qkv.detach().clone().requires_grad_(true), out = op(leaf, shape_of(c));
  return {out.detach(), torch::autograd::grad({out}, {leaf}, {d_out})[0]};
}

Tensor plain(const Tensor& qkv, const AttentionShape& shape) { return attention(qkv, shape); }

const std::vector<Case> kCases = {
    {"one head", 1, 8, 1, 1, 16, 8},
    {"one token", 3, 1, 2, 1, 16, 1},
    {"odd length", 2, 33, 4, 4, 32, 33},
    {"grouped queries", 2, 24, 6, 2, 32, 24},
    {"window longer than the sequence", 2, 24, 2, 2, 32, 100},
    {"window", 2, 24, 4, 4, 32, 7},
    {"window of one", 1, 12, 2, 2, 16, 1},
    {"all but one", 1, 12, 2, 2, 16, 11},
    {"grouped queries in a window, odd length", 3, 37, 6, 3, 8, 5},
    {"one kv head", 2, 19, 5, 1, 24, 19},
};

TEST(Attention, MatchesReference) {
  std::vector<at::Device> devices{at::kCPU};
  if (at::hasCUDA()) devices.push_back(at::Device(at::kCUDA, 0));
  for (const at::Device device : devices)
    for (const at::ScalarType type : {at::kFloat, at::kDouble})
      for (const Case& c : kCases) {
        if (device.is_cuda() && type == at::kDouble) continue;
        const Tensor qkv = packed(c, type).to(device), d_out = seed_of(c, type).to(device);
        const auto [out, d_qkv] = differentiate(plain, qkv, d_out, c);
        const auto [want, d_want] = differentiate(attention_reference, qkv, d_out, c);
        const double tolerance = type == at::kDouble ? 1e-12 : 5e-5;
        ASSERT_EQ(out.sizes(), want.sizes()) << c.name;
        EXPECT_LT((out - want).norm().item<double>() / (want.norm().item<double>() + 1), tolerance) << c.name;
        EXPECT_LT((d_qkv - d_want).norm().item<double>() / (d_want.norm().item<double>() + 1), tolerance) << c.name;
        EXPECT_FALSE(attention_is_packed(qkv, shape_of(c))) << "cuDNN's kernels take bf16";
      }
}

TEST(Attention, GradientIsTheSlope) {
  constexpr double kStep = 1e-5;
  for (const Case& c : kCases) {
    const Tensor qkv = packed(c, at::kDouble), d_out = seed_of(c, at::kDouble);
    const Tensor d_qkv = differentiate(plain, qkv, d_out, c).second;
    for (std::uint64_t direction = 5; direction < 8; ++direction) {
      const Tensor step = random(qkv.sizes().vec(), direction, at::kDouble);
      const auto loss = [&](double at) {
        return (attention(qkv + at * step, shape_of(c)) * d_out).sum().item<double>();
      };
      const double slope = (loss(kStep) - loss(-kStep)) / (2 * kStep), told = (d_qkv * step).sum().item<double>();
      EXPECT_NEAR(slope, told, 1e-6 * (1 + std::abs(told))) << c.name;
    }
  }
}

// Changing token j of a sequence changes what tokens [j, j + window) see of it, and no other token.
TEST(Attention, SeesItsWindowAndNeverAhead) {
  for (const Case& c : kCases)
    for (const int changed : {0, c.seq_len / 2, c.seq_len - 1}) {
      const Tensor before = packed(c, at::kDouble), after = before.clone();
      const std::int64_t query_width = c.heads * c.head_dim;
      after[changed].narrow(0, query_width, before.size(1) - query_width).add_(1);  // its keys and values
      const Tensor differs = (attention(after, shape_of(c)) - attention(before, shape_of(c))).abs().amax(1).gt(1e-9);
      for (int token = 0; token < differs.size(0); ++token)
        EXPECT_EQ(differs[token].item<bool>(), token >= changed && token < std::min(changed + c.window, c.seq_len))
            << c.name << ", token " << token << " and a change in " << changed;
    }
}

#ifdef SWITCHYARD_WITH_CUDA
const std::vector<Case> kGpuCases = {
    {"d12", 4, 1024, 12, 12, 64, 1024},
    {"grouped queries", 2, 1024, 12, 4, 64, 1024},
    {"wide heads", 2, 1024, 6, 6, 128, 1024},
    {"wide heads, grouped", 2, 1000, 12, 4, 128, 1000},
    {"short", 3, 128, 12, 4, 64, 128},
    {"odd length", 2, 1000, 12, 12, 64, 1000},
    {"one sequence", 1, 1024, 12, 12, 64, 1024},
    {"window of one", 2, 1024, 12, 12, 64, 1},
    {"window of two", 2, 256, 12, 12, 64, 2},
    {"window of 100", 2, 1024, 12, 4, 64, 100},
    {"window of 512", 2, 1024, 12, 12, 64, 512},
    {"window of 512, wide heads", 2, 1024, 12, 4, 128, 512},
    {"window in an odd length", 2, 1000, 12, 4, 64, 100},
    {"all but one", 2, 1000, 12, 12, 64, 999},
};
// Lengths that are no multiple of a tile, small heads, a single token: cuDNN may lack a kernel and torch's then run.
const std::vector<Case> kUnusualCases = {
    {"one token", 3, 1, 2, 1, 64, 1},        {"few tokens", 5, 7, 2, 2, 64, 7},
    {"four tokens", 3, 4, 2, 2, 64, 4},      {"68 tokens", 2, 68, 4, 2, 64, 68},
    {"132 tokens", 2, 132, 4, 2, 64, 50},    {"33 tokens", 3, 33, 4, 2, 64, 33},
    {"narrow heads", 2, 200, 4, 4, 16, 200}, {"40 channels", 2, 200, 4, 4, 40, 50},
    {"odd channels", 2, 64, 4, 4, 20, 64},   {"192 channels", 2, 300, 4, 2, 192, 64},
    {"one kv head", 2, 130, 8, 1, 64, 130},
};

#define SKIP_WITHOUT_BF16_GPU() \
  if (!at::hasCUDA() || at::cuda::getDeviceProperties(0)->major < 8) GTEST_SKIP() << "no GPU of capability 8.0 here"

// Difference over the reference's norm, or over a floor where the reference is zero: in a window of one, dq and dk are.
double relative(const Tensor& got, const Tensor& want) {
  const double floor = 0.01 * std::sqrt(static_cast<double>(want.numel()));
  return ((got.to(at::kFloat) - want).norm() / (want.norm() + floor)).item<double>();
}

struct Inputs {
  Tensor qkv, d_out;
  explicit Inputs(const Case& c)
      : qkv(packed(c, at::kFloat).to(at::kCUDA, at::kBFloat16)),
        d_out(seed_of(c, at::kFloat).to(at::kCUDA, at::kBFloat16)) {}
};

// bf16 keeps 8 bits: outputs are off by 2^-9 of themselves, gradients by what rounding the softmax and its gradient
// adds.
void expect_matches_fp32(const Case& c) {
  const Inputs in(c);
  const auto [out, d_qkv] = differentiate(plain, in.qkv, in.d_out, c);
  const auto [want, d_want] = differentiate(attention_reference, in.qkv.to(at::kFloat), in.d_out.to(at::kFloat), c);
  EXPECT_LT(relative(out, want), 0.01) << c.name;
  const std::int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  ASSERT_TRUE(d_qkv.is_contiguous()) << c.name;
  const auto part = [](const Tensor& x, std::int64_t first, std::int64_t width) { return x.narrow(1, first, width); };
  EXPECT_LT(relative(part(d_qkv, 0, q), part(d_want, 0, q)), 0.02) << c.name << ", dq";
  EXPECT_LT(relative(part(d_qkv, q, kv), part(d_want, q, kv)), 0.02) << c.name << ", dk";
  EXPECT_LT(relative(part(d_qkv, q + kv, kv), part(d_want, q + kv, kv)), 0.02) << c.name << ", dv";
  const at::NoGradGuard inference;  // a plan of its own
  EXPECT_LT(relative(attention(in.qkv, shape_of(c)), want), 0.01) << c.name << ", inference";
}

TEST(AttentionOnGpu, MatchesReferenceInFp32) {
  SKIP_WITHOUT_BF16_GPU();
  for (const Case& c : kGpuCases) {
    expect_matches_fp32(c);
#ifdef SWITCHYARD_CUDNN_ATTENTION
    const Tensor leaf = Inputs(c).qkv.requires_grad_(true);
    EXPECT_TRUE(attention_is_packed(leaf, shape_of(c))) << c.name << ": cuDNN has no kernel for it";
#endif
  }
  for (const Case& c : kUnusualCases) expect_matches_fp32(c);
}

// A gradient that is a view, and a tensor that does not begin at a multiple of 16 bytes.
TEST(AttentionOnGpu, TakesAnyStridesAndAlignment) {
  SKIP_WITHOUT_BF16_GPU();
  const Case c{"unaligned", 2, 256, 4, 2, 64, 256};
  const Inputs in(c);
  const Tensor want = attention(in.qkv, shape_of(c));
#ifdef SWITCHYARD_CUDNN_ATTENTION  // torch's own call of cuDNN trusts the address
  Tensor shifted = at::empty({in.qkv.numel() + 1}, in.qkv.options()).narrow(0, 1, in.qkv.numel()).view_as(in.qkv);
  shifted.copy_(in.qkv);
  EXPECT_TRUE(at::equal(attention(shifted, shape_of(c)), want));
#endif
  const Op transposed = [](const Tensor& x, const AttentionShape& s) { return attention(x, s).t(); };
  const Tensor d_out = in.d_out.t().contiguous();
  EXPECT_LT(relative(differentiate(transposed, in.qkv, d_out, c).second,
                     differentiate(plain, in.qkv, in.d_out, c).second.to(at::kFloat)),
            1e-3);
}

// Backward in our own kernel, which keeps one order.
bool has_own_backward([[maybe_unused]] const Case& c) {
#ifdef SWITCHYARD_CUDNN_ATTENTION
  return kernels::attention_backward_takes(c.seq_len, c.heads, c.kv_heads, c.head_dim);
#else
  return false;
#endif
}

#ifdef SWITCHYARD_CUDNN_ATTENTION
// With a rotation, the gradient is the one without, by way of qkv_rope_backward().
TEST(AttentionOnGpu, TakesGradientsBackThroughTheRotation) {
  SKIP_WITHOUT_BF16_GPU();
  for (const Case& c : kGpuCases) {
    const Inputs in(c);
    EXPECT_EQ(attention_turns_back(in.qkv, shape_of(c)), has_own_backward(c)) << c.name;
    if (!has_own_backward(c)) continue;
    const std::int64_t tokens = in.qkv.size(0), rotated = c.heads + c.kv_heads;
    QkvRotation rotation{rotary_tables(c.seq_len, c.head_dim, 10000, in.qkv.device()), Tensor()};
    for (const bool norm : {false, true}) {
      if (norm) rotation.inverse_rms = random({tokens, rotated}, 3).abs().add(0.5).to(in.qkv.device());
      const Op turned = [&](const Tensor& x, const AttentionShape& s) { return attention(x, s, &rotation); };
      const auto [out, d_qkv] = differentiate(turned, in.qkv, in.d_out, c);
      const auto [plain_out, want] = differentiate(plain, in.qkv, in.d_out, c);
      kernels::qkv_rope_backward<kernels::bf16>({{tokens, c.seq_len, c.heads, c.kv_heads, c.head_dim},
                                                 pointer<kernels::bf16>(in.qkv),
                                                 pointer<float>(rotation.inverse_rms),
                                                 pointer<float>(rotation.tables.cos_SC),
                                                 pointer<float>(rotation.tables.sin_SC),
                                                 pointer<kernels::bf16>(want)},
                                                current_stream(want));
      EXPECT_TRUE(at::equal(out, plain_out)) << c.name;
      EXPECT_LT(relative(d_qkv, want.to(at::kFloat)), 0.01) << c.name << (norm ? ", norm" : "");
    }
  }
}
#endif

class Deterministic {
 public:
  Deterministic() {
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  }
  ~Deterministic() {
    at::globalContext().setDeterministicAlgorithms(false, false);
    at::globalContext().setDeterministicFillUninitializedMemory(true);
  }
  Deterministic(const Deterministic&) = delete;
};

TEST(AttentionOnGpu, RepeatsBitForBitWhereAsked) {
  SKIP_WITHOUT_BF16_GPU();
  for (const Case& c : kGpuCases) {
    const Inputs in(c);
    const auto [free_out, free_d_qkv] = differentiate(plain, in.qkv, in.d_out, c);
#ifdef SWITCHYARD_CUDNN_ATTENTION
    if (has_own_backward(c)) {
      EXPECT_TRUE(at::equal(free_d_qkv, differentiate(plain, in.qkv, in.d_out, c).second)) << c.name << ", unasked";
    }
#endif
    const Deterministic asked;
#ifdef SWITCHYARD_CUDNN_ATTENTION
    EXPECT_TRUE(attention_is_packed(in.qkv.detach().requires_grad_(true), shape_of(c))) << c.name << ": not by cuDNN";
#else
    if (c.window < c.seq_len) continue;  // torch has no deterministic kernel for a mask
#endif
    const auto [out, d_qkv] = differentiate(plain, in.qkv, in.d_out, c);
    EXPECT_LT(relative(d_qkv, free_d_qkv.to(at::kFloat)), 0.02) << c.name;
    for (int again = 0; again < 5; ++again) {
      const auto [same, d_same] = differentiate(plain, in.qkv, in.d_out, c);
      EXPECT_TRUE(at::equal(out, same)) << c.name;
      EXPECT_TRUE(at::equal(d_qkv, d_same)) << c.name;
    }
  }
}

TEST(AttentionOnGpu, ReplaysAsACudaGraph) {
  SKIP_WITHOUT_BF16_GPU();
  const c10::cuda::CUDAStreamGuard side(c10::cuda::getStreamFromPool());
  for (const Case& c : kGpuCases) {
    const Inputs in(c);
    const auto [want, d_want] = differentiate(plain, in.qkv, in.d_out, c);
    const Tensor leaf = at::zeros_like(in.qkv).requires_grad_(true), d_out = at::zeros_like(in.d_out);
    Tensor out, d_qkv;
    const auto work = [&] {
      out = attention(leaf, shape_of(c));
      d_qkv = torch::autograd::grad({out}, {leaf}, {d_out})[0];
    };
    work();
    side.current_stream().synchronize();
    at::cuda::CUDAGraph graph;
    graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    work();
    graph.capture_end();
    leaf.detach().copy_(in.qkv);
    d_out.copy_(in.d_out);
    for (int replay = 0; replay < 2; ++replay) {
      graph.replay();
      EXPECT_TRUE(at::equal(out.detach(), want)) << c.name;
      if (has_own_backward(c)) {
        EXPECT_TRUE(at::equal(d_qkv, d_want)) << c.name;
      } else {
        EXPECT_LT(relative(d_qkv, d_want.to(at::kFloat)), 1e-3) << c.name;  // cuDNN sums dq in any order
      }
    }
  }
}
#endif

}  // namespace
}  // namespace switchyard::ops
