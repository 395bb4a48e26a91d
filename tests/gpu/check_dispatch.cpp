// dispatch and the moves of rows that it plans.
#include <algorithm>

#include "harness.h"
#include "kernels/dispatch.h"

namespace switchyard::gpu_check {
namespace {

enum class Skew { kEven, kSingle, kHalf, kDropped, kAllDropped };
struct DispatchCase {
  const char* name;
  int tokens, experts, top_k, alignment, width;
  Skew skew;
};
std::vector<DispatchCase> dispatch_cases() {
  std::vector<DispatchCase> cases = {
      {"one token", 1, 1, 1, 1, 8, Skew::kEven},
      {"all on one expert", 257, 8, 1, 128, 64, Skew::kSingle},
      {"half the experts empty", 511, 64, 2, 16, 64, Skew::kHalf},
      {"some dropped", 1000, 8, 2, 128, 72, Skew::kDropped},
      {"all dropped", 100, 8, 2, 128, 64, Skew::kAllDropped},
      {"a real step", 65536, 8, 2, 128, 8, Skew::kEven},
      {"many experts", 30011, 512, 8, 128, 8, Skew::kEven},
      {"a wide row", 129, 8, 2, 64, 776, Skew::kDropped},
  };
  for (const int experts : {1, 2, 8, 16, 64, 128})
    for (const int top_k : {1, 2, 4, 8})
      if (top_k <= experts) cases.push_back({"E and K", 333, experts, top_k, 32, 24, Skew::kEven});
  return cases;
}
std::vector<int> choices(const DispatchCase& c) {
  Random random(41);
  std::vector<int> expert(c.tokens * c.top_k);
  for (std::size_t i = 0; i < expert.size(); ++i) {
    const int within = c.skew == Skew::kSingle ? 1 : c.skew == Skew::kHalf ? c.experts / 2 : c.experts;
    expert[i] = c.skew == Skew::kHalf ? 2 * random.below(within) + 1
                                      : (random.below(within) + (c.skew == Skew::kSingle ? 3 : 0)) % c.experts;
    if (c.skew == Skew::kAllDropped || (c.skew == Skew::kDropped && random.below(3) == 0)) expert[i] = -1;
  }
  return expert;
}

struct Plan {
  std::vector<int> count, offset, end, token_of_row, row_of;
};
Plan plan_on_host(const DispatchCase& c, const std::vector<int>& expert, std::int64_t capacity) {
  Plan p{std::vector<int>(c.experts), std::vector<int>(c.experts + 1), std::vector<int>(c.experts),
         std::vector<int>(capacity, -1), std::vector<int>(expert.size(), -1)};
  for (const int e : expert)
    if (e >= 0) ++p.count[e];
  for (int e = 0; e < c.experts; ++e)
    p.end[e] = p.offset[e + 1] = p.offset[e] + (p.count[e] + c.alignment - 1) / c.alignment * c.alignment;
  std::vector<int> next(p.offset.begin(), p.offset.end() - 1);
  for (std::size_t i = 0; i < expert.size(); ++i) {
    if (expert[i] < 0) continue;
    p.row_of[i] = next[expert[i]]++;
    p.token_of_row[p.row_of[i]] = static_cast<int>(i) / c.top_k;
  }
  return p;
}
Values as_values(const std::vector<int>& v) { return Values(v.begin(), v.end()); }

template <class T>
void check_moves(Report& report, const DispatchCase& c, const Plan& plan) {
  Random random(43);
  const int D = c.width, R = static_cast<int>(plan.token_of_row.size()), used = plan.offset.back();
  const std::size_t assignments = plan.row_of.size();
  const Input<T> x(random.normal(static_cast<std::size_t>(c.tokens) * D)),
      y(random.normal(static_cast<std::size_t>(R) * D));
  const Input<float> weight(random.normal(assignments)), per_row(random.normal(R));
  const Buffer<int> token_of_row(plan.token_of_row), row_of(plan.row_of), row_count(std::vector<int>{used});
  Buffer<T> permuted(y.host.size()), combined(x.host.size());
  Buffer<float> to_rows(R), from_rows(assignments);
  run_captured([&](Stream s) {
    kernels::permute_rows(kernels::PermuteRows<T>{x.get(), row_of.get(), token_of_row.get(), row_count.get(),
                                                  permuted.get(), c.tokens, c.top_k, D, R},
                          s);
    kernels::combine(kernels::Combine<T>{y.get(), row_of.get(), combined.get(), c.tokens, c.top_k, D}, s);
    const auto count = static_cast<std::int64_t>(assignments);
    kernels::values_to_rows({weight.get(), row_of.get(), token_of_row.get(), to_rows.get(), count, R}, s);
    kernels::values_from_rows({per_row.get(), row_of.get(), token_of_row.get(), from_rows.get(), count, R}, s);
  });

  Values want_rows(static_cast<std::size_t>(used) * D), want(x.host.size()), want_to(R), want_from(assignments);
  for (int r = 0; r < used; ++r)
    for (int j = 0; j < D && plan.token_of_row[r] >= 0; ++j) want_rows[r * D + j] = x[plan.token_of_row[r] * D + j];
  for (std::size_t i = 0; i < assignments; ++i) {
    const int row = plan.row_of[i];
    if (row < 0) continue;
    want_to[row] = weight[i], want_from[i] = per_row[row];
    for (int j = 0; j < D; ++j) want[i / c.top_k * D + j] += y[row * D + j];
  }
  Values got = values_of(permuted);
  const bool rest_untouched =
      std::all_of(got.begin() + want_rows.size(), got.end(), [](double v) { return std::isnan(v); });
  got.resize(want_rows.size());
  const std::string name = std::string(c.name) + " E " + std::to_string(c.experts) + " K " + std::to_string(c.top_k);
  report.compare("permute_rows " + type_name<T>(), name, got, want_rows, kExact);
  report.expect("permute_rows " + type_name<T>(), name + ": rows past the last untouched",
                rest_untouched && permuted.guard_intact());
  report.compare("combine " + type_name<T>(), name, values_of(combined), want, bound_of<T>());
  report.compare("values_to_rows", name, values_of(to_rows), want_to, kExact);
  report.compare("values_from_rows", name, values_of(from_rows), want_from, kExact);
}

void check_plan(Report& report, const DispatchCase& c) {
  const std::vector<int> expert = choices(c);
  const std::int64_t A = c.alignment;
  const std::int64_t capacity = (static_cast<std::int64_t>(expert.size()) + c.experts * (A - 1) + A - 1) / A * A;
  const Plan want = plan_on_host(c, expert, capacity);
  const Buffer<int> device_expert(expert);
  Buffer<int> count(c.experts), offset(c.experts + 1), end(c.experts), token_of_row(capacity), row_of(expert.size()),
      scratch(kernels::dispatch_scratch(c.tokens, c.top_k, c.experts));
  run_captured([&](Stream s) {
    kernels::dispatch({device_expert.get(), count.get(), offset.get(), end.get(), token_of_row.get(), row_of.get(),
                       scratch.get(), c.tokens, c.top_k, c.experts, c.alignment, capacity},
                      s);
  });
  const std::string name = std::string(c.name) + " E " + std::to_string(c.experts) + " K " + std::to_string(c.top_k);
  report.compare("dispatch", name + ": count", values_of(count), as_values(want.count), kExact);
  report.compare("dispatch", name + ": offset", values_of(offset), as_values(want.offset), kExact);
  report.compare("dispatch", name + ": end", values_of(end), as_values(want.end), kExact);
  report.compare("dispatch", name + ": row_of", values_of(row_of), as_values(want.row_of), kExact);
  report.compare("dispatch", name + ": token_of_row", values_of(token_of_row), as_values(want.token_of_row), kExact);
  report.expect(
      "dispatch", name + ": writes stay inside",
      token_of_row.guard_intact() && row_of.guard_intact() && scratch.guard_intact() && offset.guard_intact());
  check_moves<float>(report, c, want);
  check_moves<bf16>(report, c, want);
}

}  // namespace

void check_dispatch(Report& report) {
  for (const DispatchCase& c : dispatch_cases()) check_plan(report, c);
}

}  // namespace switchyard::gpu_check
