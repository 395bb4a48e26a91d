#include "bench/routing_timings.h"
#include "kernels/add_norm.h"
#include "kernels/add_norm_router.h"
#include "kernels/choice.h"
#include "kernels/dispatch.h"
#include "kernels/dropout.h"
#include "kernels/jitter.h"
#include "kernels/noise.h"
#include "kernels/reroute.h"
#include "kernels/router.h"
#include "kernels/row_norms.h"
#include "kernels/zero_experts.h"

namespace switchyard::bench {
namespace {

constexpr int kSequence = 1024, kAlignment = 128;

// What every kernel here reads or writes.
struct Routed {
  const int T, D, E, K, R;
  const std::int64_t capacity;
  const Filled<float> logits;
  Buffer<int> expert, count, offset, end, token_of_row, row_of;
  Buffer<float> weight;

  explicit Routed(const RoutingTimings& c)
      : T(c.tokens),
        D(c.width),
        E(c.experts),
        K(c.top_k),
        R(T * K),
        capacity((static_cast<std::int64_t>(R) + E * (kAlignment - 1) + kAlignment - 1) / kAlignment * kAlignment),
        logits(static_cast<std::size_t>(T) * E),
        expert(R),
        count(E),
        offset(E + 1),
        end(E),
        token_of_row(capacity),
        row_of(R),
        weight(R) {}
  double logit_bytes() const { return 4.0 * T * E; }
  double choice_bytes() const { return 8.0 * R; }
};

void time_scores(Clock& clock, const Routed& r, const std::string& of) {
  const Filled<float> d_weight(r.R), d_prob(r.E), bias(r.E), q(static_cast<std::size_t>(r.T) * r.E);
  const Buffer<unsigned char> real(std::vector<unsigned char>(r.T, 1));
  Buffer<float> prob(r.E), importance(r.E), z(1), scratch(kernels::router_scratch(r.T, r.T, r.E)),
      d_logits(static_cast<std::size_t>(r.T) * r.E);
  kernels::RouterScores<float> a{r.logits.get(),
                                 nullptr,
                                 r.expert.get(),
                                 r.weight.get(),
                                 r.count.get(),
                                 prob.get(),
                                 importance.get(),
                                 z.get(),
                                 scratch.get(),
                                 r.T,
                                 r.T,
                                 r.E,
                                 r.K,
                                 kSequence,
                                 kernels::Score::kSoftmax,
                                 true,
                                 true,
                                 1};
  const double bytes = r.logit_bytes() + r.choice_bytes();
  a.selection_bias = bias.get(), a.real = reinterpret_cast<const bool*>(real.get());
  clock.time("router_scores, bias, padding" + of, bytes + r.T, [&](Stream s) { kernels::router_scores(a, s); });
  a.selection_bias = nullptr, a.selection = q.get();
  clock.time("router_scores, given q, padding" + of, bytes + r.logit_bytes() + r.T,
             [&](Stream s) { kernels::router_scores(a, s); });
  // Last, so that the kernels after it get the choice that the logits give.
  a.selection = nullptr, a.real = nullptr;
  clock.time("router_scores" + of, bytes, [&](Stream s) { kernels::router_scores(a, s); });
  const kernels::RouterScoresBackward<float> b{r.logits.get(),
                                               r.expert.get(),
                                               d_weight.get(),
                                               d_prob.get(),
                                               nullptr,
                                               nullptr,
                                               d_logits.get(),
                                               r.T,
                                               r.T,
                                               r.E,
                                               r.K,
                                               kernels::Score::kSoftmax,
                                               true,
                                               1};
  clock.time("router_scores_backward" + of, bytes + r.logit_bytes(),
             [&](Stream s) { kernels::router_scores_backward(b, s); });
}

void time_rows(Clock& clock, const Routed& r, const std::string& of) {
  Buffer<int> scratch(kernels::dispatch_scratch(r.T, r.K, r.E));
  Buffer<float> to_rows(r.capacity);
  const kernels::Dispatch d{r.expert.get(),
                            r.count.get(),
                            r.offset.get(),
                            r.end.get(),
                            r.token_of_row.get(),
                            r.row_of.get(),
                            scratch.get(),
                            r.T,
                            r.K,
                            r.E,
                            kAlignment,
                            r.capacity};
  clock.time("dispatch" + of, 12.0 * r.R, [&](Stream s) { kernels::dispatch(d, s); });
  const kernels::AssignmentValues to{r.weight.get(), r.row_of.get(), r.token_of_row.get(), to_rows.get(), r.R,
                                     r.capacity};
  clock.time("values_to_rows" + of, 16.0 * r.R, [&](Stream s) { kernels::values_to_rows(to, s); });

  const Filled<bf16> x(static_cast<std::size_t>(r.T) * r.D);
  Filled<bf16> rows(static_cast<std::size_t>(r.capacity) * r.D);
  Buffer<bf16> out(static_cast<std::size_t>(r.T) * r.D);
  const double bytes = 2.0 * r.R * r.D * (1 + 1.0 / r.K);
  const kernels::PermuteRows<bf16> g{
      x.get(), r.row_of.get(), r.token_of_row.get(), r.offset.get() + r.E, rows.get(), r.T, r.K, r.D, r.capacity};
  const kernels::Combine<bf16> c{rows.get(), r.row_of.get(), out.get(), r.T, r.K, r.D};
  clock.time("permute_rows" + of, bytes, [&](Stream s) { kernels::permute_rows(g, s); });
  clock.time("combine" + of, bytes, [&](Stream s) { kernels::combine(c, s); });
  Buffer<bf16> residual(x.device.size());
  Buffer<float> inverse(r.T);
  const kernels::AddNorm<bf16> n{x.get(),
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 residual.get(),
                                 out.get(),
                                 inverse.get(),
                                 r.T,
                                 r.D,
                                 1e-6f,
                                 {rows.get(), r.row_of.get(), r.K}};
  clock.time("add_norm of rows" + of, bytes * (r.K + 3) / (r.K + 1), [&](Stream s) { kernels::add_norm(n, s); });
}

// The experts' gradient of their input, summed by a pass of its own and read by the kernel before them, or summed by
// it.
void time_row_gradient(Clock& clock, const Routed& r, const std::string& of) {
  if (!kernels::add_norm_takes_router<bf16>(r.D, r.E)) return;
  const std::size_t size = static_cast<std::size_t>(r.T) * r.D, weights = static_cast<std::size_t>(r.E) * r.D;
  const Filled<bf16> rows(static_cast<std::size_t>(r.capacity) * r.D), x(size), d_residual(size);
  Buffer<bf16> sum(size), d_x(size);
  const Filled<float> w(weights), d_w(weights), d_logits(static_cast<std::size_t>(r.T) * r.E), inverse(r.T);
  const kernels::Combine<bf16> combine{rows.get(), r.row_of.get(), sum.get(), r.T, r.K, r.D};
  const kernels::RowSum<bf16> row_sum{rows.get(), r.row_of.get(), r.K};
  const double pass = 2.0 * size, logits = 2 * r.logit_bytes(),
               read = (r.K + (r.E > kernels::kFusedWeightExperts)) * pass;
  Buffer<float> scratch(kernels::add_norm_router_scratch(r.T, r.D, r.E));
  kernels::AddNormRouterBackward<bf16> a{d_residual.get(),
                                         nullptr,
                                         d_logits.get(),
                                         x.get(),
                                         x.get(),
                                         inverse.get(),
                                         r.logits.get(),
                                         nullptr,
                                         w.get(),
                                         d_x.get(),
                                         d_w.get(),
                                         nullptr,
                                         scratch.get(),
                                         r.T,
                                         r.D,
                                         r.E};
  auto plain = a;
  plain.d_normed = sum.get();
  clock.time("combine, then add_norm_router_backward" + of, read + 5 * pass + logits, [&](Stream s) {
    kernels::combine(combine, s);
    kernels::add_norm_router_backward(plain, s);
  });
  clock.time("add_norm_router_backward with rows" + of, read + 3 * pass + logits,
             [&](Stream s) { kernels::add_norm_router_backward(a, s, row_sum); });
}

void time_noise(Clock& clock, const Routed& r, const std::string& of) {
  std::vector<std::int64_t> windows(r.T / kSequence);
  for (std::size_t i = 0; i < windows.size(); ++i) windows[i] = static_cast<std::int64_t>(i);
  const Buffer<std::int64_t> window(windows), step(std::vector<std::int64_t>{1});
  Buffer<float> out(static_cast<std::size_t>(r.T) * r.D);
  kernels::NoiseDraw draw{out.get(), window.get(), step.get(), 1, 2, r.T, kSequence, r.E, kernels::Noise::kGumbel};
  clock.time("noise, gumbel" + of, r.logit_bytes(), [&](Stream s) { kernels::noise(draw, s); });
  draw.columns = r.D, draw.kind = kernels::Noise::kUniform;
  clock.time("noise, uniform of every channel" + of, 4.0 * r.T * r.D, [&](Stream s) { kernels::noise(draw, s); });
}

// In groups of two experts or more, of which a token takes half.
void time_choice(Clock& clock, const Routed& r, const std::string& of) {
  std::vector<std::int64_t> windows(r.T / kSequence);
  for (std::size_t i = 0; i < windows.size(); ++i) windows[i] = static_cast<std::int64_t>(i);
  const Buffer<std::int64_t> window(windows), step(std::vector<std::int64_t>{1});
  const Filled<float> bias(r.E);
  Buffer<float> q(static_cast<std::size_t>(r.T) * r.E);
  const int groups = r.E < 16 ? r.E / 2 : 8;
  kernels::ChoiceScores<float> a{
      r.logits.get(),
      bias.get(),
      nullptr,
      q.get(),
      r.T,
      r.E,
      r.E,
      kernels::Score::kSigmoid,
      0,
      {nullptr, window.get(), step.get(), 1, 2, r.T, kSequence, r.E, kernels::Noise::kGumbel},
      groups,
      groups / 2,
      true,
      r.K,
      kSequence,
      0,
      true};
  clock.time("choice_scores, bias, groups" + of, 2 * r.logit_bytes(), [&](Stream s) { kernels::choice_scores(a, s); });
  a.noise_scale = 1;
  clock.time("choice_scores, Gumbel, bias, groups" + of, 2 * r.logit_bytes(),
             [&](Stream s) { kernels::choice_scores(a, s); });
}

// What reads the layer's input beside the experts: the jitter of the router, the norms that say who is dropped, and
// a copy and a constant that one in nine assignments goes to.
void time_input(Clock& clock, const Routed& r, const std::string& of) {
  std::vector<std::int64_t> windows(r.T / kSequence);
  for (std::size_t i = 0; i < windows.size(); ++i) windows[i] = static_cast<std::int64_t>(i);
  const Buffer<std::int64_t> window(windows), step(std::vector<std::int64_t>{1});
  const Filled<bf16> x(static_cast<std::size_t>(r.T) * r.D), dy(static_cast<std::size_t>(r.T) * r.D);
  Filled<bf16> out(static_cast<std::size_t>(r.T) * r.D);
  Buffer<float> norm(r.T);
  const double pass = 2.0 * r.T * r.D;
  const kernels::NoiseDraw draw{nullptr, window.get(), step.get(), 1, 2, r.T, kSequence, r.D, kernels::Noise::kUniform};
  clock.time("jitter" + of, 2 * pass, [&](Stream s) {
    kernels::jitter(kernels::Jitter<bf16>{x.get(), nullptr, out.get(), draw, r.T, r.D, 0.01f}, s);
  });
  clock.time("jitter, backward" + of, 3 * pass, [&](Stream s) {
    kernels::jitter(kernels::Jitter<bf16>{x.get(), out.get(), out.get(), draw, r.T, r.D, 0.01f}, s);
  });
  clock.time("row_norms" + of, pass + 4.0 * r.T, [&](Stream s) {
    kernels::row_norms(kernels::RowNorms<bf16>{x.get(), norm.get(), r.T, r.D}, s);
  });

  std::vector<int> expert(r.R);
  for (int i = 0; i < r.R; ++i) expert[i] = (i / r.K * 7 + i % r.K) % 9 - 1;
  const Buffer<int> device_expert(expert);
  const Filled<float> weight(r.R), map(2 * r.D), vector(r.D);
  Buffer<float> d_weight(r.R), coefficient(2 * static_cast<std::size_t>(r.T)), sums(2 * r.D),
      scratch(kernels::zero_expert_scratch(r.T, r.D, 1));
  double chosen = 0;  // tokens
  for (int t = 0; t < r.T; ++t) {
    bool any = false;
    for (int k = 0; k < r.K; ++k) any |= expert[t * r.K + k] == 7;
    chosen += any;
  }
  const double row = 2.0 * r.D * chosen;
  for (const bool constant : {false, true}) {
    const kernels::ZeroExpertChoice choice{device_expert.get(), nullptr, 7, constant ? 7 : 8, 8, -1};
    const std::string name = constant ? ", constant" : ", copy";
    clock.time("zero_experts" + name + of, 3 * row + 4.0 * r.R, [&](Stream s) {
      kernels::zero_experts(kernels::ZeroExperts<bf16>{choice, x.get(), weight.get(), map.get(), vector.get(),
                                                       out.get(), r.T, r.K, r.D, constant},
                            s);
    });
    clock.time("zero_experts_backward" + name + of, (constant ? 6 : 4) * row + 4.0 * r.R, [&](Stream s) {
      kernels::zero_experts_backward(
          kernels::ZeroExpertsBackward<bf16>{choice, x.get(), dy.get(), weight.get(), map.get(), vector.get(),
                                             out.get(), d_weight.get(), coefficient.get(), r.T, r.K, r.D, constant},
          s);
      kernels::zero_expert_sums(kernels::ZeroExpertSums<bf16>{x.get(), dy.get(), coefficient.get(), sums.get(),
                                                              scratch.get(), r.T, r.D, constant},
                                s);
    });
  }
}

// A sixth of the assignments without a place, a quarter of the experts full.
void time_proposals(Clock& clock, const Routed& r, const std::string& of) {
  constexpr int kEvery = 6;
  std::vector<int> held(r.R), room(r.E);
  std::vector<std::uint8_t> dropped(r.R);
  for (int i = 0; i < r.R; ++i) {
    dropped[i] = i % kEvery == 0;
    held[i] = dropped[i] ? -1 : (i / r.K + i % r.K) % r.E;
  }
  for (int e = 0; e < r.E; ++e) room[e] = e % 4 == 0 ? 0 : 100;
  const Buffer<int> device_held(held), device_room(room);
  const Buffer<std::uint8_t> device_dropped(dropped);
  Buffer<int> expert(r.R);
  const kernels::Proposals a{
      r.logits.get(), device_held.get(), device_dropped.get(), device_room.get(), nullptr, expert.get(), r.T, r.K, r.E};
  // All flags, all results, and of every token that asks its scores and what it holds.
  const double asking = static_cast<double>(r.R) / kEvery;
  clock.time("proposals, 1 in 6" + of, 5.0 * r.R + asking * 4.0 * (r.E + r.K),
             [&](Stream s) { kernels::proposals(a, s); });
}

void time_row_dropout(Clock& clock, const Routed& r, int hidden, const std::string& of) {
  std::vector<std::int64_t> ids(r.R);
  for (int i = 0; i < r.R; ++i) ids[i] = i;
  const Buffer<std::int64_t> id(ids), step(std::vector<std::int64_t>{1});
  const Buffer<int> row_count(std::vector<int>{r.R});
  Filled<bf16> rows(static_cast<std::size_t>(r.R) * hidden);
  clock.time("row_dropout" + of, 4.0 * r.R * hidden + 8.0 * r.R, [&](Stream s) {
    kernels::row_dropout(
        kernels::RowDropout<bf16>{rows.get(), id.get(), row_count.get(), step.get(), 1, 2, r.R, hidden, 0.1f}, s);
  });
}

}  // namespace

void time_routing(Clock& clock, const RoutingTimings& shape) {
  const Routed routed(shape);
  time_scores(clock, routed, shape.suffix);
  time_rows(clock, routed, shape.suffix);
  time_row_gradient(clock, routed, shape.suffix);
  time_noise(clock, routed, shape.suffix);
  time_choice(clock, routed, shape.suffix);
  time_input(clock, routed, shape.suffix);
  time_proposals(clock, routed, shape.suffix);
  time_row_dropout(clock, routed, shape.hidden, shape.suffix);
}

}  // namespace switchyard::bench
