// What a router chooses by and what precedes it: choice_scores, jitter, row_norms, against the kernels' CPU forms.
#include <algorithm>

#include "harness.h"
#include "kernels/choice.h"
#include "kernels/jitter.h"
#include "kernels/row_norms.h"

namespace switchyard::gpu_check {
namespace {

using kernels::Noise;
using kernels::Score;

struct ChoiceCase {
  const char* name;
  int sequences, seq_len, experts, zero_experts;
  Score score;
  float noise;
  bool bias, dropped;
  int groups, kept;
  bool sum_of_two, rotate;
  bool ties = false;  // logits of a few values, some NaN
};
const std::vector<ChoiceCase> kChoiceCases = {
    {"no tokens", 0, 8, 8, 0, Score::kSoftmax, 1, true, true, 4, 2, true, true},
    {"one expert", 1, 1, 1, 0, Score::kSigmoid, 1, true, false, 1, 1, true, true},
    {"scores alone", 3, 33, 8, 0, Score::kSoftmax, 0, false, false, 1, 1, true, true},
    {"noise", 3, 33, 13, 0, Score::kSoftmax, 0.5f, false, false, 1, 1, true, true},
    {"groups of one", 3, 33, 8, 1, Score::kSigmoid, 0, true, false, 8, 3, true, true},
    {"greedy, ties", 3, 33, 8, 0, Score::kIdentity, 0, false, false, 4, 2, false, true, true},
    {"lowest index, ties", 3, 33, 12, 0, Score::kIdentity, 0, false, false, 4, 2, true, false, true},
    {"zero experts, ties", 3, 33, 12, 5, Score::kIdentity, 0, true, true, 3, 1, true, true, true},
    {"every group", 3, 33, 64, 0, Score::kSigmoid, 0, true, true, 8, 8, true, true},
    {"33 columns", 5, 7, 30, 3, Score::kSoftmax, 0.5f, true, true, 5, 2, true, true},
    {"128 of 16 groups", 5, 7, 128, 0, Score::kSigmoid, 0.5f, true, true, 16, 4, true, true},
    {"200", 5, 7, 200, 0, Score::kSoftmax, 0, false, true, 200, 9, true, true},
    {"512", 5, 7, 512, 0, Score::kIdentity, 0.5f, true, true, 512, 17, true, true},
    {"512, ties", 5, 7, 512, 0, Score::kIdentity, 0, false, false, 128, 17, true, true, true},
    {"8x2 in 4 groups", 64, 1024, 8, 0, Score::kSoftmax, 1, true, true, 4, 2, true, true},
    {"64x8 in 8 groups", 32, 1024, 64, 0, Score::kSigmoid, 0, true, false, 8, 4, true, true},
};

std::vector<std::int64_t> some_windows(int count) {
  std::vector<std::int64_t> windows(count);
  for (int i = 0; i < count; ++i) windows[i] = i % 3 == 2 ? 12345678901 + i : 70000 - 7 * i;
  return windows;
}

std::vector<float> some_logits(const ChoiceCase& c, std::size_t size) {
  Random random(61);
  const Values normal = random.normal(size);
  std::vector<float> logits(normal.begin(), normal.end());
  for (float& v : logits)
    if (c.ties) v = random.below(9) == 0 ? NAN : static_cast<float>(random.below(3) - 1);
  return logits;
}

// -inf and NaN as numbers that a comparison takes.
Values readable(const std::vector<float>& q) {
  Values out(q.begin(), q.end());
  for (double& v : out) v = std::isnan(v) ? 1e30 : v == -INFINITY ? -1e30 : v;
  return out;
}

// A group on the edge may fall otherwise by rounding: rows whose -inf differ are counted, the others compared.
void check_choice(Report& report, const ChoiceCase& c) {
  const int tokens = c.sequences * c.seq_len, columns = c.experts + c.zero_experts;
  const std::size_t size = static_cast<std::size_t>(tokens) * columns;
  const std::vector<float> host_logits = some_logits(c, size);
  const Values bias_values = Random(67).normal(columns, 0.1);
  const std::vector<float> host_bias(bias_values.begin(), bias_values.end());
  std::vector<unsigned char> host_dropped(c.experts);
  for (int e = 0; e < c.experts; ++e) host_dropped[e] = e % 3 == 1;
  const std::vector<std::int64_t> windows = some_windows(c.sequences);
  const std::int64_t step = 5;
  const Buffer<float> logits(host_logits), bias(host_bias);
  const Buffer<unsigned char> dropped(host_dropped);
  const Buffer<std::int64_t> window(windows), step_on_device(std::vector<std::int64_t>{step});
  Buffer<float> q(size);
  const auto described = [&](const float* l, const float* b, const unsigned char* d, float* out, const std::int64_t* w,
                             const std::int64_t* s) {
    return kernels::ChoiceScores<float>{l,
                                        c.bias ? b : nullptr,
                                        c.dropped ? reinterpret_cast<const bool*>(d) : nullptr,
                                        out,
                                        tokens,
                                        columns,
                                        c.experts,
                                        c.score,
                                        c.noise,
                                        {nullptr, w, s, 7, 11, tokens, c.seq_len, columns, Noise::kGumbel},
                                        c.groups,
                                        c.kept,
                                        c.sum_of_two,
                                        3,
                                        c.seq_len,
                                        2,
                                        c.rotate};
  };
  const auto a = described(logits.get(), bias.get(), dropped.get(), q.get(), window.get(), step_on_device.get());
  run_captured([&](Stream s) { kernels::choice_scores(a, s); });
  std::vector<float> want(size);
  kernels::choice_scores_cpu(
      described(host_logits.data(), host_bias.data(), host_dropped.data(), want.data(), windows.data(), &step),
      {0, tokens});
  const Values all_got = readable(q.download()), all_want = readable(want);
  Values same_got, same_want;
  int moved = 0;
  for (int t = 0; t < tokens; ++t) {
    bool same = true;
    for (int e = 0; e < columns; ++e) {
      const std::size_t i = static_cast<std::size_t>(t) * columns + e;
      same &= (all_got[i] == -1e30) == (all_want[i] == -1e30);
    }
    moved += !same;
    for (int e = 0; e < columns && same; ++e) {
      const std::size_t i = static_cast<std::size_t>(t) * columns + e;
      same_got.push_back(all_got[i]), same_want.push_back(all_want[i]);
    }
  }
  report.compare("choice_scores", c.name, same_got, same_want, {2e-5, 5e-6});
  report.expect("choice_scores", std::string(c.name) + ": the groups of all but a few tokens",
                moved <= (c.ties ? 0 : 1 + tokens / 1000));
  report.expect("choice_scores", std::string(c.name) + ": writes stay inside", q.guard_intact());
}

struct InputCase {
  const char* name;
  int sequences, seq_len, width;
};
const std::vector<InputCase> kInputCases = {
    {"no tokens", 0, 33, 8},          {"one pack", 1, 1, 8},  {"odd", 3, 33, 40}, {"768", 2, 65, 768},
    {"more than a pass", 3, 7, 2064}, {"8x2", 64, 1024, 768},
};

template <class T>
void check_jitter(Report& report, const InputCase& c) {
  const std::int64_t tokens = c.sequences * c.seq_len, step = 5;
  const std::size_t size = static_cast<std::size_t>(tokens) * c.width;
  Random random(71);
  const Input<T> x(random.normal(size)), add(random.normal(size));
  const std::vector<std::int64_t> windows = some_windows(c.sequences);
  const Buffer<std::int64_t> window(windows), step_on_device(std::vector<std::int64_t>{step});
  Buffer<T> out(size), in_place(size);
  SWITCHYARD_CUDA(cudaMemcpy(in_place.get(), add.get(), size * sizeof(T), cudaMemcpyDeviceToDevice));
  const kernels::NoiseDraw draw{nullptr,   window.get(), step_on_device.get(), 7, 11, tokens,
                                c.seq_len, c.width,      Noise::kUniform};
  run_captured([&](Stream s) {
    kernels::jitter(kernels::Jitter<T>{x.get(), nullptr, out.get(), draw, tokens, c.width, 0.25f}, s);
    kernels::jitter(kernels::Jitter<T>{x.get(), in_place.get(), in_place.get(), draw, tokens, c.width, 0.25f}, s);
  });
  kernels::NoiseDraw host = draw;
  host.window = windows.data(), host.step = &step;
  Values want(size), sum = add.host;
  kernels::jitter_cpu(kernels::Jitter<double>{x.host.data(), nullptr, want.data(), host, tokens, c.width, 0.25f},
                      {0, tokens});
  kernels::jitter_cpu(kernels::Jitter<double>{x.host.data(), sum.data(), sum.data(), host, tokens, c.width, 0.25f},
                      {0, tokens});
  const std::string kernel = "jitter " + type_name<T>();
  report.compare(kernel, c.name, values_of(out), want, bound_of<T>());
  report.compare(kernel, std::string(c.name) + ": added in place", values_of(in_place), sum, bound_of<T>());
  report.expect(kernel, std::string(c.name) + ": writes stay inside", out.guard_intact() && in_place.guard_intact());
}

template <class T>
void check_row_norms(Report& report, const InputCase& c) {
  const std::int64_t tokens = c.sequences * c.seq_len;
  const Input<T> x(Random(73).normal(static_cast<std::size_t>(tokens) * c.width));
  Buffer<float> norm(tokens);
  run_captured([&](Stream s) { kernels::row_norms(kernels::RowNorms<T>{x.get(), norm.get(), tokens, c.width}, s); });
  std::vector<float> want(tokens);
  kernels::row_norms_cpu(kernels::RowNorms<double>{x.host.data(), want.data(), tokens, c.width}, {0, tokens});
  const std::string kernel = "row_norms " + type_name<T>();
  report.compare(kernel, c.name, values_of(norm), Values(want.begin(), want.end()), {2e-5, 1e-6});
  report.expect(kernel, std::string(c.name) + ": writes stay inside", norm.guard_intact());
}

}  // namespace

void check_choice(Report& report) {
  for (const ChoiceCase& c : kChoiceCases) check_choice(report, c);
  for (const InputCase& c : kInputCases) {
    check_jitter<bf16>(report, c), check_jitter<float>(report, c);
    check_row_norms<bf16>(report, c), check_row_norms<float>(report, c);
  }
}

}  // namespace switchyard::gpu_check
