// What a choice is made of beside the logits, against the kernels' CPU forms: given scores, biases and padding of
// router_scores, and the noise of ops/noise.h.
#include <algorithm>

#include "harness.h"
#include "kernels/noise.h"
#include "kernels/router.h"

namespace switchyard::gpu_check {
namespace {

using kernels::Noise;
using kernels::Score;

enum class Padding { kNone, kSome, kGroup, kAll };
struct ChoiceCase {
  const char* name;
  int tokens, group_size, experts, top_k, seq_len;
  Score score;
  bool selection, bias, rotate;
  Padding padding;
  int first_position = 0;
};
const std::vector<ChoiceCase> kChoiceCases = {
    {"one token, bias", 1, 1, 8, 2, 1, Score::kSigmoid, false, true, true, Padding::kNone},
    {"one token, padding", 1, 1, 8, 2, 1, Score::kSoftmax, false, true, true, Padding::kAll},
    {"one expert", 77, 77, 1, 1, 11, Score::kSigmoid, false, true, true, Padding::kSome},
    {"bias, padding", 333, 111, 8, 2, 37, Score::kSigmoid, false, true, true, Padding::kSome},
    {"bias, softmax", 130, 130, 33, 4, 13, Score::kSoftmax, false, true, true, Padding::kNone},
    {"bias, identity", 99, 33, 6, 3, 33, Score::kIdentity, false, true, false, Padding::kSome},
    {"given q", 333, 111, 33, 4, 37, Score::kSoftmax, true, false, true, Padding::kNone},
    {"given q, lowest index", 222, 222, 64, 8, 37, Score::kSigmoid, true, false, false, Padding::kSome},
    {"given q sets the bias aside", 96, 32, 16, 2, 32, Score::kSigmoid, true, true, true, Padding::kNone},
    {"every expert chosen", 130, 130, 8, 8, 13, Score::kIdentity, true, false, true, Padding::kSome},
    {"512 experts, 16 chosen", 260, 130, 512, 16, 13, Score::kSigmoid, false, true, true, Padding::kSome},
    {"512 experts, given q", 260, 130, 512, 16, 13, Score::kSoftmax, true, false, true, Padding::kSome},
    {"a group of padding", 512, 128, 64, 8, 128, Score::kSigmoid, false, true, true, Padding::kGroup},
    {"all padding", 256, 64, 16, 2, 64, Score::kSoftmax, true, false, true, Padding::kAll},
    {"cached decoding", 5, 5, 16, 4, 1, Score::kSoftmax, true, false, true, Padding::kNone, 777},
    {"8x2", 65536, 65536, 8, 2, 1024, Score::kSoftmax, true, false, true, Padding::kSome},
    {"64x8 by sequences", 65536, 1024, 64, 8, 1024, Score::kSigmoid, false, true, true, Padding::kSome},
};

struct ChoiceInputs {
  Values logits, q, bias;
  std::vector<unsigned char> real;
};

// The K + 1 largest of score + bias lie apart, so that rounding moves no choice.
bool apart(const ChoiceCase& c, const double* logit, const Values& bias) {
  const double most = *std::max_element(logit, logit + c.experts);
  double sum = 0;
  for (int e = 0; e < c.experts; ++e) sum += std::exp(logit[e] - most);
  Values q(c.experts);
  for (int e = 0; e < c.experts; ++e)
    q[e] = (c.score == Score::kSoftmax   ? std::exp(logit[e] - most) / sum
            : c.score == Score::kSigmoid ? 1 / (1 + std::exp(-logit[e]))
                                         : logit[e]) +
           bias[e];
  std::sort(q.begin(), q.end(), std::greater<>());
  for (int k = 0; k < c.top_k && k + 1 < c.experts; ++k)
    if (q[k] - q[k + 1] < 2e-6) return false;
  return true;
}

ChoiceInputs choice_inputs(const ChoiceCase& c) {
  Random random(53);
  const std::size_t size = static_cast<std::size_t>(c.tokens) * c.experts;
  ChoiceInputs in{random.normal(size), Values(size), random.normal(c.experts, 0.1),
                  std::vector<unsigned char>(c.tokens, 1)};
  const auto round_to_float = [](Values& values) {
    for (double& v : values) v = static_cast<float>(v);
  };
  round_to_float(in.logits), round_to_float(in.bias);
  for (int t = 0; t < c.tokens && !c.selection; ++t) {
    double* logit = &in.logits[static_cast<std::size_t>(t) * c.experts];
    while (!apart(c, logit, in.bias)) {
      Values again = random.normal(c.experts);
      round_to_float(again);
      std::copy(again.begin(), again.end(), logit);
    }
  }
  for (double& v : in.q) {
    const int kind = random.below(8);
    v = kind < 3 ? -INFINITY : kind == 3 ? NAN : random.below(5) - 2;
  }
  for (int t = 0; t < c.tokens; ++t) {
    if (c.padding == Padding::kSome) in.real[t] = random.below(4) != 0;
    if (c.padding == Padding::kGroup) in.real[t] = t / c.group_size != 1;
    if (c.padding == Padding::kAll) in.real[t] = 0;
    for (int e = 0; e < c.experts && !in.real[t]; ++e) in.logits[static_cast<std::size_t>(t) * c.experts + e] = NAN;
  }
  return in;
}

constexpr float kScale = 1.5f;

template <class T>
struct Given {
  const T *logits, *selection;
  const float* bias;
  const bool* real;
};
template <class T>
struct Results {
  int *expert, *count;
  T *weight, *prob_sum, *importance, *z_sum;
};

// What the case leaves out is null.
template <class T>
kernels::RouterScores<T> described(const ChoiceCase& c, const Given<T>& in, const Results<T>& out, float* scratch) {
  return {in.logits,
          c.bias ? in.bias : nullptr,
          out.expert,
          out.weight,
          out.count,
          out.prob_sum,
          out.importance,
          out.z_sum,
          scratch,
          c.tokens,
          c.group_size,
          c.experts,
          c.top_k,
          c.seq_len,
          c.score,
          c.score != Score::kIdentity,
          c.rotate,
          kScale,
          c.first_position,
          c.selection ? in.selection : nullptr,
          c.padding == Padding::kNone ? nullptr : in.real};
}

void check_choice(Report& report, const ChoiceCase& c) {
  const ChoiceInputs in = choice_inputs(c);
  const int groups = c.tokens / c.group_size, R = c.tokens * c.top_k;
  const bool normalize = c.score != Score::kIdentity;
  const Input<float> logits(in.logits), q(in.q), bias(in.bias);
  const Buffer<unsigned char> real(in.real);
  Buffer<int> expert(R), count(groups * c.experts);
  Buffer<float> weight(R), prob(groups * c.experts), importance(c.experts), z(1),
      scratch(kernels::router_scratch(c.tokens, c.group_size, c.experts)), d_logits(in.logits.size());
  const kernels::RouterScores<float> a =
      described<float>(c, {logits.get(), q.get(), bias.get(), reinterpret_cast<const bool*>(real.get())},
                       {expert.get(), count.get(), weight.get(), prob.get(), importance.get(), z.get()}, scratch.get());

  Random random(59);
  const Input<float> d_weight(random.normal(R)), d_prob(random.normal(groups * c.experts)),
      d_importance(random.normal(c.experts)), d_z(random.normal(1, 0.1));
  run_captured([&](Stream s) {
    kernels::router_scores(a, s);
    kernels::router_scores_backward(
        kernels::RouterScoresBackward<float>{logits.get(), expert.get(), d_weight.get(), d_prob.get(),
                                             d_importance.get(), d_z.get(), d_logits.get(), c.tokens, c.group_size,
                                             c.experts, c.top_k, c.score, normalize, kScale},
        s);
  });

  std::vector<int> want_expert(R), want_count(groups * c.experts);
  std::vector<float> want_bias(in.bias.begin(), in.bias.end());
  Values want_weight(R), want_prob(groups * c.experts), want_importance(c.experts), want_z(1), want_d(in.logits.size());
  const kernels::RouterScores<double> want = described<double>(
      c, {in.logits.data(), in.q.data(), want_bias.data(), reinterpret_cast<const bool*>(in.real.data())},
      {want_expert.data(), want_count.data(), want_weight.data(), want_prob.data(), want_importance.data(),
       want_z.data()},
      nullptr);
  kernels::router_scores_cpu(want, {0, c.tokens});
  kernels::router_scores_backward_cpu(
      kernels::RouterScoresBackward<double>{
          in.logits.data(), want_expert.data(), d_weight.host.data(), d_prob.host.data(), d_importance.host.data(),
          d_z.host.data(), want_d.data(), c.tokens, c.group_size, c.experts, c.top_k, c.score, normalize, kScale},
      {0, c.tokens});

  const std::string kernel = "router_scores, q bias padding", backward = "router_scores_backward, padding",
                    name = c.name;
  report.compare(kernel, name + ": expert", values_of(expert), Values(want_expert.begin(), want_expert.end()), kExact);
  report.compare(kernel, name + ": count", values_of(count), Values(want_count.begin(), want_count.end()), kExact);
  report.compare(kernel, name + ": weight", values_of(weight), want_weight, {2e-5, 1e-6});
  report.compare(kernel, name + ": prob_sum", values_of(prob), want_prob, {2e-5, 1e-6});
  report.compare(kernel, name + ": importance", values_of(importance), want_importance, {2e-5, 1e-4});
  report.compare(kernel, name + ": z_sum", values_of(z), want_z, {2e-5, 1e-6});
  report.compare(backward, name, values_of(d_logits), want_d, {2e-5, 1e-5});
  report.expect(kernel, name + ": writes stay inside",
                expert.guard_intact() && weight.guard_intact() && count.guard_intact() && prob.guard_intact() &&
                    importance.guard_intact() && z.guard_intact() && scratch.guard_intact());
  report.expect(backward, name + ": writes stay inside", d_logits.guard_intact());
}

struct NoiseCase {
  const char* name;
  int sequences, seq_len, columns;
  bool of_step;  // one row that all tokens share
};
const std::vector<NoiseCase> kNoiseCases = {
    {"no tokens", 0, 33, 8, false},
    {"one value", 1, 1, 1, false},
    {"odd", 3, 33, 13, false},
    {"4 columns", 3, 33, 4, false},
    {"64 columns", 3, 33, 64, false},
    {"more than a warp takes", 2, 7, 515, false},
    {"a wide input", 2, 65, 2048, false},
    {"8x2", 64, 1024, 8, false},
    {"64x8", 32, 1024, 64, false},
    {"a value of the step", 1, 1, 1, true},
    {"64 of the step", 1, 1, 64, true},
    {"515 of the step", 1, 1, 515, true},
};

void check_noise(Report& report, const NoiseCase& c, Noise kind) {
  const std::int64_t step = 5, rows = c.sequences * c.seq_len;
  std::vector<std::int64_t> windows(c.sequences);
  for (int i = 0; i < c.sequences; ++i) windows[i] = i % 3 == 2 ? 12345678901 + i : 70000 - 7 * i;
  const Buffer<std::int64_t> window(windows), step_on_device(std::vector<std::int64_t>{step});
  Buffer<float> out(rows * c.columns);
  kernels::NoiseDraw draw{
      out.get(), c.of_step ? nullptr : window.get(), step_on_device.get(), 7, 11, rows, c.seq_len, c.columns, kind};
  run_captured([&](Stream s) { kernels::noise(draw, s); });
  std::vector<float> want(rows * c.columns);
  draw.out = want.data(), draw.window = c.of_step ? nullptr : windows.data(), draw.step = &step;
  kernels::noise_cpu(draw, {0, rows});
  report.compare("noise", c.name, values_of(out), Values(want.begin(), want.end()), {2e-5, 5e-6});
  report.expect("noise", std::string(c.name) + ": writes stay inside", out.guard_intact());
}

}  // namespace

void check_selection(Report& report) {
  for (const ChoiceCase& c : kChoiceCases) check_choice(report, c);
  for (const NoiseCase& c : kNoiseCases)
    for (const Noise kind : {Noise::kUniform, Noise::kGumbel, Noise::kGaussian}) check_noise(report, c, kind);
}

}  // namespace switchyard::gpu_check
