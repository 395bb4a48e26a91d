// Grouped products on Hopper against loops over the host's copies.
#include <algorithm>

#include "grouped_cases.h"

namespace switchyard::gpu_check {
namespace {

using Act = kernels::GroupedActivation;

std::string suffix(bool gather, Act activation) {
  const char* of[] = {"", " relu2", " swiglu"};
  return std::string(gather ? " gather" : "") + of[static_cast<int>(activation)];
}
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Check {
  Report& report;
  const GroupedCase& c;
  Plan plan;
  Random random{7};
  std::string name;

  Check(Report& to, const GroupedCase& given, std::int64_t capacity)
      : report(to),
        c(given),
        plan(given, capacity),
        name(std::string(given.name) + " E " + std::to_string(given.experts)) {}

  // <rows[row], column n of matrix>, of matrices [rows of W, inner] or, transposed, [inner, columns of W].
  template <class Matrix>
  static double product(const Input<bf16>& rows, std::size_t row, int inner, Matrix matrix) {
    double sum = 0;
    for (int k = 0; k < inner; ++k) sum += rows[row * inner + k] * matrix(k);
    return sum;
  }
  Input<bf16> inputs(bool gather) {
    return Input<bf16>(gather ? random.normal(static_cast<std::size_t>(c.tokens) * c.width)
                              : row_values(random, plan, c.width));
  }
  const int* index(bool gather) const { return gather ? plan.token_of_row.get() : nullptr; }
  int source(bool gather, int row) const { return gather || plan.host_token[row] < 0 ? plan.host_token[row] : row; }

  // Weighted rows, the pre-activation they come from, and the same rows without it.
  void swiglu_forward(bool gather) {
    const int K = c.width, N = c.hidden;
    const Input<bf16> rows = inputs(gather);
    const Input<bf16> weight(random.normal(static_cast<std::size_t>(c.experts) * 2 * N * K, 0.1));
    const Input<float> row_weight(random.normal(plan.capacity));
    const auto size = static_cast<std::size_t>(plan.capacity) * N;
    Buffer<bf16> out(size), pre(2 * size), alone(size), kept(static_cast<std::size_t>(plan.capacity) * K);
    run_captured([&](Stream s) {
      for (bf16* to : {pre.get(), static_cast<bf16*>(nullptr)})
        kernels::grouped_forward({plan.groups, rows.get(), index(gather), weight.get(), to ? out.get() : alone.get(), K,
                                  N, Act::kSwiglu, row_weight.get(), to, to && gather ? kept.get() : nullptr},
                                 s);
    });
    const auto used = static_cast<std::size_t>(plan.host_offset.back());
    Values want(used * N), want_pre(used * 2 * N);
    each_row(plan, [&](int e, int row) {
      const int from = source(gather, row);
      for (int n = 0; n < N && from >= 0; ++n) {
        double sums[2];
        for (int half = 0; half < 2; ++half) {
          const std::size_t line = (static_cast<std::size_t>(e) * 2 + half) * N + n;
          sums[half] = product(rows, from, K, [&](int k) { return weight[line * K + k]; });
          want_pre[(row * std::size_t{2} + half) * N + n] = sums[half];
        }
        want[row * static_cast<std::size_t>(N) + n] = row_weight[row] * sums[0] * sigmoid(sums[0]) * sums[1];
      }
    });
    const std::string kernel = "grouped_forward" + suffix(gather, Act::kSwiglu);
    const Values got = in_use(plan, values_of(out), N);
    report.compare(kernel, name, got, want, {1.0 / 250, 5e-4});
    report.compare(kernel + " pre", name, in_use(plan, values_of(pre), 2 * N), want_pre, {1.0 / 250, 2e-4});
    report.compare(kernel, name + ": without pre", in_use(plan, values_of(alone), N), got, kExact);
    report.expect(kernel, name + ": writes stay inside",
                  out.guard_intact() && pre.guard_intact() && alone.guard_intact());
    report.expect(kernel, name + ": the scheduler is left at rest", plan.scheduler_at_rest());
    if (gather) check_kept(kernel, rows, kept);
  }

  void swiglu_dgrad(bool gather) {
    const int K = c.width, N = c.hidden, parts = kernels::grouped_dot_parts(N);
    const Input<bf16> rows = inputs(gather);
    const Input<bf16> weight(random.normal(static_cast<std::size_t>(c.experts) * N * K, 0.05)),
        pre(row_values(random, plan, 2 * N));
    const Input<float> row_weight(random.normal(plan.capacity));
    const auto size = static_cast<std::size_t>(plan.capacity) * N;
    Buffer<bf16> out(2 * size), plain(2 * size), kept(static_cast<std::size_t>(plan.capacity) * K);
    Buffer<float> dot(static_cast<std::size_t>(parts) * plan.capacity);
    run_captured([&](Stream s) {
      kernels::grouped_dgrad({plan.groups, rows.get(), index(gather), weight.get(), out.get(), pre.get(),
                              row_weight.get(), dot.get(), K, N, Act::kSwiglu, gather ? kept.get() : nullptr},
                             s);
      kernels::grouped_dgrad({plan.groups, rows.get(), index(gather), weight.get(), plain.get(), pre.get(), nullptr,
                              nullptr, K, N, Act::kSwiglu},
                             s);
    });
    const auto used = static_cast<std::size_t>(plan.host_offset.back());
    Values want(used * 2 * N), want_plain(want.size()), want_dot(used);
    each_row(plan, [&](int e, int row) {
      const int from = source(gather, row);
      for (int n = 0; n < N && from >= 0; ++n) {
        const double d =
            product(rows, from, K, [&](int k) { return weight[(e * static_cast<std::size_t>(K) + k) * N + n]; });
        const std::size_t gate = row * std::size_t{2} * N + n, value = gate + N;
        const double s = sigmoid(pre[gate]), silu = pre[gate] * s;
        want_dot[row] += d * silu * pre[value];
        want_plain[gate] = d * pre[value] * (s + silu * (1 - s)), want_plain[value] = d * silu;
        want[gate] = row_weight[row] * want_plain[gate], want[value] = row_weight[row] * want_plain[value];
      }
    });
    const std::string kernel = "grouped_dgrad" + suffix(gather, Act::kSwiglu);
    report.compare(kernel, name, in_use(plan, values_of(out), 2 * N), want, {1.0 / 200, 5e-4});
    report.compare(kernel, name + ": no weights", in_use(plan, values_of(plain), 2 * N), want_plain, {1.0 / 200, 5e-4});
    report.expect(kernel, name + ": writes stay inside",
                  out.guard_intact() && plain.guard_intact() && dot.guard_intact() && kept.guard_intact());
    report.expect(kernel, name + ": the scheduler is left at rest", plan.scheduler_at_rest());
    if (gather) check_kept(kernel, rows, kept);
    report.compare(kernel + " dot", name, sum_of_parts(dot, parts), want_dot, {1e-4, 2e-4 * N});
  }

  Values sum_of_parts(const Buffer<float>& dot, int parts) const {
    const Values part = values_of(dot);
    Values sum(static_cast<std::size_t>(plan.host_offset.back()));
    for (int p = 0; p < parts; ++p)
      for (std::size_t row = 0; row < sum.size(); ++row)
        sum[row] += part[p * static_cast<std::size_t>(plan.capacity) + row];
    return sum;
  }

  void forward(bool gather, bool relu2) {
    const int K = c.width, N = c.hidden;
    const Input<bf16> rows(gather ? random.normal(static_cast<std::size_t>(c.tokens) * K)
                                  : row_values(random, plan, K));
    const Input<bf16> weight(random.normal(static_cast<std::size_t>(c.experts) * N * K, 0.05));
    const Input<float> row_weight(row_weights());
    Buffer<bf16> out(static_cast<std::size_t>(plan.capacity) * N);
    Buffer<bf16> kept(static_cast<std::size_t>(plan.capacity) * K);
    run_captured([&](Stream s) {
      kernels::grouped_forward(
          {plan.groups, rows.get(), index(gather), weight.get(), out.get(), K, N, relu2 ? Act::kRelu2 : Act::kNone,
           row_weight.get(), nullptr, gather ? kept.get() : nullptr},
          s);
    });
    Values want(static_cast<std::size_t>(plan.host_offset.back()) * N);
    each_row(plan, [&](int e, int row) {
      const int source = gather ? plan.host_token[row] : row;
      for (int n = 0; n < N && source >= 0; ++n) {
        double sum = 0;
        for (int k = 0; k < K; ++k)
          sum += rows[source * static_cast<std::size_t>(K) + k] * weight[(e * static_cast<std::size_t>(N) + n) * K + k];
        want[row * static_cast<std::size_t>(N) + n] = relu2 ? row_weight[row] * std::pow(std::max(sum, 0.0), 2) : sum;
      }
    });
    const std::string kernel = "grouped_forward" + suffix(gather, relu2 ? Act::kRelu2 : Act::kNone);
    report.compare(kernel, name, in_use(plan, values_of(out), N), want, {1.0 / 250, 2e-4});
    report.expect(kernel, name + ": writes stay inside", out.guard_intact() && kept.guard_intact());
    report.expect(kernel, name + ": the scheduler is left at rest", plan.scheduler_at_rest());
    if (gather) check_kept(kernel, rows, kept);
  }

  // Of both signs; every seventh is zero, which counts as too small to be seen.
  Values row_weights() {
    Values weights = random.normal(plan.capacity);
    for (std::size_t i = 0; i < weights.size(); i += 7) weights[i] = 0;
    return weights;
  }

  // The gathered rows as the product left them: bit for bit, zeros in the padding.
  void check_kept(const std::string& kernel, const Input<bf16>& tokens, const Buffer<bf16>& kept) {
    Values want(static_cast<std::size_t>(plan.host_offset.back()) * c.width);
    each_row(plan, [&](int, int row) {
      for (int i = 0; i < c.width && plan.host_token[row] >= 0; ++i)
        want[row * static_cast<std::size_t>(c.width) + i] =
            tokens[plan.host_token[row] * static_cast<std::size_t>(c.width) + i];
    });
    report.compare(kernel + " kept rows", name, in_use(plan, values_of(kept), c.width), want, kExact);
  }

  void dgrad(bool gather, bool relu2) {
    const int K = c.width, N = c.hidden, parts = kernels::grouped_dot_parts(N);
    const Input<bf16> rows(gather ? random.normal(static_cast<std::size_t>(c.tokens) * K)
                                  : row_values(random, plan, K));
    const Input<bf16> weight(random.normal(static_cast<std::size_t>(c.experts) * N * K, 0.05));
    const Input<float> row_weight(row_weights());
    const auto weight_of = [&](std::size_t row) { return row_weight[row] == 0 ? 1e-20 : row_weight[row]; };
    Values activation = row_values(random, plan, N, true);
    for (std::size_t i = 0; i < activation.size(); ++i) activation[i] *= weight_of(i / N);
    const Input<bf16> active(activation);
    Buffer<bf16> out(static_cast<std::size_t>(plan.capacity) * N), kept(static_cast<std::size_t>(plan.capacity) * K);
    Buffer<float> dot(static_cast<std::size_t>(parts) * plan.capacity);
    run_captured([&](Stream s) {
      kernels::grouped_dgrad({plan.groups, rows.get(), index(gather), weight.get(), out.get(),
                              relu2 ? active.get() : nullptr, row_weight.get(), relu2 ? dot.get() : nullptr, K, N,
                              relu2 ? Act::kRelu2 : Act::kNone, gather ? kept.get() : nullptr},
                             s);
    });
    const auto used = static_cast<std::size_t>(plan.host_offset.back());
    Values want(used * N), want_dot(used);
    each_row(plan, [&](int e, int row) {
      const int source = gather ? plan.host_token[row] : row;
      for (int n = 0; n < N && source >= 0; ++n) {
        double sum = 0;
        for (int k = 0; k < K; ++k)
          sum += rows[source * static_cast<std::size_t>(K) + k] * weight[(e * static_cast<std::size_t>(K) + k) * N + n];
        const std::size_t at = row * static_cast<std::size_t>(N) + n;
        const double unweighted = active[at] / weight_of(row);
        if (relu2) want_dot[row] += sum * unweighted;
        want[at] = relu2 ? weight_of(row) * 2 * std::sqrt(unweighted) * sum : sum;
      }
    });
    const std::string kernel = "grouped_dgrad" + suffix(gather, relu2 ? Act::kRelu2 : Act::kNone);
    report.compare(kernel, name, in_use(plan, values_of(out), N), want, {1.0 / 200, 2e-4});
    report.expect(kernel, name + ": writes stay inside",
                  out.guard_intact() && dot.guard_intact() && kept.guard_intact());
    report.expect(kernel, name + ": the scheduler is left at rest", plan.scheduler_at_rest());
    if (gather) check_kept(kernel, rows, kept);
    if (!relu2) return;
    report.compare(kernel + " dot", name, sum_of_parts(dot, parts), want_dot, {1e-4, 2e-4 * N});
  }

  void wgrad() {
    const int M = c.hidden, N = c.width;
    const Input<bf16> a(row_values(random, plan, M)), b(row_values(random, plan, N));
    const Values before = random.normal(static_cast<std::size_t>(c.experts) * M * N);
    const Input<float> grad(before), once(before);
    const auto product = [&](float* to) {
      run_captured([&](Stream s) { kernels::grouped_wgrad({plan.groups, a.get(), b.get(), to, M, N}, s); });
    };
    product(grad.get()), product(once.get());
    Values want = once.host, absolute(want.size());
    each_row(plan, [&](int e, int row) {
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
          want[(e * static_cast<std::size_t>(M) + m) * N + n] +=
              a[row * static_cast<std::size_t>(M) + m] * b[row * static_cast<std::size_t>(N) + n];
    });
    const Values got = values_of(grad.device);
    report.compare("grouped_wgrad", name, got, want, {1e-4, 2e-3});
    report.compare("grouped_wgrad", name + ": again", values_of(once.device), got, kExact);
    bool untouched = true;
    for (int e = 0; e < c.experts; ++e)
      for (std::size_t i = 0; plan.host_count[e] == 0 && i < static_cast<std::size_t>(M) * N; ++i)
        untouched &= got[e * static_cast<std::size_t>(M) * N + i] == grad.host[e * static_cast<std::size_t>(M) * N + i];
    report.expect("grouped_wgrad", name + ": an empty expert's gradient stays", untouched);
    report.expect("grouped_wgrad", name + ": the scheduler is left at rest", plan.scheduler_at_rest());
  }
};

// One operand of a weight gradient through the index: bit for bit what rows in expert order give.
void check_gathered_wgrad(Report& report, const GroupedCase& c, std::int64_t capacity) {
  Check check(report, c, capacity);
  const Plan& plan = check.plan;
  const int M = c.hidden, N = c.width;
  const auto rows_of = [&](const Input<bf16>& tokens, int width) {
    Values rows(static_cast<std::size_t>(plan.capacity) * width);
    each_row(plan, [&](int, int row) {
      for (int i = 0; i < width && plan.host_token[row] >= 0; ++i)
        rows[row * static_cast<std::size_t>(width) + i] =
            tokens[plan.host_token[row] * static_cast<std::size_t>(width) + i];
    });
    return Input<bf16>(rows);
  };
  const Values before = check.random.normal(static_cast<std::size_t>(c.experts) * M * N);
  for (const bool first : {true, false}) {
    const int width = first ? M : N;
    const Input<bf16> tokens(check.random.normal(static_cast<std::size_t>(c.tokens) * width)),
        gathered = rows_of(tokens, width), other(row_values(check.random, plan, first ? N : M));
    const Input<float> grad(before), again(before), want(before);
    const int* index = plan.token_of_row.get();
    const auto product = [&](float* to, const bf16* moved, const int* through) {
      run_captured([&](Stream s) {
        kernels::grouped_wgrad({plan.groups, first ? moved : other.get(), first ? other.get() : moved, to, M, N,
                                first ? through : nullptr, first ? nullptr : through},
                               s);
      });
    };
    product(want.get(), gathered.get(), nullptr);
    product(grad.get(), tokens.get(), index), product(again.get(), tokens.get(), index);
    const std::string kernel = std::string("grouped_wgrad gather ") + (first ? "a" : "b");
    const Values got = values_of(grad.device);
    report.compare(kernel, check.name, got, values_of(want.device), kExact);
    report.compare(kernel, check.name + ": again", values_of(again.device), got, kExact);
    report.expect(kernel, check.name + ": the scheduler is left at rest", plan.scheduler_at_rest());
  }
}

void check_plain(Report& report) {  // null tables: one expert, all rows
  const int R = 384, K = 192, N = 520;
  Random random(3);
  const Input<bf16> rows(random.normal(static_cast<std::size_t>(R) * K)),
      weight(random.normal(static_cast<std::size_t>(N) * K, 0.1));
  Buffer<bf16> out(static_cast<std::size_t>(R) * N);
  Buffer<int> scheduler(std::vector<int>{0, 0});
  const kernels::RowGroups groups{nullptr, nullptr, nullptr, nullptr, scheduler.get(), 1, 128, R};
  const Input<float> grad(Values(static_cast<std::size_t>(N) * K, 1.0));
  const Input<bf16> d(random.normal(static_cast<std::size_t>(R) * N));
  run_captured([&](Stream s) {
    kernels::grouped_forward({groups, rows.get(), nullptr, weight.get(), out.get(), K, N}, s);
    kernels::grouped_wgrad({groups, d.get(), rows.get(), grad.get(), N, K}, s);
  });
  Values want(static_cast<std::size_t>(R) * N), want_grad(static_cast<std::size_t>(N) * K, 1.0);
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < K; ++k) {
        want[r * N + n] += rows[r * K + k] * weight[n * K + k];
        want_grad[n * K + k] += d[r * N + n] * rows[r * K + k];
      }
  report.compare("grouped_forward", "one expert, no tables", values_of(out), want, {1.0 / 250, 2e-4});
  report.compare("grouped_wgrad", "one expert, no tables", values_of(grad.device), want_grad, {1e-4, 2e-3});
  report.expect("grouped_forward", "one expert, no tables: the scheduler is left at rest",
                scheduler.download() == std::vector<int>{0, 0});
}

}  // namespace

void check_grouped_gemm(Report& report) {
  const auto check_wgrads = [&](Check& check) {
    check.wgrad();
    check_gathered_wgrad(report, check.c, check.plan.capacity);
  };
  for (const GroupedCase& c : kCases) {
    Check check(report, c, capacity_of(c));
    for (const bool gather : {false, true})
      for (const bool relu2 : {false, true}) check.forward(gather, relu2), check.dgrad(gather, relu2);
    for (const bool gather : {false, true}) check.swiglu_forward(gather), check.swiglu_dgrad(gather);
    check_wgrads(check);
  }
  for (const GroupedCase& c : kManyExperts) {
    Check check(report, c, capacity_of(c));
    check_wgrads(check);
  }
  for (const GroupedCase& c : kManyTiles) {
    Check check(report, c, kManyTilesRows);
    check_wgrads(check);
  }
  check_plain(report);
}

}  // namespace switchyard::gpu_check
