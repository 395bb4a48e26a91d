// router_logits, forward and backward.
#include <cmath>

#include "kernels/router_logits.h"
#include "row_sums.h"

namespace switchyard::gpu_check {
namespace {

struct LogitsCase {
  int tokens, width, experts;
  int top_k = 2;  // of the gradient that comes as rows
};
const std::vector<LogitsCase> kLogitsCases = {
    {1, 8, 1, 1},
    {77, 72, 8, 3},
    {130, 768, 8},
    {33, 40, 13},
    {257, 768, 16, 16},
    {300, 1280, 33, 3},
    {129, 768, 64, 8},
    {100, 520, 128, 5},
    {65, 96, 200, 4},
    {50, 2048, 6},
    {20000, 768, 8},
    {70001, 40, 8},
    // Many experts: every number of them that another shape takes, and so many tokens that blocks take several turns.
    {1, 768, 32, 4},
    {513, 392, 17, 1},
    {300, 768, 32, 4},
    {77, 768, 65, 9},
    {130, 768, 128, 8},
    {90, 136, 256, 6},
    {6501, 64, 64, 8},
    {7001, 392, 33, 8},
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

// How far products of values as the tensor cores see them may be off, to the sum of their sizes.
template <class T>
constexpr double kSplit = sizeof(T) == 2 ? 1e-5 : 2e-6;

// start + d_logits w, and how far it may be off.
template <class T>
Sums input_gradient(const LogitsCase& c, const Values& start, const Input<float>& d_logits, const Input<float>& w) {
  const int D = c.width, E = c.experts;
  Sums d(
      c.tokens, D, E, [&](int t, int e) { return d_logits[static_cast<std::size_t>(t) * E + e]; },
      [&](int i, int e) { return w[static_cast<std::size_t>(e) * D + i]; });
  for (std::size_t i = 0; i < d.value.size(); ++i) {
    d.value[i] += start[i];
    // Beyond 128 experts the sum is rounded on the way.
    double rounded = 0, partial = start[i];
    for (int e = 0; e < E; ++e) {
      if (e > 0 && e % 128 == 0) rounded += std::fabs(partial);
      partial += d_logits[i / D * E + e] * w[e * D + i % D];
    }
    d.size[i] = rounded / 250 +
                (sizeof(T) == 2 ? 4 : 1) * kSplit<T> * (d.size[i] + std::fabs(start[i])) +  // both are split
                (sizeof(T) == 2 ? 1.0 / 250 : 1e-6) * std::fabs(d.value[i]) + 1e-30;
  }
  return d;
}

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
  const double split = kSplit<T>;
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

  const Sums d_input = input_gradient<T>(c, start.host, d_logits, w);
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

// Another reader's gradient as rows, into a d_x that holds a third one's or nothing. d_w knows nothing of it.
template <class T>
void check_rows(Report& report, const LogitsCase& c) {
  const int T_ = c.tokens, D = c.width, E = c.experts;
  Random random(43);
  const Input<T> x(random.normal(T_ * D)), start(random.normal(T_ * D));
  const Input<float> w(random.normal(E * D)), d_logits(random.normal(T_ * E));
  const Rows<T> rows(random, T_, c.top_k, D);
  Buffer<float> scratch(kernels::router_logits_scratch(T_, D, E));
  const auto run = [&](T* d_x, float* d_w, const kernels::RowSum<T>& of, bool overwrite) {
    const kernels::RouterLogitsBackward<T> a{x.get(), w.get(), d_logits.get(), d_x, d_w, scratch.get(), T_, D, E};
    run_captured([&](Stream s) {
      of.rows ? kernels::router_logits_backward(a, of, overwrite, s) : kernels::router_logits_backward(a, s);
    });
  };
  const Values zeros(E * D, 0.0);
  const Input<float> plain_w(zeros);
  run(Input<T>(start.host).get(), plain_w.get(), {}, false);
  for (const bool overwrite : {true, false}) {
    const std::string kernel = "router_logits_backward with rows " + type_name<T>(),
                      name = "T " + std::to_string(T_) + " D " + std::to_string(D) + " E " + std::to_string(E) + " K " +
                             std::to_string(c.top_k) + (overwrite ? "" : ", added");
    Buffer<T> fresh(static_cast<std::size_t>(T_) * D), fresh_again(static_cast<std::size_t>(T_) * D);
    const Input<T> held(start.host), held_again(start.host);
    const Buffer<T>&d_x = overwrite ? fresh : held.device, &again = overwrite ? fresh_again : held_again.device;
    const Input<float> d_w(zeros), d_w_again(zeros);
    run(d_x.get(), d_w.get(), rows.of(), overwrite);
    run(again.get(), d_w_again.get(), rows.of(), overwrite);
    Values others = rows.sum;
    for (std::size_t i = 0; i < others.size() && !overwrite; ++i) others[i] += start[i];
    Sums want = input_gradient<T>(c, others, d_logits, w);
    for (double& size : want.size) size += 1e-6 * c.top_k;  // of the rows' sum in fp32
    compare_scaled(report, kernel, name + ": d_x", values_of(d_x), want.value, want.size);
    report.compare(kernel, name + ": d_x repeats bit for bit", values_of(again), values_of(d_x), kExact);
    report.compare(kernel, name + ": d_w", values_of(d_w.device), values_of(plain_w.device), kExact);
    report.expect(kernel, name + ": writes stay inside", d_x.guard_intact() && d_w.device.guard_intact());
  }
}

}  // namespace

void check_router_logits(Report& report) {
  for (const LogitsCase& c : kLogitsCases) {
    check_logits<bf16>(report, c, false);
    check_logits<float>(report, c, false);
    check_rows<bf16>(report, c);
    check_rows<float>(report, c);
  }
  for (const LogitsCase& c : {LogitsCase{48, 2048, 8}, LogitsCase{4096, 64, 8}, LogitsCase{13001, 16, 64}}) {
    check_logits<bf16>(report, c, true);
    check_logits<float>(report, c, true);
  }
}

}  // namespace switchyard::gpu_check
