// router_logits, forward and backward.
#include <cmath>

#include "harness.h"
#include "kernels/router_logits.h"

namespace switchyard::gpu_check {
namespace {

struct LogitsCase {
  int tokens, width, experts;
};
const std::vector<LogitsCase> kLogitsCases = {
    {1, 8, 1},
    {77, 72, 8},
    {130, 768, 8},
    {33, 40, 13},
    {257, 768, 16},
    {300, 1280, 33},
    {129, 768, 64},
    {100, 520, 128},
    {65, 96, 200},
    {50, 2048, 6},
    {20000, 768, 8},
    {70001, 40, 8},
    // Many experts: every number of them that another shape takes, and so many tokens that blocks take several turns.
    {1, 768, 32},
    {513, 392, 17},
    {300, 768, 32},
    {77, 768, 65},
    {130, 768, 128},
    {90, 136, 256},
    {6501, 64, 64},
    {7001, 392, 33},
    {9001, 24, 48},
    {4300, 768, 20},
};

// Each value against the error it may have.
void compare_scaled(Report& report, const std::string& kernel, const std::string& what, Values got, Values want,
                    const Values& allowed) {
  for (std::size_t i = 0; i < want.size(); ++i) got[i] /= allowed[i], want[i] /= allowed[i];
  report.compare(kernel, what, got, want, {0, 1});
}

// Sums of products and of their sizes, in double: out[i, j] = sum_k a(i, k) b(j, k).
struct Sums {
  Values value, size;
  template <class A, class B>
  Sums(int rows, int columns, int depth, A a, B b) : value(rows * columns), size(rows * columns) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j)
        for (int k = 0; k < depth; ++k) {
          const double product = a(i, k) * b(j, k);
          value[i * columns + j] += product, size[i * columns + j] += std::fabs(product);
        }
  }
};

template <class T>
void check_logits(Report& report, const LogitsCase& c, bool one_sign) {
  const int T_ = c.tokens, D = c.width, E = c.experts;
  const std::string name = "T " + std::to_string(T_) + " D " + std::to_string(D) + " E " + std::to_string(E) +
                           (one_sign ? " one sign" : ""),
                    forward = "router_logits " + type_name<T>(), backward = "router_logits_backward " + type_name<T>();
  Random random(41);
  const auto values = [&](int count) {
    Values v = random.normal(count);
    for (double& f : v) f = one_sign ? std::fabs(f) : f;
    return v;
  };
  const Input<T> x(values(T_ * D)), start(values(T_ * D));
  const Input<float> w(values(E * D)), d_logits(values(T_ * E)), d_w(values(E * D)), again(d_w.host);
  const Input<T> d_x(start.host), d_x_again(start.host);
  Buffer<float> logits(T_ * E), scratch(kernels::router_logits_scratch(T_, D, E));
  const double split = sizeof(T) == 2 ? 1e-5 : 2e-6;
  run_captured([&](Stream s) {
    kernels::router_logits(kernels::RouterLogits<T>{x.get(), w.get(), logits.get(), T_, D, E}, s);
    kernels::router_logits_backward(kernels::RouterLogitsBackward<T>{x.get(), w.get(), d_logits.get(), d_x.get(),
                                                                     d_w.get(), scratch.get(), T_, D, E},
                                    s);
    kernels::router_logits_backward(kernels::RouterLogitsBackward<T>{x.get(), w.get(), d_logits.get(), d_x_again.get(),
                                                                     again.get(), scratch.get(), T_, D, E},
                                    s);
  });

  const auto at = [](const auto& values, int columns) {
    return [&values, columns](int i, int j) { return values[static_cast<std::size_t>(i) * columns + j]; };
  };
  const auto turned = [](const auto& values, int columns) {
    return [&values, columns](int i, int j) { return values[static_cast<std::size_t>(j) * columns + i]; };
  };
  Sums want(T_, E, D, at(x, D), at(w, D));
  for (double& v : want.size) v = split * v + 1e-30;
  compare_scaled(report, forward, name, values_of(logits), want.value, want.size);

  Sums d_input(T_, D, E, at(d_logits, E), turned(w, D));
  for (std::size_t i = 0; i < d_input.value.size(); ++i) {
    d_input.value[i] += start[i];
    // Beyond 128 experts the sum is rounded on the way.
    double rounded = 0, partial = start[i];
    for (int e = 0; e < E; ++e) {
      if (e > 0 && e % 128 == 0) rounded += std::fabs(partial);
      partial += d_logits[i / D * E + e] * w[e * D + i % D];
    }
    d_input.size[i] = rounded / 250 +
                      (sizeof(T) == 2 ? 4 : 1) * split * (d_input.size[i] + std::fabs(start[i])) +  // both are split
                      (sizeof(T) == 2 ? 1.0 / 250 : 1e-6) * std::fabs(d_input.value[i]) + 1e-30;
  }
  compare_scaled(report, backward, name + ": d_x", values_of(d_x.device), d_input.value, d_input.size);

  Sums d_weight(E, D, T_, turned(d_logits, E), turned(x, D));
  for (std::size_t i = 0; i < d_weight.value.size(); ++i) {
    d_weight.value[i] += d_w[i];
    d_weight.size[i] = split * (d_weight.size[i] + std::fabs(d_w[i])) + 1e-30;
  }
  compare_scaled(report, backward, name + ": d_w", values_of(d_w.device), d_weight.value, d_weight.size);
  report.compare(backward, name + ": d_w repeats bit for bit", values_of(again.device), values_of(d_w.device), kExact);
  report.compare(backward, name + ": d_x repeats bit for bit", values_of(d_x_again.device), values_of(d_x.device),
                 kExact);
  report.expect(forward, name + ": writes stay inside", logits.guard_intact());
  report.expect(backward, name + ": writes stay inside",
                d_x.device.guard_intact() && d_w.device.guard_intact() && scratch.guard_intact());
}

}  // namespace

void check_router_logits(Report& report) {
  for (const LogitsCase& c : kLogitsCases) {
    check_logits<bf16>(report, c, false);
    check_logits<float>(report, c, false);
  }
  for (const LogitsCase& c : {LogitsCase{48, 2048, 8}, LogitsCase{4096, 64, 8}, LogitsCase{13001, 16, 64}}) {
    check_logits<bf16>(report, c, true);
    check_logits<float>(report, c, true);
  }
}

}  // namespace switchyard::gpu_check
