// The portable products, in bf16 and fp32, against loops over the host's copies.
#include <algorithm>

#include "grouped_cases.h"
#include "kernels/portable_gemm.h"

namespace switchyard::gpu_check {
namespace {

template <class T>
struct PortableCheck {
  Report& report;
  const GroupedCase& c;
  Plan plan;
  Random random{7};
  std::string name;

  PortableCheck(Report& to, const GroupedCase& given)
      : report(to),
        c(given),
        plan(given, capacity_of(given)),
        name(std::string(given.name) + " E " + std::to_string(given.experts)) {}

  static std::string kernel(const char* what, bool gather, bool relu2) {
    return std::string("portable_") + what + " " + type_name<T>() + (gather ? " gather" : "") + (relu2 ? " relu2" : "");
  }
  // Sums of up to thousands of products of order 1; one rounding of the result.
  static Bound bound(double scale = 1.0) {
    return sizeof(T) == 2 ? Bound{1.0 / 200, 2e-4 * scale} : Bound{2e-5, 5e-5 * scale};
  }
  // Either sign, and not so small that a quotient by them says nothing.
  Values row_weights() {
    Values values = random.normal(static_cast<std::size_t>(plan.capacity));
    for (double& v : values) v += v < 0 ? -0.1 : 0.1;
    return values;
  }
  static kernels::GroupedActivation act(bool relu2) {
    return relu2 ? kernels::GroupedActivation::kRelu2 : kernels::GroupedActivation::kNone;
  }
  Input<T> rows(bool gather, int width) {
    return Input<T>(gather ? random.normal(static_cast<std::size_t>(c.tokens) * width)
                           : row_values(random, plan, width));
  }
  const int* index(bool gather) const { return gather ? plan.token_of_row.get() : nullptr; }
  // <row of out, column>, where weight(expert, k, column) is a place in the weight.
  template <class Weight>
  Values product(const Input<T>& in, bool gather, const Input<T>& matrix, int K, int N, Weight weight) const {
    Values sums(static_cast<std::size_t>(plan.host_offset.back()) * N);
    each_row(plan, [&](int e, int row) {
      const int source = gather ? plan.host_token[row] : row;
      for (int n = 0; n < N && source >= 0; ++n)
        for (int k = 0; k < K; ++k)
          sums[row * static_cast<std::size_t>(N) + n] +=
              in[source * static_cast<std::size_t>(K) + k] * matrix[weight(static_cast<std::size_t>(e), k, n)];
    });
    return sums;
  }

  void forward(bool gather, bool relu2) {
    const int K = c.width, N = c.hidden;
    const Input<T> in = rows(gather, K);
    const Input<T> weight(random.normal(static_cast<std::size_t>(c.experts) * N * K, 0.05));
    const Input<float> row_weight(row_weights());
    Buffer<T> out(static_cast<std::size_t>(plan.capacity) * N);
    run_captured([&](Stream s) {
      kernels::portable_forward<T>(
          {plan.groups, in.get(), index(gather), weight.get(), out.get(), K, N, act(relu2), row_weight.get()}, s);
    });
    Values want = product(in, gather, weight, K, N, [&](std::size_t e, int k, int n) { return (e * N + n) * K + k; });
    for (std::size_t i = 0; relu2 && i < want.size(); ++i)
      want[i] = row_weight[i / N] * std::pow(std::max(want[i], 0.0), 2);
    const std::string what = kernel("forward", gather, relu2);
    report.compare(what, name, in_use(plan, values_of(out), N), want, bound(relu2 ? 10 : 1));
    report.expect(what, name + ": writes stay inside", out.guard_intact());
  }

  void dgrad(bool gather, bool relu2) {
    const int K = c.width, N = c.hidden, parts = kernels::portable_dot_parts(N);
    const Input<T> in = rows(gather, K);
    const Input<T> weight(random.normal(static_cast<std::size_t>(c.experts) * N * K, 0.05));
    const Input<float> row_weight(row_weights());
    Values weighted = row_values(random, plan, N, true);  // as forward leaves them
    for (std::size_t i = 0; i < weighted.size(); ++i) weighted[i] *= row_weight[i / N];
    const Input<T> active(weighted);
    Buffer<T> out(static_cast<std::size_t>(plan.capacity) * N);
    Buffer<float> dot(static_cast<std::size_t>(parts) * plan.capacity);
    run_captured([&](Stream s) {
      kernels::portable_dgrad<T>(
          {plan.groups, in.get(), index(gather), weight.get(), out.get(), relu2 ? active.get() : nullptr,
           row_weight.get(), relu2 ? dot.get() : nullptr, K, N, act(relu2)},
          s);
    });
    const auto used = static_cast<std::size_t>(plan.host_offset.back());
    Values want = product(in, gather, weight, K, N, [&](std::size_t e, int k, int n) { return (e * K + k) * N + n; });
    Values want_dot(used), got_dot(used);
    for (std::size_t i = 0; relu2 && i < want.size(); ++i) {
      const double w = row_weight[i / N], unweighted = active[i] / w;
      want_dot[i / N] += want[i] * unweighted;
      want[i] *= w * 2 * std::sqrt(unweighted);
    }
    const std::string what = kernel("dgrad", gather, relu2);
    report.compare(what, name, in_use(plan, values_of(out), N), want, bound(relu2 ? 10 : 1));
    report.expect(what, name + ": writes stay inside", out.guard_intact() && dot.guard_intact());
    if (!relu2) return;
    const Values part = values_of(dot);
    for (std::size_t i = 0; i < part.size(); ++i)
      if (i % plan.capacity < used) got_dot[i % plan.capacity] += part[i];
    report.compare(what + " dot", name, got_dot, want_dot, {1e-4, 2e-4 * N});
  }

  void wgrad() {
    const int M = c.hidden, N = c.width;
    const Input<T> a = rows(false, M), b = rows(false, N);
    const Values before = random.normal(static_cast<std::size_t>(c.experts) * M * N);
    const Input<float> grad(before), once(before);
    for (float* to : {grad.get(), once.get()})
      run_captured([&](Stream s) { kernels::portable_wgrad<T>({plan.groups, a.get(), b.get(), to, M, N}, s); });
    Values want = once.host;
    each_row(plan, [&](int e, int row) {
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
          want[(e * static_cast<std::size_t>(M) + m) * N + n] +=
              a[row * static_cast<std::size_t>(M) + m] * b[row * static_cast<std::size_t>(N) + n];
    });
    const std::string what = "portable_wgrad " + type_name<T>();
    const Values got = values_of(grad.device);
    report.compare(what, name, got, want, {1e-4, 2e-3});
    report.compare(what, name + ": again", values_of(once.device), got, kExact);
    const std::size_t matrix = static_cast<std::size_t>(M) * N;
    bool untouched = true;
    for (std::size_t i = 0; i < got.size(); ++i) untouched &= plan.host_count[i / matrix] > 0 || got[i] == grad.host[i];
    report.expect(what, name + ": an empty expert's gradient stays", untouched);
    report.expect(what, name + ": writes stay inside", grad.device.guard_intact());
  }
};

template <class T>
void check_weights_of_nothing(Report& report) {  // what a weight of 0 leaves of its row still gives its gradient
  const GroupedCase c{"weights of 0 and 1e-30", 128, 1, 1, 64, 64, 128};
  const int D = c.width;
  const auto relu2 = kernels::GroupedActivation::kRelu2;
  PortableCheck<T> check(report, c);
  const Input<T> x(check.random.normal(static_cast<std::size_t>(c.tokens) * D)),
      weight(check.random.normal(static_cast<std::size_t>(D) * D, 0.2));
  Values weights(static_cast<std::size_t>(check.plan.capacity));
  for (std::size_t i = 1; i < weights.size(); i += 2) weights[i] = -1e-30;
  const Input<float> row_weight(weights);
  const auto rows = static_cast<std::size_t>(check.plan.capacity);
  Buffer<T> active(rows * D), plain(rows * D), out(rows * D);
  Buffer<float> dot(rows);
  const kernels::RowGroups groups{nullptr, nullptr, nullptr, nullptr, nullptr, 1, 128, check.plan.capacity};
  const int* index = check.plan.token_of_row.get();
  run_captured([&](Stream s) {
    kernels::portable_forward<T>({groups, x.get(), index, weight.get(), active.get(), D, D, relu2, row_weight.get()},
                                 s);
    kernels::portable_forward<T>({groups, x.get(), index, weight.get(), plain.get(), D, D, relu2, nullptr}, s);
    kernels::portable_dgrad<T>(
        {groups, x.get(), index, weight.get(), out.get(), active.get(), row_weight.get(), dot.get(), D, D, relu2}, s);
  });
  const Values a = values_of(plain);
  Values want_dot(rows);
  for (std::size_t row = 0; row < rows; ++row)
    for (int n = 0; n < D && check.plan.host_token[row] >= 0; ++n)
      for (int k = 0; k < D; ++k)
        want_dot[row] +=
            x[check.plan.host_token[row] * static_cast<std::size_t>(D) + k] * weight[k * D + n] * a[row * D + n];
  report.compare("portable_dgrad " + type_name<T>() + " relu2 dot", c.name, values_of(dot), want_dot,
                 {1e-2, sizeof(T) == 2 ? 1.0 : 1e-3});
}

template <class T>
void check_type(Report& report) {
  for (const GroupedCase& c : kCases) {
    PortableCheck<T> check(report, c);
    for (const bool gather : {false, true})
      for (const bool relu2 : {false, true}) check.forward(gather, relu2), check.dgrad(gather, relu2);
    check.wgrad();
  }
  check_weights_of_nothing<T>(report);
}

}  // namespace

void check_portable_gemm(Report& report) {
  check_type<bf16>(report);
  check_type<float>(report);
}

}  // namespace switchyard::gpu_check
