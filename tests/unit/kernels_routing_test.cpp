// Routing on the CPU: scores and choice against plain loops, gradients against finite differences, the dispatch plan's
// invariants, and the moves of rows.
#include <numeric>
#include <set>

#include "kernels/dispatch.h"
#include "kernels/router.h"
#include "kernels_testing.h"

namespace switchyard::kernels {
namespace {

// ---- router ----

struct RouterCase {
  std::int64_t tokens, group_size;
  int experts, top_k;
  Score score;
  bool normalize, bias, rotate;
  double scale;  // of the logits; 0: all equal
};
std::string describe(const RouterCase& c) {
  return "T=" + std::to_string(c.tokens) + " G=" + std::to_string(c.group_size) + " E=" + std::to_string(c.experts) +
         " K=" + std::to_string(c.top_k) + " score " + std::to_string(static_cast<int>(c.score)) +
         (c.normalize ? " normalized" : "") + (c.bias ? " biased" : "") + (c.rotate ? " rotate" : "");
}
std::vector<RouterCase> router_cases() {
  std::vector<RouterCase> cases;
  for (const std::int64_t tokens : {1, 3, 64, 1000}) {
    for (const int experts : {1, 2, 8, 13, 16, 64}) {
      for (const int top_k : std::set<int>{1, 2, 4, experts}) {
        if (top_k > experts) continue;
        const bool odd = (tokens + experts + top_k) % 2 == 1;
        const std::int64_t group = tokens == 64 ? 16 : tokens;
        cases.push_back({tokens, group, experts, top_k, Score::kSoftmax, !odd, odd, true, 1.5});
        cases.push_back({tokens, group, experts, top_k, Score::kSigmoid, odd, true, false, 1.5});
        cases.push_back({tokens, group, experts, top_k, Score::kIdentity, false, false, true, 1.5});
        cases.push_back({tokens, group, experts, top_k, odd ? Score::kSoftmax : Score::kSigmoid, true, false, true, 0});
      }
    }
  }
  return cases;
}

template <class T>
struct RouterRun {
  const RouterCase& c;
  std::int64_t n = c.tokens * c.experts, nk = c.tokens * c.top_k, groups = c.tokens / c.group_size,
               ng = groups * c.experts;
  int seq_len = static_cast<int>(c.group_size);
  int first_position = 0;
  std::vector<T> logits = normal<T>(n, 1, c.scale), weight = unwritten<T>(nk), prob_sum = std::vector<T>(ng),
                 importance = std::vector<T>(c.experts), z_sum = {0}, d_weight = normal<T>(nk, 3),
                 d_prob = normal<T>(ng, 4), d_importance = normal<T>(c.experts, 5), d_z = {static_cast<T>(0.375)},
                 d_logits = unwritten<T>(n);
  std::vector<float> bias = normal<float>(c.experts, 2, 0.2);
  std::vector<int> expert = std::vector<int>(nk, -7), count = std::vector<int>(ng);

  void forward(bool split = false) {
    std::fill(prob_sum.begin(), prob_sum.end(), T(0));
    std::fill(importance.begin(), importance.end(), T(0));
    std::fill(count.begin(), count.end(), 0);
    z_sum[0] = 0;
    const RouterScores<T> p{logits.data(),     c.bias ? bias.data() : nullptr,
                            expert.data(),     weight.data(),
                            count.data(),      prob_sum.data(),
                            importance.data(), z_sum.data(),
                            nullptr,           c.tokens,
                            c.group_size,      c.experts,
                            c.top_k,           seq_len,
                            c.score,           c.normalize,
                            c.rotate,          2.5f,
                            first_position};
    pieces(split, [&](Range r) { router_scores_cpu(p, r); });
  }
  void backward(bool split = false) {
    const RouterScoresBackward<T> p{logits.data(), expert.data(),   d_weight.data(), d_prob.data(), d_importance.data(),
                                    d_z.data(),    d_logits.data(), c.tokens,        c.group_size,  c.experts,
                                    c.top_k,       c.score,         c.normalize,     2.5f};
    pieces(split, [&](Range r) { router_scores_backward_cpu(p, r); });
  }
  // Whole groups, or parts of the only one.
  template <class F>
  void pieces(bool split, F&& work) {
    const std::int64_t unit = groups > 1 ? c.group_size : 1;
    in_pieces(c.tokens / unit, split, [&](Range r) { work(Range{r.begin * unit, r.end * unit}); });
  }
  double loss() {
    forward();
    return dot(weight, d_weight) + dot(prob_sum, d_prob) + dot(importance, d_importance) + z_sum[0] * d_z[0];
  }
};

// The definition, one token at a time.
void plain_router(RouterRun<double>& run, std::vector<double>& weight, std::vector<double>& prob_sum,
                  std::vector<double>& importance, double& z_sum) {
  const RouterCase& c = run.c;
  const int E = c.experts, K = c.top_k;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const double* l = run.logits.data() + t * E;
    double total = 0, sigmoid_total = 0;
    for (int e = 0; e < E; ++e) total += std::exp(l[e]), sigmoid_total += 1 / (1 + std::exp(-l[e]));
    std::vector<double> s(E), q(E);
    for (int e = 0; e < E; ++e) {
      const double softmax = std::exp(l[e]) / total, sigmoid = 1 / (1 + std::exp(-l[e]));
      s[e] = c.score == Score::kSoftmax ? softmax : c.score == Score::kSigmoid ? sigmoid : l[e];
      q[e] = s[e] + (c.bias ? run.bias[e] : 0);
      prob_sum[t / c.group_size * E + e] += c.score == Score::kSigmoid ? sigmoid / sigmoid_total : softmax;
    }
    std::vector<int> order(E);
    std::iota(order.begin(), order.end(), 0);
    const std::int64_t turn = c.rotate ? (run.first_position + t % run.seq_len) * K : 0;
    const auto place = [&](int e) { return ((e - turn) % E + E) % E; };
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return std::abs(q[a] - q[b]) > 1e-14 ? q[a] > q[b] : place(a) < place(b); });
    double norm = 0;
    for (int k = 0; k < K; ++k) norm += s[order[k]];
    for (int k = 0; k < K; ++k) {
      ASSERT_EQ(run.expert[t * K + k], order[k]) << "token " << t << " choice " << k;
      const double w = s[order[k]] / (c.normalize ? norm : 1);
      weight[t * K + k] = 2.5 * w;
      importance[order[k]] += w;
    }
    z_sum += std::log(total) * std::log(total);
  }
}

TEST(Router, MatchesTheDefinition) {
  for (const RouterCase& c : router_cases()) {
    SCOPED_TRACE(describe(c));
    RouterRun<double> run{c};
    run.forward();
    std::vector<double> weight(run.nk), prob_sum(run.ng), importance(c.experts), z_sum(1);
    ASSERT_NO_FATAL_FAILURE(plain_router(run, weight, prob_sum, importance, z_sum[0]));
    EXPECT_CLOSE(run.weight, weight, 1e-12);
    EXPECT_CLOSE(run.prob_sum, prob_sum, 1e-12);
    EXPECT_CLOSE(run.importance, importance, 1e-12);
    EXPECT_CLOSE(run.z_sum, z_sum, 1e-12);
    std::vector<int> count(run.ng);
    for (std::int64_t i = 0; i < run.nk; ++i) ++count[i / c.top_k / c.group_size * c.experts + run.expert[i]];
    EXPECT_EQ(run.count, count);

    RouterRun<float> single{c}, pieces{c};
    single.forward();
    pieces.forward(true);
    EXPECT_CLOSE(single.prob_sum, run.prob_sum, 1e-6);
    EXPECT_CLOSE(single.z_sum, run.z_sum, 1e-5);
    if (single.expert == run.expert) { EXPECT_CLOSE(single.weight, run.weight, 2e-6); }
    EXPECT_TRUE(same_bits(single.weight, pieces.weight) && single.expert == pieces.expert &&
                single.count == pieces.count);
    EXPECT_CLOSE(pieces.prob_sum, single.prob_sum, 1e-6);
  }
}

TEST(Router, BackwardIsTheGradient) {
  for (const RouterCase& c : router_cases()) {
    SCOPED_TRACE(describe(c));
    RouterRun<double> run{c};
    run.forward();
    run.backward();
    RouterRun<float> single{c}, pieces{c};
    single.expert = pieces.expert = run.expert;
    single.backward();
    pieces.backward(true);
    EXPECT_CLOSE(single.d_logits, run.d_logits, 1e-5);
    EXPECT_TRUE(same_bits(single.d_logits, pieces.d_logits));
    if (c.tokens > 3 || c.scale == 0) continue;  // at a tie a step changes the choice
    expect_gradient(
        run.logits, run.d_logits, [&] { return run.loss(); }, "logits", 2e-5);
  }
}

TEST(Router, NoGradientsGiveZeros) {
  const RouterCase c{3, 3, 8, 2, Score::kSoftmax, true, false, true, 1};
  RouterRun<float> run{c};
  run.forward();
  router_scores_backward_cpu(
      RouterScoresBackward<float>{run.logits.data(), run.expert.data(), nullptr, nullptr, nullptr, nullptr,
                                  run.d_logits.data(), 3, 3, 8, 2, c.score, true, 1.0f},
      {0, 3});
  EXPECT_EQ(run.d_logits, std::vector<float>(24));
}

// Equal logits: rotation gives every expert the same load when E divides T K, and cached decoding turns as the whole
// sequence does; the lowest index takes experts 0 to K-1.
TEST(Router, EqualLogits) {
  for (const auto& [experts, top_k] :
       {std::pair(8, 2), std::pair(16, 4), std::pair(64, 1), std::pair(13, 2), std::pair(4, 4)}) {
    for (const Score score : {Score::kSoftmax, Score::kSigmoid}) {
      RouterCase c{64, 64, experts, top_k, score, true, false, true, 0};
      RouterRun<float> run{c};
      run.forward();
      const auto [least, most] = std::minmax_element(run.count.begin(), run.count.end());
      EXPECT_LE(*most - *least, 64 * top_k % experts == 0 ? 0 : 1) << describe(c);
      const RouterCase tail_case{8, 8, experts, top_k, score, true, false, true, 0};
      RouterRun<float> tail{tail_case};
      tail.first_position = 56;
      tail.forward();
      EXPECT_TRUE(std::equal(tail.expert.begin(), tail.expert.end(), run.expert.end() - 8 * top_k)) << describe(c);
      c.rotate = false;
      run.forward();
      for (int i = 0; i < 64 * top_k; ++i) ASSERT_EQ(run.expert[i], i % top_k);
    }
  }
}

TEST(Router, NanAndInfiniteLogitsStillChooseDistinctExperts) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const Score score : {Score::kSoftmax, Score::kSigmoid, Score::kIdentity}) {
    const RouterCase c{4, 4, 6, 3, score, false, false, true, 1};
    RouterRun<float> run{c};
    for (int e = 0; e < 6; ++e) run.logits[e] = nan, run.logits[6 + e] = -infinity;
    run.logits[12] = nan;
    run.logits[18] = infinity;
    run.forward();
    for (int t = 0; t < 4; ++t) {
      const std::set<int> chosen(run.expert.begin() + 3 * t, run.expert.begin() + 3 * t + 3);
      EXPECT_TRUE(chosen.size() == 3 && *chosen.begin() >= 0 && *chosen.rbegin() < 6) << "token " << t;
    }
    EXPECT_EQ(std::accumulate(run.count.begin(), run.count.end(), 0), 12);
    run.backward();
  }
}

// ---- dispatch and the moves of rows ----

enum class Skew { kEven, kSingle, kHalfEmpty, kSomeDropped, kAllDropped };
struct DispatchCase {
  const char* name;
  std::int64_t tokens;
  int top_k, experts, alignment;
  Skew skew;
};
const std::vector<DispatchCase> kDispatchCases = {
    {"one token", 1, 1, 1, 1, Skew::kEven},
    {"one token, aligned", 1, 2, 8, 16, Skew::kEven},
    {"every expert chosen", 64, 4, 4, 1, Skew::kEven},
    {"odd rows", 127, 2, 8, 8, Skew::kEven},
    {"all on one expert", 1000, 1, 16, 128, Skew::kSingle},
    {"half the experts empty", 1000, 2, 64, 128, Skew::kHalfEmpty},
    {"some dropped", 64, 2, 8, 4, Skew::kSomeDropped},
    {"all dropped", 3, 2, 2, 8, Skew::kAllDropped},
};

struct Plan {
  const DispatchCase& c;
  std::int64_t assignments = c.tokens * c.top_k;
  std::int64_t row_capacity =
      (assignments + c.experts * (c.alignment - 1) + c.alignment - 1) / c.alignment * c.alignment;
  std::vector<int> expert = std::vector<int>(assignments), count = filled(c.experts), offset = filled(c.experts + 1),
                   end = filled(c.experts), token_of_row = filled(row_capacity), row_of = filled(assignments);
  static std::vector<int> filled(std::int64_t n) { return std::vector<int>(n, -99); }

  explicit Plan(const DispatchCase& given) : c(given) {
    for (std::int64_t i = 0; i < assignments; ++i) {
      const int even = static_cast<int>((i / c.top_k * 5 + i % c.top_k) % c.experts);
      const bool drop = c.skew == Skew::kAllDropped || (c.skew == Skew::kSomeDropped && i % 5 == 0);
      expert[i] = drop                         ? -1
                  : c.skew == Skew::kSingle    ? c.experts / 2
                  : c.skew == Skew::kHalfEmpty ? even / 2 * 2
                                               : even;
    }
    dispatch_cpu({expert.data(), count.data(), offset.data(), end.data(), token_of_row.data(), row_of.data(), nullptr,
                  c.tokens, c.top_k, c.experts, c.alignment, row_capacity});
  }
};

TEST(Dispatch, Invariants) {
  for (const DispatchCase& c : kDispatchCases) {
    SCOPED_TRACE(c.name);
    const Plan plan(c);
    const std::int64_t kept = std::count_if(plan.expert.begin(), plan.expert.end(), [](int e) { return e >= 0; });
    EXPECT_EQ(std::accumulate(plan.count.begin(), plan.count.end(), 0), kept);
    EXPECT_EQ(plan.offset[0], 0);
    EXPECT_LE(plan.offset[c.experts], plan.row_capacity);
    std::vector<int> expected_token(plan.row_capacity, -1), expected_row(plan.assignments, -1);
    for (int e = 0; e < c.experts; ++e) {
      EXPECT_EQ(plan.offset[e] % c.alignment, 0);
      EXPECT_EQ(plan.end[e], plan.offset[e + 1]);
      EXPECT_EQ(plan.offset[e + 1] - plan.offset[e], (plan.count[e] + c.alignment - 1) / c.alignment * c.alignment);
      int row = plan.offset[e];  // stable: the assignments of e in the order of (t, k)
      for (std::int64_t i = 0; i < plan.assignments; ++i) {
        if (plan.expert[i] != e) continue;
        expected_row[i] = row;
        expected_token[row++] = static_cast<int>(i / c.top_k);
      }
      EXPECT_EQ(row - plan.offset[e], plan.count[e]);
    }
    EXPECT_EQ(plan.row_of, expected_row);
    EXPECT_EQ(plan.token_of_row, expected_token);
  }
}

template <class T>
void check_moves(const DispatchCase& c, int width) {
  const Plan plan(c);
  const int used = plan.offset[c.experts];
  const std::vector<T> x = normal<T>(c.tokens * width, 1);
  for (const bool split : {false, true}) {
    std::vector<T> rows = unwritten<T>(plan.row_capacity * width), out = unwritten<T>(c.tokens * width);
    const PermuteRows<T> permute{
        x.data(), plan.row_of.data(), plan.token_of_row.data(), &used, rows.data(), c.tokens, c.top_k,
        width,    plan.row_capacity};
    in_pieces(permute.items(), split, [&](Range r) { permute_rows_cpu(permute, r); });
    for (std::int64_t i = 0; i < plan.row_capacity * width; ++i) {
      const std::int64_t token = plan.token_of_row[i / width];
      if (i >= static_cast<std::int64_t>(used) * width) {
        ASSERT_TRUE(std::isnan(rows[i]));
      } else {
        ASSERT_EQ(rows[i], token < 0 ? T(0) : x[token * width + i % width]);
      }
    }
    const std::vector<T> results = normal<T>(plan.row_capacity * width, 2);
    in_pieces(c.tokens, split, [&](Range r) {
      combine_cpu(Combine<T>{results.data(), plan.row_of.data(), out.data(), c.tokens, c.top_k, width}, r);
    });
    std::vector<double> expected(out.size());
    for (std::int64_t i = 0; i < plan.assignments; ++i) {
      for (int j = 0; j < width && plan.row_of[i] >= 0; ++j)
        expected[i / c.top_k * width + j] += static_cast<double>(results[plan.row_of[i] * width + j]);
    }
    EXPECT_CLOSE(out, expected, sizeof(T) == 8 ? 1e-14 : 1e-6);
  }
}

TEST(Dispatch, GatherAndCombine) {
  for (const DispatchCase& c : kDispatchCases) {
    SCOPED_TRACE(c.name);
    for (const int width : {1, 13, 64}) check_moves<float>(c, width), check_moves<double>(c, width);
  }
}

TEST(Dispatch, ValuesGoToRowsAndBack) {
  for (const DispatchCase& c : kDispatchCases) {
    SCOPED_TRACE(c.name);
    const Plan plan(c);
    const std::vector<float> values = normal<float>(plan.assignments, 1);
    std::vector<float> rows = unwritten<float>(plan.row_capacity), back = unwritten<float>(plan.assignments);
    values_to_rows_cpu({values.data(), plan.row_of.data(), plan.token_of_row.data(), rows.data(), plan.assignments,
                        plan.row_capacity});
    values_from_rows_cpu(
        {rows.data(), plan.row_of.data(), plan.token_of_row.data(), back.data(), plan.assignments, plan.row_capacity});
    for (std::int64_t i = 0; i < plan.assignments; ++i) ASSERT_EQ(back[i], plan.row_of[i] < 0 ? 0 : values[i]);
    for (std::int64_t r = 0; r < plan.row_capacity; ++r) {
      if (plan.token_of_row[r] < 0) { ASSERT_EQ(rows[r], 0); }
    }
  }
}

}  // namespace
}  // namespace switchyard::kernels
