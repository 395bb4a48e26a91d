// Each kernel at the sizes of a d12 8x2 micro-batch of 65,536 tokens.
#include <algorithm>
#include <numeric>

#include "bench/attention_timings.h"
#include "bench/device_clock.h"
#include "bench/kernel_timings.h"
#include "bench/routing_timings.h"
#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/add_norm.h"
#include "kernels/add_norm_router.h"
#include "kernels/cross_entropy.h"
#include "kernels/device.h"
#include "kernels/dispatch.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/grouped_gemm.h"
#include "kernels/muon.h"
#include "kernels/product_chain.h"
#include "kernels/qkv_rope.h"
#include "kernels/router_logits.h"
#include "kernels/step_guard.h"

namespace switchyard::bench {
namespace {

constexpr int kT = 65536, kD = 768, kC = 64, kH = 12, kS = 1024, kE = 8, kK = 2, kR = kT * kK, kN = 1536, kV = 32768;
constexpr int kLossRows = 8192;         // a chunk of the head's
constexpr double kRow = 2.0 * kT * kD;  // bytes of one [T, D] in bf16

void time_norm_and_rope(Clock& clock) {
  const std::size_t size = static_cast<std::size_t>(kT) * kD;
  const Filled<bf16> x(size), delta(size), x0(size), d_normed(size), qkv(3 * size), d_qkv(3 * size);
  const Filled<float> gain(kD), scalars(2), sums(2 + kD), table(kS * kC / 2);
  Filled<bf16> residual(size);
  Buffer<bf16> normed(size), q(size), gate(static_cast<std::size_t>(kT) * kH);
  Filled<float> inverse(kT);
  Buffer<float> scratch(kernels::add_norm_scratch(kT, kD));
  kernels::AddNorm<bf16> a{x.get(),        delta.get(),  nullptr,       nullptr, nullptr, nullptr,
                           residual.get(), normed.get(), inverse.get(), kT,      kD,      1e-6f};
  clock.time("add_norm", 4 * kRow, [&](Stream s) { kernels::add_norm(a, s); });
  a.x0 = x0.get(), a.keep = scalars.get(), a.again = scalars.get() + 1;
  clock.time("add_norm with x0", 5 * kRow, [&](Stream s) { kernels::add_norm(a, s); });
  kernels::AddNormBackward<bf16> b{};
  b.d_residual = x.get(), b.d_normed = d_normed.get(), b.residual = residual.get(), b.inverse_rms = inverse.get();
  b.d_x = normed.get(), b.tokens = kT, b.width = kD, b.scratch = scratch.get();
  clock.time("add_norm_backward", 4 * kRow, [&](Stream s) { kernels::add_norm_backward(b, s); });
  b.gain = gain.get(), b.d_gain = sums.get() + 2;
  clock.time("add_norm_backward with gain", 4 * kRow, [&](Stream s) { kernels::add_norm_backward(b, s); });
  b.gain = nullptr, b.d_gain = nullptr;
  b.x0 = x0.get(), b.keep = scalars.get(), b.again = scalars.get() + 1;
  b.d_x0 = q.get(), b.d_keep = sums.get(), b.d_again = sums.get() + 1;
  clock.time("add_norm_backward with x0 and scalars", 6 * kRow, [&](Stream s) { kernels::add_norm_backward(b, s); });
  b.add_d_x0 = true;
  clock.time("add_norm_backward, adding to d_x0", 7 * kRow, [&](Stream s) { kernels::add_norm_backward(b, s); });

  const kernels::QkvHeads heads{kT, kS, kH, kH, kC};
  Buffer<float> norms(static_cast<std::size_t>(kT) * 2 * kH);
  clock.time("qkv_rope", 4 * kRow, [&](Stream s) {
    kernels::qkv_rope<bf16>({heads, d_qkv.get(), norms.get(), table.get(), table.get(), 1e-6f}, s);
  });
  clock.time("qkv_rope_backward", 6 * kRow, [&](Stream s) {
    kernels::qkv_rope_backward<bf16>({heads, qkv.get(), norms.get(), table.get(), table.get(), d_qkv.get()}, s);
  });
  clock.time("value_embeddings", 3 * kRow, [&](Stream s) {
    kernels::value_embeddings<bf16>({heads, d_qkv.get(), x.get(), x0.get()}, s);
  });
  clock.time("value_embeddings_backward", 3 * kRow, [&](Stream s) {
    kernels::value_embeddings_backward<bf16>({heads, qkv.get(), x.get(), x0.get(), q.get(), gate.get()}, s);
  });
}

void time_activation(Clock& clock) {
  using kernels::ActivationKind;
  const std::size_t size = static_cast<std::size_t>(kR) * kN;
  const double bytes = 2.0 * size;
  const Filled<bf16> pre(size), d_out(size);
  const Filled<float> weight(kR);
  Buffer<bf16> out(size), d_pre(size);
  Buffer<float> d_weight(kR);
  for (const auto& [kind, name] : {std::pair{ActivationKind::kRelu2, "relu2"}, {ActivationKind::kGelu, "gelu"}}) {
    const kernels::Activation<bf16> a{pre.get(), nullptr, nullptr, nullptr, out.get(), kR, kN, kind};
    const kernels::ActivationBackward<bf16> b{pre.get(), d_out.get(),    weight.get(), nullptr, nullptr, d_pre.get(),
                                              out.get(), d_weight.get(), kR,           kN,      kind};
    clock.time((std::string("activation ") + name).c_str(), 2 * bytes, [&](Stream s) { kernels::activation(a, s); });
    clock.time((std::string("activation_backward ") + name).c_str(), 4 * bytes,
               [&](Stream s) { kernels::activation_backward(b, s); });
  }
  const int half = kN / 2;
  const kernels::Activation<bf16> a{pre.get(), nullptr, nullptr, nullptr, out.get(), kR, half, ActivationKind::kSwiglu};
  const kernels::ActivationBackward<bf16> b{
      pre.get(), d_out.get(), weight.get(),           nullptr, nullptr, d_pre.get(), out.get(), d_weight.get(),
      kR,        half,        ActivationKind::kSwiglu};
  clock.time("activation swiglu", 1.5 * bytes, [&](Stream s) { kernels::activation(a, s); });
  clock.time("activation_backward swiglu", 3 * bytes, [&](Stream s) { kernels::activation_backward(b, s); });
}

void time_router_logits(Clock& clock, int experts) {
  const std::size_t size = static_cast<std::size_t>(kT) * kD;
  const Filled<bf16> x(size), d_x(size);
  const Filled<float> w(static_cast<std::size_t>(experts) * kD), d_w(static_cast<std::size_t>(experts) * kD),
      d_logits(static_cast<std::size_t>(kT) * experts);
  Buffer<float> logits(static_cast<std::size_t>(kT) * experts),
      scratch(kernels::router_logits_scratch(kT, kD, experts));
  const double logit_bytes = 4.0 * kT * experts;
  const std::string of = " E " + std::to_string(experts);
  clock.time(("router_logits" + of).c_str(), kRow + logit_bytes, [&](Stream s) {
    kernels::router_logits(kernels::RouterLogits<bf16>{x.get(), w.get(), logits.get(), kT, kD, experts}, s);
  });
  clock.time(("router_logits_backward" + of).c_str(), 3 * kRow + 2 * logit_bytes, [&](Stream s) {
    kernels::router_logits_backward(kernels::RouterLogitsBackward<bf16>{x.get(), w.get(), d_logits.get(), d_x.get(),
                                                                        d_w.get(), scratch.get(), kT, kD, experts},
                                    s);
  });
}

void time_add_norm_router(Clock& clock, int experts) {
  if (!kernels::add_norm_takes_router<bf16>(kD, experts)) return;
  const std::size_t size = static_cast<std::size_t>(kT) * kD, pairs = static_cast<std::size_t>(kT) * experts;
  const Filled<bf16> x(size), delta(size), d_normed(size), residual(size);
  const Filled<float> w(static_cast<std::size_t>(experts) * kD), d_w(static_cast<std::size_t>(experts) * kD),
      d_logits(pairs), logits(pairs), inverse(kT);
  Buffer<bf16> normed(size);
  Buffer<float> scratch(kernels::add_norm_router_scratch(kT, kD, experts));
  const double logit_bytes = 4.0 * kT * experts;
  const std::string of = " E " + std::to_string(experts);
  const kernels::AddNormRouter<bf16> a{x.get(),       delta.get(),  nullptr, w.get(), residual.get(), normed.get(),
                                       inverse.get(), logits.get(), kT,      kD,      experts,        1e-6f};
  clock.time(("add_norm_router" + of).c_str(), 4 * kRow + logit_bytes,
             [&](Stream s) { kernels::add_norm_router(a, s); });
  const kernels::AddNormRouterBackward<bf16> b{
      x.get(), d_normed.get(), d_logits.get(), residual.get(), delta.get(), inverse.get(), logits.get(),
      nullptr, w.get(),        normed.get(),   d_w.get(),      nullptr,     scratch.get(), kT,
      kD,      experts};
  const int passes = experts > kernels::kFusedWeightExperts ? 5 : 4;
  clock.time(("add_norm_router_backward" + of).c_str(), passes * kRow + 2 * logit_bytes,
             [&](Stream s) { kernels::add_norm_router_backward(b, s); });
}

struct LayerShape {
  const char* name;
  int tokens, width, hidden, experts, top_k;
  double spread;  // of the experts' counts: 0 even, 1 from nothing to twice the mean
};

using Act = kernels::GroupedActivation;

// The six products of a relu^2 layer, and SwiGLU's that differ.
void time_grouped(Clock& clock, const LayerShape& c) {
  const int R = c.tokens * c.top_k, A = kernels::grouped_alignment(R, c.experts), D = c.width, N = c.hidden;
  const std::int64_t capacity = (static_cast<std::int64_t>(R) + c.experts * (A - 1) + A - 1) / A * A;
  std::vector<int> choice(R);
  std::vector<double> share(c.experts);
  double all = 0;
  for (int e = 0; e < c.experts; ++e) all += share[e] = 1 + c.spread * (2.0 * e / std::max(1, c.experts - 1) - 1);
  std::uint32_t state = 1;
  for (int& e : choice) {
    state = state * 1664525u + 1013904223u;
    double at = (state >> 8) / 16777216.0 * all;
    for (e = 0; e + 1 < c.experts && at >= share[e]; ++e) at -= share[e];
  }
  const Buffer<int> expert(choice);
  Buffer<int> count(c.experts), offset(c.experts + 1), end(c.experts), token_of_row(capacity), row_of(R),
      scratch(kernels::dispatch_scratch(c.tokens, c.top_k, c.experts)), tiles(capacity / A), order(c.experts),
      scheduler(2);
  kernels::dispatch(
      {expert.get(), count.get(), offset.get(), end.get(), token_of_row.get(), row_of.get(), scratch.get(), c.tokens,
       c.top_k, c.experts, A, capacity, tiles.get(), order.get(), scheduler.get()},
      nullptr);
  const kernels::RowGroups groups{offset.get(),    count.get(), tiles.get(), order.get(),
                                  scheduler.get(), c.experts,   A,           capacity};
  const std::size_t matrix = static_cast<std::size_t>(c.experts) * D * N;
  const Filled<bf16> x(static_cast<std::size_t>(c.tokens) * D), up(matrix), down(matrix);
  Filled<bf16> wide(static_cast<std::size_t>(capacity) * N), active(wide.device.size()),
      narrow(static_cast<std::size_t>(capacity) * D);
  Filled<float> grad(matrix), weight(capacity);
  Buffer<float> dot(static_cast<std::size_t>(kernels::grouped_dot_parts(N)) * capacity);
  const double flops = 2.0 * R * D * N;
  const auto time = [&](const char* what, auto call) {
    clock.time_product(std::string(c.name) + ": " + what, flops, call);
  };
  const int* index = token_of_row.get();
  time("up, gathered, relu2", [&](Stream s) {
    kernels::grouped_forward({groups, x.get(), index, up.get(), wide.get(), D, N, Act::kRelu2, weight.get()}, s);
  });
  time("up, gathered and kept, relu2", [&](Stream s) {
    kernels::grouped_forward(
        {groups, x.get(), index, up.get(), wide.get(), D, N, Act::kRelu2, weight.get(), nullptr, narrow.get()}, s);
  });
  time("up, gathered", [&](Stream s) {
    kernels::grouped_forward({groups, x.get(), index, up.get(), wide.get(), D, N}, s);
  });
  {
    const Filled<bf16> gated(2 * matrix), pre(2 * wide.device.size());
    Buffer<bf16> gradients(2 * wide.device.size());
    Buffer<float> parts(static_cast<std::size_t>(kernels::grouped_dot_parts(N)) * capacity);
    clock.time_product(std::string(c.name) + ": up, gathered, swiglu", 2 * flops, [&](Stream s) {
      kernels::grouped_forward(
          {groups, x.get(), index, gated.get(), wide.get(), D, N, Act::kSwiglu, weight.get(), pre.get()}, s);
    });
    time("down dgrad, gathered, swiglu backward", [&](Stream s) {
      kernels::grouped_dgrad({groups, x.get(), index, down.get(), gradients.get(), pre.get(), weight.get(), parts.get(),
                              D, N, Act::kSwiglu},
                             s);
    });
  }
  time("down", [&](Stream s) {
    kernels::grouped_forward({groups, wide.get(), nullptr, down.get(), narrow.get(), N, D}, s);
  });
  time("down dgrad, gathered, relu2 backward", [&](Stream s) {
    kernels::grouped_dgrad(
        {groups, x.get(), index, down.get(), wide.get(), active.get(), weight.get(), dot.get(), D, N, Act::kRelu2}, s);
  });
  time("down dgrad, gathered and kept, relu2 backward", [&](Stream s) {
    kernels::grouped_dgrad({groups, x.get(), index, down.get(), wide.get(), active.get(), weight.get(), dot.get(), D, N,
                            Act::kRelu2, narrow.get()},
                           s);
  });
  time("down dgrad, gathered", [&](Stream s) {
    kernels::grouped_dgrad({groups, x.get(), index, down.get(), wide.get(), nullptr, nullptr, nullptr, D, N}, s);
  });
  time("up dgrad", [&](Stream s) {
    kernels::grouped_dgrad({groups, wide.get(), nullptr, up.get(), narrow.get(), nullptr, nullptr, nullptr, N, D}, s);
  });
  time("up wgrad", [&](Stream s) { kernels::grouped_wgrad({groups, wide.get(), narrow.get(), grad.get(), N, D}, s); });
  time("up wgrad, gathered", [&](Stream s) {
    kernels::grouped_wgrad({groups, wide.get(), x.get(), grad.get(), N, D, nullptr, index}, s);
  });
  time("down wgrad, gathered", [&](Stream s) {
    kernels::grouped_wgrad({groups, x.get(), active.get(), grad.get(), D, N, index}, s);
  });
  time("down wgrad", [&](Stream s) {
    kernels::grouped_wgrad({groups, narrow.get(), active.get(), grad.get(), D, N}, s);
  });
}

void time_loss_and_tables(Clock& clock) {
  const std::size_t logits_size = static_cast<std::size_t>(kLossRows) * kV;
  std::vector<std::int64_t> targets(kT), windows(kT / kS);
  for (int t = 0; t < kT; ++t) targets[t] = (t * 7919ll) % kV;
  const Buffer<std::int64_t> target(targets), window(windows), step(std::vector<std::int64_t>{1});
  {
    Filled<bf16> logits(logits_size);
    Buffer<float> nll(kLossRows);
    kernels::CrossEntropy<bf16> a{logits.get(), target.get(), nll.get(), kLossRows, kV, 15, 1, true};
    clock.time("cross_entropy with gradient", 4.0 * logits_size, [&](Stream s) { kernels::cross_entropy(a, s); });
    a.cap = 0;
    clock.time("cross_entropy with gradient, no cap", 4.0 * logits_size,
               [&](Stream s) { kernels::cross_entropy(a, s); });
    a.cap = 15, a.gradient = false;
    clock.time("cross_entropy, loss alone", 2.0 * logits_size, [&](Stream s) { kernels::cross_entropy(a, s); });
  }
  const std::size_t size = static_cast<std::size_t>(kT) * kD, table_size = static_cast<std::size_t>(kV) * kD;
  const Filled<bf16> x(size), table(table_size);
  const Filled<float> d_table(table_size);
  Buffer<bf16> out(size);
  clock.time("embedding", 2 * kRow, [&](Stream s) {
    kernels::embedding(kernels::Embedding<bf16>{table.get(), target.get(), out.get(), kT, kD}, s);
  });
  std::vector<std::int64_t> positions(kT);
  std::iota(positions.begin(), positions.end(), 0);
  std::stable_sort(positions.begin(), positions.end(), [&](auto a, auto b) { return targets[a] < targets[b]; });
  const Buffer<std::int64_t> order(positions);
  Buffer<float> scratch(kernels::embedding_scratch(kT, kD));
  clock.time("embedding_backward", kRow + 8.0 * kV * kD, [&](Stream s) {
    kernels::embedding_backward(
        kernels::EmbeddingBackward<bf16>{x.get(), target.get(), order.get(), d_table.get(), scratch.get(), kT, kD}, s);
  });
  clock.time("dropout", 2 * kRow, [&](Stream s) {
    kernels::dropout(kernels::Dropout<bf16>{x.get(), out.get(), window.get(), step.get(), 1, 2, kT, kS, kD, 0.1f}, s);
  });
}

void time_optimizers(Clock& clock) {
  const std::size_t table = static_cast<std::size_t>(kV) * kD;
  const Filled<float> weight(table), grad(table), first(table), second(table), one(std::size_t{1});
  Buffer<bf16> copy(table);
  const Buffer<std::int64_t> applied(std::vector<std::int64_t>{10});
  const Buffer<int> apply(std::vector<int>{1});
  std::vector<kernels::AdamwTensor> tensors(1, {weight.get(), grad.get(), first.get(), second.get(), copy.get(),
                                                static_cast<std::int64_t>(table), 1e-3f, 0.8f, 0});
  for (int i = 0; i < 30; ++i)
    tensors.push_back({weight.get() + 8 * i, grad.get(), first.get(), second.get(), nullptr, 1, 0, 0.8f, 0});
  const Buffer<kernels::AdamwTensor> device_tensors(tensors);
  clock.time("adamw, a table and 30 scalars", 30.0 * table, [&](Stream s) {
    kernels::adamw({device_tensors.get(), static_cast<int>(tensors.size()), static_cast<std::int64_t>(table), one.get(),
                    one.get(), applied.get(), apply.get(), 0.95f, 1e-10f},
                   s);
  });

  const auto whole = static_cast<std::int64_t>(table);
  const Buffer<kernels::SquareRange> ranges(std::vector<kernels::SquareRange>{{grad.get(), whole}});
  Buffer<float> square_parts(kernels::sum_of_squares_parts(1, whole)), sum(1);
  clock.time("sum_of_squares", 4.0 * table, [&](Stream s) {
    kernels::sum_of_squares({ranges.get(), 1, whole, square_parts.get(), sum.get()}, s);
  });

  const int count = 16, rows = 1536, cols = 768;
  const std::size_t size = static_cast<std::size_t>(rows) * cols;
  std::vector<kernels::MuonMatrix> matrices;
  for (int i = 0; i < count; ++i)
    matrices.push_back({weight.get() + i * size, grad.get() + i * size, first.get() + i * size, copy.get() + i * size});
  const Buffer<kernels::MuonMatrix> device_matrices(matrices);
  Buffer<fp16> direction(size * count);
  Buffer<int> progress(std::vector<int>(count + 1, 0));
  Buffer<float> parts(kernels::muon_norm_parts(rows, cols) * count);
  const kernels::MuonBatch batch{device_matrices.get(), count, rows, cols};
  const double elements = static_cast<double>(size) * count;
  clock.time("muon_prepare", 14 * elements, [&](Stream s) {
    kernels::muon_prepare(
        {batch, direction.get(), parts.get(), progress.get(), one.get(), one.get(), apply.get(), true, 1.02f, 1e-6f},
        s);
  });
  clock.time("muon_apply", 12 * elements, [&](Stream s) {
    kernels::muon_apply({batch, direction.get(), one.get(), one.get(), apply.get(), 1e-3f, 1e-4f, true}, s);
  });
}

// The products of Polar Express for the expert matrices of d12 8x2, all layers at once. FLOPs of the computed tiles.
void time_products(Clock& clock) {
  const int count = 96, S = 768, L = 1536;
  const std::size_t small = static_cast<std::size_t>(count) * S * S, large = static_cast<std::size_t>(count) * S * L;
  const Filled<fp16> x(large), g(small), y(small);
  Buffer<fp16> out(large), square(small), other(small);
  Buffer<int> progress(static_cast<std::size_t>(count) + 1);
  // Three tiles of 256 below the diagonal, three on it, of each of which 10 of 16 squares of 64 are computed.
  const double cube = 2.0 * count * S * S * S, half = (3 + 3 * 10.0 / 16) / 9 * cube;
  const auto time = [&](const char* name, double flops, const std::vector<kernels::Product>& chain) {
    clock.time_product(name, flops, [&](Stream s) {
      kernels::product_chain({chain.data(), static_cast<int>(chain.size()), count, progress.get()}, s);
    });
  };
  using Lies = kernels::ProductOperand;
  const kernels::Product gram{x.get(), x.get(),         nullptr,       square.get(), S,       S,
                              L,       Lies::kStraight, Lies::kTurned, true,         1.0f / L};
  time("product X X'", 2 * half, {gram});
  time("product X' X", 2 * half,
       {{x.get(), x.get(), nullptr, square.get(), S, S, L, Lies::kTurned, Lies::kStraight, true, 1.0f / L}});
  const auto squared = [&](const fp16* of, const fp16* with, fp16* to) {
    return kernels::Product{of,   of,   with, to,  S, S, S, Lies::kSymmetric, Lies::kSymmetric,
                            true, 0.1f, 0.1f, 0.5f};  // stays in fp16
  };
  time("product G G + G + I", half, {squared(g.get(), g.get(), square.get())});
  time("product Y Y + G + I", half, {squared(y.get(), g.get(), square.get())});
  const auto last = [&](const fp16* factor) {
    return kernels::Product{factor, x.get(), nullptr, out.get(), S, L, S, Lies::kSymmetric, Lies::kStraight, false};
  };
  time("product Y X", 2 * cube, {last(y.get())});
  time("product X Y", 2 * cube,
       {{x.get(), y.get(), nullptr, out.get(), L, S, S, Lies::kStraight, Lies::kSymmetric, false}});
  Buffer<fp16> third(small);
  time("product chain of degree 17", 5 * half + 2 * cube,
       {gram, squared(square.get(), square.get(), other.get()), squared(other.get(), square.get(), third.get()),
        squared(third.get(), square.get(), other.get()), last(other.get())});
}

}  // namespace

std::vector<KernelTiming> time_kernels(double product_rate, const std::string& only) {
  const kernels::DeviceInfo device = kernels::device_info(0);
  Clock clock(product_rate, only);
  time_norm_and_rope(clock);
  for (const int window : {kS, kS / 2}) time_attention(clock, kT / kS, {kS, kH, kH, kC, window});
  time_activation(clock);
  for (const int experts : {kE, 16, 32, 64, 128}) time_router_logits(clock, experts);
  for (const int experts : {kE, 16, 32}) time_add_norm_router(clock, experts);
  time_routing(clock, {kT, kD, kN, kE, kK, " E 8 K 2"});
  time_routing(clock, {kT, kD, 768, 32, 4, " E 32 K 4"});
  time_routing(clock, {16384, kD, 384, 64, 8, " E 64 K 8"});
  time_routing(clock, {kT, kD, 384, 64, 8, " E 64 K 8 T 65536"});
  time_routing(clock, {32768, 2048, 1024, 64, 8, " E 64 K 8 D 2048"});
  if (kernels::runs_hopper_kernels(device.capability_major, device.capability_minor))
    for (const LayerShape& shape : {LayerShape{"8x2 even", kT, kD, kN, 8, 2, 0},
                                    {"8x2 uneven", kT, kD, kN, 8, 2, 0.5},
                                    {"32x4", kT, kD, 768, 32, 4, 0.3},
                                    {"64x8", kT, kD, 384, 64, 8, 0.3},
                                    {"128x8 of 256", 40960, kD, 256, 128, 8, 0.3},
                                    {"32x2 of 1024", 40960, kD, 1024, 32, 2, 0.3},
                                    {"d20 8x2", 32768, 1280, 2560, 8, 2, 0.3},
                                    {"dense", kT, kD, 4 * kD, 1, 1, 0}})
      time_grouped(clock, shape);
  time_loss_and_tables(clock);
  time_optimizers(clock);
  if (kernels::runs_hopper_kernels(device.capability_major, device.capability_minor)) time_products(clock);
  return clock.timings();
}

}  // namespace switchyard::bench
