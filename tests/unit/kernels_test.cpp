// The row kernels on the CPU: against plain loops in double, against finite differences, float against double, and
// bitwise the same however the rows are split.
#include "kernels/activation.h"
#include "kernels/add_norm.h"
#include "kernels/dispatch.h"
#include "kernels/divisor.h"
#include "kernels/vector_math.h"
#include "kernels_testing.h"

namespace switchyard::kernels {
namespace {

// ---- divisor.h: what division gives, over all that a kernel may ask ----

TEST(Divisor, DividesAsDivisionDoes) {
  constexpr int kMost = std::numeric_limits<int>::max();
  for (const int by :
       {1, 2, 3, 5, 6, 7, 12, 64, 96, 128, 192, 641, 1 << 16, (1 << 16) + 1, 715827883, kMost - 1, kMost}) {
    const Divisor divisor(by);
    std::vector<int> numbers{0, 1, kMost - 1, kMost};
    for (const std::int64_t times : {std::int64_t{1}, std::int64_t{2}, std::int64_t{1000}, std::int64_t{kMost} / by})
      for (const std::int64_t n : {times * by - 1, times * by, times * by + 1})
        if (n <= kMost) numbers.push_back(static_cast<int>(n));
    for (int n = 12345; n < kMost / 3; n = n * 3 + 1) numbers.push_back(n);
    for (const int n : numbers) {
      ASSERT_EQ(divisor.quotient(n), n / by) << n << " / " << by;
      ASSERT_EQ(divisor.remainder(n), n % by) << n << " % " << by;
    }
  }
}

// ---- vector_math.h: the stated errors hold, NaN and infinities come out right ----

template <class F, class G>
double worst_relative_error(float from, float to, float step, F&& ours, G&& exact) {
  double worst = 0;
  for (float x = from; x <= to; x += step) {
    const double expected = exact(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(ours(x)) - expected) / std::abs(expected));
  }
  return worst;
}

TEST(VectorMath, StatedErrors) {
  const auto exact_exp = [](double x) { return std::exp(x); };
  const auto our_exp = [](float x) { return fast_exp(x); };
  EXPECT_LT(worst_relative_error(-86.8f, 88.7f, 0.00137f, our_exp, exact_exp), 1.5e-7);
  EXPECT_LT(worst_relative_error(-0.4f, 0.4f, 1e-5f, our_exp, exact_exp), 1.5e-7);
  EXPECT_LT(worst_relative_error(
                -80.0f, 80.0f, 0.00137f, [](float x) { return fast_sigmoid(x); },
                [](double x) { return 1 / (1 + std::exp(-x)); }),
            3e-7);
  for (const float range : {1e-4f, 0.1f, 1.0f, 12.0f}) {
    EXPECT_LT(worst_relative_error(
                  range / 1e5f, range, range / 1e5f, [](float x) { return -fast_tanh(-x); },
                  [](double x) { return std::tanh(x); }),
              4e-7)
        << range;
  }
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  const auto our_cdf = [](float x) { return fast_normal(x).cdf; };
  EXPECT_LT(worst_relative_error(-5.0f, 12.0f, 1e-4f, our_cdf, cdf), 1e-6);
  double worst = 0;
  for (float x = -12; x < 12; x += 1e-4f) worst = std::max(worst, std::abs(our_cdf(x) - cdf(static_cast<double>(x))));
  EXPECT_LT(worst, 3e-7);
}

TEST(VectorMath, EdgesOfTheRange) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-infinity), 0.0f);
  EXPECT_EQ(fast_exp(-1000.0f), 0.0f);
  EXPECT_EQ(fast_exp(infinity), infinity);
  EXPECT_EQ(fast_exp(88.8f), infinity);
  EXPECT_EQ(fast_sigmoid(-infinity), 0.0f);
  EXPECT_EQ(fast_sigmoid(infinity), 1.0f);
  EXPECT_EQ(fast_tanh(infinity), 1.0f);
  EXPECT_EQ(fast_tanh(-infinity), -1.0f);
  EXPECT_EQ(fast_normal(-infinity).cdf, 0.0f);
  EXPECT_EQ(fast_normal(infinity).cdf, 1.0f);
  EXPECT_TRUE(std::isnan(fast_exp(nan)) && std::isnan(fast_sigmoid(nan)) && std::isnan(fast_tanh(nan)) &&
              std::isnan(fast_normal(nan).cdf));
}

// ---- add_norm ----

struct NormCase {
  const char* name;
  std::int64_t tokens;
  int width;
  bool delta, x0, gain, d_residual = true, d_normed = true;
};
const std::vector<NormCase> kNormCases = {
    {"plain", 3, 8, false, false, false},
    {"one value", 1, 1, true, true, true},
    {"odd width", 3, 13, true, true, true},
    {"no x0", 3, 70, true, false, true},
    {"no gain", 64, 128, true, true, false},
    {"wide", 5, 768, true, true, true},
    {"many tokens", 1000, 40, true, false, false},
    {"only the residual's gradient", 3, 20, true, true, true, true, false},
    {"only the norm's gradient", 3, 20, true, true, true, false, true},
};

template <class T>
struct NormRun {
  const NormCase& c;
  std::int64_t n = c.tokens * c.width;
  std::vector<T> x = normal<T>(n, 1), delta = normal<T>(n, 2), x0 = normal<T>(n, 3), residual = unwritten<T>(n),
                 normed = unwritten<T>(n), d_residual = normal<T>(n, 4), d_normed = normal<T>(n, 5),
                 d_x = unwritten<T>(n), d_x0 = unwritten<T>(n);
  std::vector<float> keep = {0.75f}, again = {0.25f}, gain = normal<float>(c.width, 6),
                     inverse_rms = unwritten<float>(c.tokens);
  std::vector<double> sums = std::vector<double>(2 + c.width);
  float wanted = 0;     // where a sum would go: tells the kernel to compute it
  RowSum<T> rows = {};  // instead of delta

  void forward(bool split = false) {
    const AddNorm<T> p{x.data(),
                       c.delta && !rows.rows ? delta.data() : nullptr,
                       c.x0 ? x0.data() : nullptr,
                       keep.data(),
                       again.data(),
                       c.gain ? gain.data() : nullptr,
                       residual.data(),
                       normed.data(),
                       inverse_rms.data(),
                       c.tokens,
                       c.width,
                       1e-6f,
                       rows};
    in_pieces(c.tokens, split, [&](Range r) { add_norm_cpu(p, r); });
  }
  void backward(bool split = false) {
    const AddNormBackward<T> p = description();
    in_pieces(c.tokens, split, [&](Range r) { add_norm_backward_cpu(p, r, sums.data()); });
  }
  AddNormBackward<T> description() {
    AddNormBackward<T> p{};
    p.d_residual = c.d_residual ? d_residual.data() : nullptr;
    p.d_normed = c.d_normed ? d_normed.data() : nullptr;
    p.residual = residual.data(), p.inverse_rms = inverse_rms.data(), p.x0 = c.x0 ? x0.data() : nullptr;
    p.keep = keep.data(), p.again = again.data(), p.gain = c.gain ? gain.data() : nullptr;
    p.d_x = d_x.data(), p.d_x0 = c.x0 ? d_x0.data() : nullptr;
    p.d_keep = p.d_again = &wanted, p.d_gain = c.gain ? gain.data() : nullptr;
    p.tokens = c.tokens, p.width = c.width;
    return p;
  }
  double loss() {
    forward();
    return (c.d_residual ? dot(residual, d_residual) : 0) + (c.d_normed ? dot(normed, d_normed) : 0);
  }
};

TEST(AddNorm, MatchesPlainLoops) {
  for (const NormCase& c : kNormCases) {
    SCOPED_TRACE(c.name);
    NormRun<double> run{c};
    run.forward();
    std::vector<double> residual(run.n), normed(run.n);
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      double squares = 0;
      for (std::int64_t i = t * c.width; i < (t + 1) * c.width; ++i) {
        residual[i] = 0.75 * (run.x[i] + (c.delta ? run.delta[i] : 0)) + (c.x0 ? 0.25 * run.x0[i] : 0);
        squares += residual[i] * residual[i];
      }
      const double rms = std::sqrt(squares / c.width + static_cast<double>(1e-6f));
      for (std::int64_t i = t * c.width; i < (t + 1) * c.width; ++i) {
        normed[i] = residual[i] / rms * (c.gain ? run.gain[i % c.width] : 1);
      }
      EXPECT_NEAR(run.inverse_rms[t] * rms, 1, 1e-7);
    }
    EXPECT_CLOSE(run.residual, residual, 1e-13);
    EXPECT_CLOSE(run.normed, normed, 1e-13);
    NormRun<float> single{c};
    single.forward();
    EXPECT_CLOSE(single.normed, run.normed, 2e-6);
  }
}

TEST(AddNorm, BackwardIsTheGradient) {
  for (const NormCase& c : kNormCases) {
    SCOPED_TRACE(c.name);
    NormRun<double> run{c};
    run.forward();
    run.backward();
    NormRun<float> single{c};
    single.forward();
    single.backward();
    EXPECT_CLOSE(single.d_x, run.d_x, 1e-5);
    EXPECT_CLOSE(single.sums, run.sums, 1e-4);
    if (run.n > 200) continue;
    const auto loss = [&] { return run.loss(); };
    expect_gradient(run.x, run.d_x, loss, "x", 1e-3);
    if (c.delta) expect_gradient(run.delta, run.d_x, loss, "delta", 1e-3);
    if (c.x0) expect_gradient(run.x0, run.d_x0, loss, "x0", 1e-3);
    expect_gradient(run.keep, std::vector<double>{run.sums[0]}, loss, "keep");
    if (c.x0) expect_gradient(run.again, std::vector<double>{run.sums[1]}, loss, "again");
    if (c.gain) expect_gradient(run.gain, std::vector<double>(run.sums.begin() + 2, run.sums.end()), loss, "gain");
  }
}

// Rows whose sum the norm takes: the bits of a sum and a norm behind it.
template <class T>
void expect_rows_as_in_two_passes(const NormCase& c, int top_k) {
  const std::int64_t assignments = c.tokens * top_k;
  std::vector<int> row_of(assignments);
  for (std::int64_t i = 0; i < assignments; ++i) row_of[i] = i % 5 == 1 ? -1 : static_cast<int>(assignments - 1 - i);
  const std::vector<T> rows = normal<T>(assignments * c.width, 9);
  NormRun<T> two{c}, one{c};
  two.delta = unwritten<T>(two.n);
  combine_cpu(Combine<T>{rows.data(), row_of.data(), two.delta.data(), c.tokens, top_k, c.width}, {0, c.tokens});
  two.forward();
  one.rows = {rows.data(), row_of.data(), top_k};
  one.forward(/*split=*/true);
  EXPECT_TRUE(same_bits(one.residual, two.residual) && same_bits(one.normed, two.normed) &&
              same_bits(one.inverse_rms, two.inverse_rms))
      << c.name << ", K " << top_k;
}

TEST(AddNorm, SumsRowsAsAPassOfTheirOwn) {
  for (const NormCase& c : kNormCases)
    for (const int top_k : {1, 2, 3, 8}) {
      if (!c.delta) continue;
      expect_rows_as_in_two_passes<float>(c, top_k);
      expect_rows_as_in_two_passes<double>(c, top_k);
    }
}

// d_x0 may hold the gradient of x0's other readers; without d_x it takes the part of x too.
TEST(AddNorm, AddsToTheGradientOfX0) {
  for (const NormCase& c : kNormCases) {
    if (!c.x0) continue;
    SCOPED_TRACE(c.name);
    NormRun<double> run{c};
    run.forward();
    run.backward();
    for (const bool x_is_x0 : {false, true}) {
      const std::vector<double> before = normal<double>(run.n, 8);
      std::vector<double> sum = before, want = before;
      for (std::int64_t i = 0; i < run.n; ++i) want[i] += run.d_x0[i] + (x_is_x0 ? run.d_x[i] : 0);
      AddNormBackward<double> p = run.description();
      p.d_x = x_is_x0 ? nullptr : p.d_x, p.d_x0 = sum.data(), p.add_d_x0 = true;
      std::vector<double> sums(2 + c.width);
      add_norm_backward_cpu(p, {0, c.tokens}, sums.data());
      EXPECT_CLOSE(sum, want, 1e-13);
      EXPECT_CLOSE(sums, run.sums, 1e-13);
    }
  }
}

// x + delta is read out of the residual, where a small keep leaves little of it.
TEST(AddNorm, TheGradientOfKeepFadesOutNearZero) {
  const NormCase c{"scalars", 5, 24, true, true, false};
  for (const float keep : {kLeastKeep, -kLeastKeep, kLeastKeep / 4, -kLeastKeep / 4, 0.0f}) {
    NormRun<double> run{c};
    run.keep = {keep};
    run.forward();
    run.backward();
    double d_keep = 0;  // from d_x0 = again * total
    for (std::int64_t i = 0; i < run.n; ++i)
      d_keep += run.d_x0[i] / static_cast<double>(run.again[0]) * (run.x[i] + run.delta[i]);
    EXPECT_NEAR(run.sums[0], d_keep * std::fabs(keep) / static_cast<double>(kLeastKeep), 1e-9 * std::fabs(d_keep))
        << keep;
  }
}

TEST(AddNorm, RowsDoNotDependOnTheSplitAndAPlainNormStoresNoResidual) {
  for (const NormCase& c : kNormCases) {
    SCOPED_TRACE(c.name);
    NormRun<float> whole{c}, pieces{c};
    whole.forward(), whole.backward();
    pieces.forward(true), pieces.backward(true);
    EXPECT_TRUE(same_bits(whole.normed, pieces.normed) && same_bits(whole.d_x, pieces.d_x));
    EXPECT_CLOSE(pieces.sums, whole.sums, 1e-12);
  }
  const std::vector<float> x = normal<float>(26, 1);
  std::vector<float> normed = unwritten<float>(26), inverse = unwritten<float>(2);
  add_norm_cpu(AddNorm<float>{x.data(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, normed.data(),
                              inverse.data(), 2, 13, 0.0f},
               {0, 2});
  for (int i = 0; i < 26; ++i) EXPECT_FLOAT_EQ(normed[i], x[i] * inverse[i / 13]);
}

// ---- activation ----

struct ActivationCase {
  const char* name;
  ActivationKind kind;
  std::int64_t rows;
  int width;
  bool weight, padding;
};
std::vector<ActivationCase> activation_cases() {
  std::vector<ActivationCase> cases;
  for (const auto& [name, kind] :
       {std::pair("relu2", ActivationKind::kRelu2), std::pair("gelu", ActivationKind::kGelu),
        std::pair("swiglu", ActivationKind::kSwiglu), std::pair("geglu", ActivationKind::kGeglu)}) {
    for (const int width : {1, 8, 21, 100}) {
      cases.push_back({name, kind, 3, width, false, false});
      cases.push_back({name, kind, 7, width, true, true});
    }
    cases.push_back({name, kind, 1000, 64, true, true});
  }
  return cases;
}

template <class T>
struct ActivationRun {
  const ActivationCase& c;
  std::int64_t n = c.rows * c.width, in = is_gated(c.kind) ? 2 * n : n;
  int count = static_cast<int>(c.padding ? c.rows - 1 : c.rows);  // the last row is past the end
  std::vector<T> pre = normal<T>(in, 1, 2), out = unwritten<T>(n), d_out = normal<T>(n, 2), d_pre = unwritten<T>(in),
                 again = unwritten<T>(n);
  std::vector<float> weight = normal<float>(c.rows, 3), d_weight = unwritten<float>(c.rows);
  std::vector<int> row_token = std::vector<int>(c.rows, 0);

  explicit ActivationRun(const ActivationCase& given) : c(given) {
    if (!c.padding) return;
    row_token[1] = -1;  // and its input is never read
    std::fill_n(pre.begin() + in / c.rows, in / c.rows, std::numeric_limits<T>::quiet_NaN());
  }
  void forward(bool split = false) {
    const Activation<T> p{pre.data(),
                          c.weight ? weight.data() : nullptr,
                          c.padding ? row_token.data() : nullptr,
                          c.padding ? &count : nullptr,
                          out.data(),
                          c.rows,
                          c.width,
                          c.kind};
    in_pieces(c.rows, split, [&](Range r) { activation_cpu(p, r); });
  }
  void backward(bool split = false, bool in_place = false) {
    const ActivationBackward<T> p{pre.data(),
                                  d_out.data(),
                                  c.weight ? weight.data() : nullptr,
                                  c.padding ? row_token.data() : nullptr,
                                  c.padding ? &count : nullptr,
                                  d_pre.data(),
                                  in_place ? d_out.data() : again.data(),
                                  d_weight.data(),
                                  c.rows,
                                  c.width,
                                  c.kind};
    in_pieces(c.rows, split, [&](Range r) { activation_backward_cpu(p, r); });
  }
  double loss() {
    forward();
    double total = 0;
    for (std::int64_t i = 0; i < count * c.width; ++i) total += out[i] * d_out[i];
    return total;
  }
};

double plain_activation(ActivationKind kind, double x, double value) {
  const double gelu = x * 0.5 * std::erfc(-x / std::sqrt(2.0));
  switch (kind) {
    case ActivationKind::kRelu2:
      return x > 0 ? x * x : 0;
    case ActivationKind::kGelu:
      return gelu;
    case ActivationKind::kSwiglu:
      return x / (1 + std::exp(-x)) * value;
    case ActivationKind::kGeglu:
      return gelu * value;
  }
  return 0;
}

TEST(Activation, MatchesPlainLoopsAndLeavesRowsPastTheEnd) {
  for (const ActivationCase& c : activation_cases()) {
    SCOPED_TRACE(std::string(c.name) + " of width " + std::to_string(c.width));
    ActivationRun<double> run(c);
    ActivationRun<float> single(c);
    run.forward();
    single.forward();
    std::vector<double> expected = unwritten<double>(run.n);
    for (std::int64_t i = 0; i < run.count * c.width; ++i) {
      const std::int64_t r = i / c.width, first = r * (run.in / c.rows), column = i % c.width;
      const double value = is_gated(c.kind) ? run.pre[first + c.width + column] : 0;
      expected[i] = run.row_token[r] < 0
                        ? 0
                        : plain_activation(c.kind, run.pre[first + column], value) * (c.weight ? run.weight[r] : 1);
    }
    EXPECT_CLOSE(run.out, expected, 1e-13);
    EXPECT_CLOSE(single.out, run.out, 2e-6);
  }
}

TEST(Activation, BackwardIsTheGradientAndGivesForwardAgain) {
  for (const ActivationCase& c : activation_cases()) {
    SCOPED_TRACE(std::string(c.name) + " of width " + std::to_string(c.width));
    ActivationRun<double> run(c);
    run.forward();
    run.backward();
    EXPECT_CLOSE(run.again, run.out, 1e-14);
    ActivationRun<float> single(c), pieces(c);
    single.backward();
    EXPECT_CLOSE(single.d_pre, run.d_pre, 5e-6);
    EXPECT_CLOSE(single.d_weight, run.d_weight, 2e-5);
    pieces.backward(true, true);
    EXPECT_TRUE(same_bits(single.d_pre, pieces.d_pre) && same_bits(single.d_weight, pieces.d_weight));
    for (std::int64_t i = 0; i < run.count * c.width; ++i) ASSERT_EQ(pieces.d_out[i], single.again[i]);
    if (c.rows > 7) continue;
    if (c.padding) {
      const std::int64_t row = run.in / c.rows;
      for (std::int64_t i = row; i < 2 * row; ++i) ASSERT_EQ(run.d_pre[i], 0);
      EXPECT_EQ(run.d_weight[1], 0);
      std::fill_n(run.d_pre.begin() + (c.rows - 1) * row, row, 0);  // not written: past the end
      run.d_weight[c.rows - 1] = 0;
      std::fill_n(run.pre.begin() + row, row, 0.0);  // a NaN cannot be stepped from
    }
    const auto loss = [&] { return run.loss(); };
    // relu^2 bends at 0: a small step seldom crosses it
    expect_gradient(run.pre, run.d_pre, loss, "pre", c.kind == ActivationKind::kRelu2 ? 1e-6 : 1e-3);
    if (c.weight) expect_gradient(run.weight, run.d_weight, loss, "weight");
  }
}

}  // namespace
}  // namespace switchyard::kernels
