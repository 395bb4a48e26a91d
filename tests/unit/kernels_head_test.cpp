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
  std::int64_t nv = c.tokens * c.kv_heads * c.head_dim, n = c.tokens * c.heads * c.head_dim + 2 * nv,
               ng = c.tokens * c.kv_heads;
  int half = c.head_dim / 2;
  QkvHeads size{c.tokens, c.seq_len, c.heads, c.kv_heads, c.head_dim};
  std::vector<T> in = normal<T>(n, 1), value = normal<T>(nv, 2), gate = normal<T>(ng, 3), d_out = normal<T>(n, 4),
                 out = unwritten<T>(n), d_in = unwritten<T>(n), d_value = unwritten<T>(nv), d_gate = unwritten<T>(ng);
  std::vector<float> cos = std::vector<float>(c.seq_len * half), sin = std::vector<float>(c.seq_len * half),
                     inverse = unwritten<float>(c.tokens * (c.heads + c.kv_heads));

  explicit RopeRun(const RopeCase& given) : c(given) {
    for (int i = 0; i < c.seq_len * half; ++i) {
      const double angle = (i / half + 0.3) * std::pow(100.0, -(i % half) / static_cast<double>(half));
      cos[i] = static_cast<float>(std::cos(angle));
      sin[i] = static_cast<float>(std::sin(angle));
    }
  }
  float* norms() { return c.norm ? inverse.data() : nullptr; }
  void forward(bool split = false) {
    out = in;
    const QkvRope<T> p{size, out.data(), norms(), cos.data(), sin.data(), 1e-6f};
    in_pieces(c.tokens, split, [&](Range r) { qkv_rope_cpu(p, r); });
    const ValueEmbeddings<T> v{size, out.data(), value.data(), gate.data()};
    if (c.value) in_pieces(c.tokens, split, [&](Range r) { value_embeddings_cpu(v, r); });
  }
  void backward(bool split = false) {
    forward(split);
    d_in = d_out;
    const ValueEmbeddingsBackward<T> v{size, d_in.data(), value.data(), gate.data(), d_value.data(), d_gate.data()};
    if (c.value) in_pieces(c.tokens, split, [&](Range r) { value_embeddings_backward_cpu(v, r); });
    const QkvRopeBackward<T> p{size, out.data(), norms(), cos.data(), sin.data(), d_in.data()};
    in_pieces(c.tokens, split, [&](Range r) { qkv_rope_backward_cpu(p, r); });
  }
  double loss() {
    forward();
    return dot(out, d_out);
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
    std::vector<double> want(run.n);
    const int C = c.head_dim, rotated = c.heads + c.kv_heads;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      const std::int64_t row = t * run.size.width();
      for (int h = 0; h < rotated; ++h) plain_head(run, t, run.in.data() + row + h * C, want.data() + row + h * C);
      for (int j = 0; j < c.kv_heads; ++j) {
        const double factor = c.value ? 2 / (1 + std::exp(-run.gate[t * c.kv_heads + j])) : 0;
        for (int i = 0; i < C; ++i) {
          const std::int64_t at = row + (rotated + j) * C + i;
          want[at] = run.in[at] + factor * run.value[(t * c.kv_heads + j) * C + i];
        }
      }
    }
    EXPECT_CLOSE(run.out, want, 1e-13);
    RopeRun<float> single(c), pieces(c);
    single.forward();
    pieces.forward(true);
    EXPECT_CLOSE(single.out, run.out, 2e-6);
    EXPECT_TRUE(same_bits(single.out, pieces.out));
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
    EXPECT_CLOSE(single.d_in, run.d_in, 5e-6);
    EXPECT_TRUE(same_bits(single.d_in, pieces.d_in));
    if (c.value) { EXPECT_CLOSE(single.d_gate, run.d_gate, 1e-5); }
    if (c.tokens > 6) continue;
    const auto loss = [&] { return run.loss(); };
    expect_gradient(run.in, run.d_in, loss, "qkv", 1e-4, 200);
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
