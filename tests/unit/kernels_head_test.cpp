// qkv_rope and cross_entropy on the CPU: against plain loops in double, finite differences, float against double,
// splits.
#include "kernels/cross_entropy.h"
#include "kernels/qkv_rope.h"
#include "kernels_testing.h"

namespace switchyard::kernels {
namespace {

// ---- qkv_rope ----

struct RopeCase {
  const char* name;
  std::int64_t tokens;
  int seq_len, heads, kv_heads, head_dim;
  bool value, norm;
};
const std::vector<RopeCase> kRopeCases = {
    {"one token", 1, 1, 1, 1, 2, false, true},     {"grouped queries", 6, 3, 4, 2, 16, true, true},
    {"no norm", 6, 6, 2, 2, 16, true, false},      {"odd half", 4, 2, 2, 1, 10, true, true},
    {"heads of 64", 64, 32, 3, 3, 64, true, true}, {"no value", 1000, 250, 2, 1, 32, false, true},
};

template <class T>
struct RopeRun {
  const RopeCase& c;
  std::int64_t nq = c.tokens * c.heads * c.head_dim, nk = c.tokens * c.kv_heads * c.head_dim,
               ng = c.tokens * c.kv_heads;
  int half = c.head_dim / 2;
  std::vector<T> qkv = normal<T>(nq + 2 * nk, 1), value = normal<T>(nk, 2), gate = normal<T>(ng, 3),
                 q = unwritten<T>(nq), k = unwritten<T>(nk), v = unwritten<T>(nk), d_q = normal<T>(nq, 4),
                 d_k = normal<T>(nk, 5), d_v = normal<T>(nk, 6), d_qkv = unwritten<T>(nq + 2 * nk),
                 d_value = unwritten<T>(nk), d_gate = unwritten<T>(ng);
  std::vector<float> cos = std::vector<float>(c.seq_len * half), sin = std::vector<float>(c.seq_len * half);

  explicit RopeRun(const RopeCase& given) : c(given) {
    for (int i = 0; i < c.seq_len * half; ++i) {
      const double angle = (i / half + 0.3) * std::pow(100.0, -(i % half) / static_cast<double>(half));
      cos[i] = static_cast<float>(std::cos(angle));
      sin[i] = static_cast<float>(std::sin(angle));
    }
  }
  const T* optional(const std::vector<T>& x) const { return c.value ? x.data() : nullptr; }
  void forward(bool split = false) {
    const QkvRope<T> p{qkv.data(), optional(value), optional(gate), cos.data(), sin.data(),
                       q.data(),   k.data(),        v.data(),       c.tokens,   c.seq_len,
                       c.heads,    c.kv_heads,      c.head_dim,     c.norm,     1e-6f};
    in_pieces(c.tokens, split, [&](Range r) { qkv_rope_cpu(p, r); });
  }
  void backward(bool split = false) {
    const QkvRopeBackward<T> p{qkv.data(),
                               optional(value),
                               optional(gate),
                               cos.data(),
                               sin.data(),
                               d_q.data(),
                               d_k.data(),
                               d_v.data(),
                               d_qkv.data(),
                               c.value ? d_value.data() : nullptr,
                               c.value ? d_gate.data() : nullptr,
                               c.tokens,
                               c.seq_len,
                               c.heads,
                               c.kv_heads,
                               c.head_dim,
                               c.norm,
                               1e-6f};
    in_pieces(c.tokens, split, [&](Range r) { qkv_rope_backward_cpu(p, r); });
  }
  double loss() {
    forward();
    return dot(q, d_q) + dot(k, d_k) + dot(v, d_v);
  }
};

// One head of q or k, from `in` to `out`.
void plain_head(const RopeRun<double>& run, std::int64_t t, const double* in, double* out) {
  double squares = 0;
  for (int i = 0; i < run.c.head_dim; ++i) squares += in[i] * in[i];
  const double rms = run.c.norm ? std::sqrt(squares / run.c.head_dim + static_cast<double>(1e-6f)) : 1;
  for (int i = 0; i < run.half; ++i) {
    const double cos = run.cos[t % run.c.seq_len * run.half + i], sin = run.sin[t % run.c.seq_len * run.half + i];
    out[i] = (in[i] * cos + in[i + run.half] * sin) / rms;
    out[i + run.half] = (in[i + run.half] * cos - in[i] * sin) / rms;
  }
}

TEST(QkvRope, MatchesPlainLoops) {
  for (const RopeCase& c : kRopeCases) {
    SCOPED_TRACE(c.name);
    RopeRun<double> run(c);
    run.forward();
    std::vector<double> q(run.nq), k(run.nk), v(run.nk);
    const int C = c.head_dim;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      const double* row = run.qkv.data() + t * (c.heads + 2 * c.kv_heads) * C;
      for (int h = 0; h < c.heads; ++h) plain_head(run, t, row + h * C, q.data() + (t * c.heads + h) * C);
      for (int j = 0; j < c.kv_heads; ++j) {
        plain_head(run, t, row + (c.heads + j) * C, k.data() + (t * c.kv_heads + j) * C);
        const double factor = c.value ? 2 / (1 + std::exp(-run.gate[t * c.kv_heads + j])) : 0;
        for (int i = 0; i < C; ++i) {
          const std::int64_t to = (t * c.kv_heads + j) * C + i;
          v[to] = row[(c.heads + c.kv_heads + j) * C + i] + factor * run.value[to];
        }
      }
    }
    EXPECT_CLOSE(run.q, q, 1e-13);
    EXPECT_CLOSE(run.k, k, 1e-13);
    EXPECT_CLOSE(run.v, v, 1e-13);
    RopeRun<float> single(c), pieces(c);
    single.forward();
    pieces.forward(true);
    EXPECT_CLOSE(single.q, run.q, 2e-6);
    EXPECT_CLOSE(single.k, run.k, 2e-6);
    EXPECT_CLOSE(single.v, run.v, 2e-6);
    EXPECT_TRUE(same_bits(single.q, pieces.q) && same_bits(single.k, pieces.k) && same_bits(single.v, pieces.v));
  }
}

TEST(QkvRope, BackwardIsTheGradient) {
  for (const RopeCase& c : kRopeCases) {
    SCOPED_TRACE(c.name);
    RopeRun<double> run(c);
    run.backward();
    RopeRun<float> single(c), pieces(c);
    single.backward();
    pieces.backward(true);
    EXPECT_CLOSE(single.d_qkv, run.d_qkv, 5e-6);
    EXPECT_TRUE(same_bits(single.d_qkv, pieces.d_qkv));
    if (c.value) { EXPECT_CLOSE(single.d_gate, run.d_gate, 1e-5); }
    if (c.tokens > 6) continue;
    const auto loss = [&] { return run.loss(); };
    expect_gradient(run.qkv, run.d_qkv, loss, "qkv", 1e-4, 200);
    if (c.value) expect_gradient(run.value, run.d_value, loss, "value", 1e-3);
    if (c.value) expect_gradient(run.gate, run.d_gate, loss, "gate", 1e-3);
  }
}

// ---- cross_entropy ----

struct LossCase {
  const char* name;
  std::int64_t tokens;
  int vocab;
  float cap;
  double scale;  // of the logits
};
const std::vector<LossCase> kLossCases = {
    {"one class", 1, 1, 15, 1},       {"two classes", 3, 2, 0, 1},
    {"odd vocabulary", 3, 13, 15, 8}, {"no cap", 3, 40, 0, 8},
    {"large cap", 3, 40, 90, 200},    {"saturated cap", 3, 40, 15, 60},
    {"large logits", 3, 40, 0, 500},  {"whole vocabulary", 5, 4096, 15, 4},
    {"many tokens", 1000, 70, 15, 4}, {"small logits", 3, 4096, 15, 1e-3},
};

template <class T>
struct LossRun {
  const LossCase& c;
  std::vector<T> logits = normal<T>(c.tokens * c.vocab, 1, c.scale);
  std::vector<std::int64_t> target = std::vector<std::int64_t>(c.tokens);
  std::vector<float> nll = unwritten<float>(c.tokens);

  explicit LossRun(const LossCase& given) : c(given) {
    for (std::int64_t t = 0; t < c.tokens; ++t) target[t] = t % 3 == 1 ? -1 : t * 7919 % c.vocab;
  }
  void compute(bool gradient, bool split = false) {
    const CrossEntropy<T> p{logits.data(), target.data(), nll.data(), c.tokens, c.vocab, c.cap, 0.5f, gradient};
    in_pieces(c.tokens, split, [&](Range r) { cross_entropy_cpu(p, r); });
  }
};

double plain_nll(const std::vector<double>& logits, const LossRun<double>& run, std::int64_t t) {
  if (run.target[t] < 0) return 0;
  const auto z = [&](std::int64_t v) {
    const double logit = logits[t * run.c.vocab + v];
    return run.c.cap > 0 ? run.c.cap * std::tanh(logit / run.c.cap) : logit;
  };
  double best = z(0), total = 0;
  for (int v = 0; v < run.c.vocab; ++v) best = std::max(best, z(v));
  for (int v = 0; v < run.c.vocab; ++v) total += std::exp(z(v) - best);
  return best + std::log(total) - z(run.target[t]);
}

TEST(CrossEntropy, MatchesPlainLoopsAndLeavesTheLogitsWithoutGradient) {
  for (const LossCase& c : kLossCases) {
    SCOPED_TRACE(c.name);
    LossRun<double> run(c);
    const std::vector<double> logits = run.logits;
    run.compute(false);
    EXPECT_TRUE(same_bits(run.logits, logits));
    std::vector<double> expected(c.tokens);
    for (std::int64_t t = 0; t < c.tokens; ++t) expected[t] = plain_nll(logits, run, t);
    EXPECT_CLOSE(run.nll, expected, 1e-7);
    LossRun<float> single(c), with_gradient(c);
    const std::vector<float> single_logits = single.logits;
    single.compute(false);
    with_gradient.compute(true);
    EXPECT_CLOSE(single.nll, run.nll, 2e-6);
    EXPECT_TRUE(same_bits(single.nll, with_gradient.nll));
    EXPECT_TRUE(same_bits(single.logits, single_logits));
  }
}

TEST(CrossEntropy, GradientOverwritesTheLogits) {
  for (const LossCase& c : kLossCases) {
    SCOPED_TRACE(c.name);
    LossRun<double> run(c);
    std::vector<double> logits = run.logits;
    run.compute(true);
    LossRun<float> single(c), pieces(c);
    single.compute(true);
    pieces.compute(true, true);
    EXPECT_CLOSE(single.logits, run.logits, 2e-6);
    EXPECT_TRUE(same_bits(single.logits, pieces.logits));
    for (std::int64_t t = 0; t < std::min<std::int64_t>(c.tokens, 3); ++t) {
      const auto row = run.logits.begin() + t * c.vocab;
      std::vector<double> gradient(run.logits.size());
      std::copy_n(row, c.vocab, gradient.begin() + t * c.vocab);
      if (c.vocab <= 40 && c.tokens <= 3) {
        expect_gradient(
            logits, gradient, [&] { return 0.5 * plain_nll(logits, run, t); }, "token", 1e-3, 200);
      }
      if (run.target[t] < 0) {
        EXPECT_TRUE(std::all_of(row, row + c.vocab, [](double d) { return d == 0; }));
      }
    }
  }
}

TEST(CrossEntropy, NanStaysInItsToken) {
  const LossCase c{"", 4, 24, 15, 1};
  LossRun<float> run(c);
  run.logits[3 * 24 + 5] = std::numeric_limits<float>::quiet_NaN();
  run.compute(true);
  EXPECT_TRUE(std::isnan(run.nll[3]) && std::isnan(run.logits[3 * 24 + 1]));
  EXPECT_TRUE(std::isfinite(run.nll[2]) && std::isfinite(run.logits[2 * 24 + 1]));
}

}  // namespace
}  // namespace switchyard::kernels
