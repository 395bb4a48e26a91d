// add_norm_router, forward and backward. Products are held to the sum of their terms' sizes.
#include <cstdio>

#include "kernels/add_norm_router.h"
#include "row_sums.h"

namespace switchyard::gpu_check {
namespace {

struct RouterNormCase {
  const char* name;
  int tokens, width, experts;
  bool gain;
  int top_k = 2;  // of the gradient that comes as rows
};
const std::vector<RouterNormCase> kCases = {
    {"one token", 1, 64, 8, false},
    {"odd tokens", 127, 768, 8, false},
    {"one expert", 33, 96, 1, true},
    {"one pack", 9, 8, 3, true, 3},
    {"odd experts", 65, 104, 13, true, 8},
    {"16 experts", 1003, 768, 16, false},
    {"every expert", 77, 768, 16, false, 16},
    {"top 1", 131, 768, 8, false, 1},
    {"top 3, gain", 131, 768, 8, true, 3},
    {"top 5", 1001, 768, 8, false, 5},
    {"wide", 41, 1280, 8, false},
    {"wide, top 3", 1041, 1280, 8, false, 3},
    {"widest", 19, 1536, 16, true},
    {"width 800", 30, 800, 5, false, 1},
    {"many rows", 20011, 256, 8, true},
    {"more rows than blocks", 9001, 768, 8, false},
    {"17 experts", 131, 768, 17, false, 4},
    {"32 experts, more rows than blocks", 2203, 768, 32, false, 4},
    {"32 experts, top 8, gain, more rows than blocks", 2203, 768, 32, true, 8},
    {"31 experts, gain", 77, 200, 31, true, 3},
    {"32 experts, wide", 141, 1280, 32, false, 4},
};
constexpr double kEps = 1e-6;

// How far a product of values as the tensor cores see them may be off, to the sum of its terms' sizes.
template <class T>
constexpr double kSplit = sizeof(T) == 2 ? 1e-5 : 2e-6;

// got and want as fractions of `size`, what each may be off.
void compare_scaled(Report& report, const std::string& kernel, const std::string& what, Values got, Values want,
                    const Values& size) {
  for (std::size_t i = 0; i < got.size(); ++i) got[i] /= size[i], want[i] /= size[i];
  report.compare(kernel, what, got, want, {0, 1});
}

// What forward stores, and what it was given.
template <class T>
struct Forward {
  const RouterNormCase& c;
  Random random{23};
  const std::size_t size = static_cast<std::size_t>(c.tokens) * c.width, pairs = c.tokens * c.experts;
  const Input<T> x{random.normal(size)}, delta{random.normal(size)};
  const Input<float> gain{random.normal(c.width)}, w{random.normal(c.experts * c.width, 0.3)};
  Buffer<T> residual{size}, normed{size};
  Buffer<float> inverse{static_cast<std::size_t>(c.tokens)}, logits{pairs};

  const float* given_gain() const { return c.gain ? gain.get() : nullptr; }
  double scale(int j) const { return c.gain ? gain[j] : 1; }

  void run(Report& report) {
    const std::string kernel = "add_norm_router " + type_name<T>(), name = c.name;
    run_captured([&](Stream s) {
      kernels::add_norm_router(kernels::AddNormRouter<T>{x.get(), delta.get(), given_gain(), w.get(), residual.get(),
                                                         normed.get(), inverse.get(), logits.get(), c.tokens, c.width,
                                                         c.experts, static_cast<float>(kEps)},
                               s);
    });
    Values sum(size), want(size), want_inverse(c.tokens), want_logits(pairs), logit_size(pairs, 1e-30);
    for (std::size_t i = 0; i < size; ++i) sum[i] = x[i] + delta[i];
    const Values stored = values_of(residual), n = values_of(normed);
    for (int t = 0; t < c.tokens; ++t) {
      const double* r = &stored[static_cast<std::size_t>(t) * c.width];
      double squares = 0;
      for (int j = 0; j < c.width; ++j) squares += r[j] * r[j];
      want_inverse[t] = 1 / std::sqrt(squares / c.width + kEps);
      for (int j = 0; j < c.width; ++j) {
        const std::size_t i = static_cast<std::size_t>(t) * c.width + j;
        want[i] = r[j] * want_inverse[t] * scale(j);
        for (int e = 0; e < c.experts; ++e) {
          const double product = n[i] * w[e * c.width + j];
          want_logits[t * c.experts + e] += product;
          logit_size[t * c.experts + e] += kSplit<T> * std::fabs(product);
        }
      }
    }
    report.compare(kernel, name + ": residual", stored, sum, bound_of<T>());
    report.compare(kernel, name + ": normed", n, want, bound_of<T>());
    report.compare(kernel, name + ": inverse rms", values_of(inverse), want_inverse, {1e-5, 0});
    compare_scaled(report, kernel, name + ": logits", values_of(logits), want_logits, logit_size);
    report.expect(kernel, name + ": writes stay inside",
                  residual.guard_intact() && normed.guard_intact() && inverse.guard_intact() && logits.guard_intact());
  }
};

struct Given {
  const char* name;
  bool residual, normed, rows;
};
const std::vector<Given> kGiven = {
    {"", true, true, false},
    {", logits alone", false, false, false},
    {", rows", true, false, true},
    {", rows and another reader", true, true, true},
    {", rows alone", false, false, true},
};

template <class T>
void check_backward(Report& report, Forward<T>& f, const Given& given) {
  const RouterNormCase& c = f.c;
  const std::string kernel = "add_norm_router_backward " + type_name<T>(), name = std::string(c.name) + given.name;
  const Input<T> d_residual(f.random.normal(f.size)), d_normed(f.random.normal(f.size));
  const Rows<T> rows(f.random, c.tokens, c.top_k, c.width);
  const Input<float> d_logits(f.random.normal(f.pairs));
  const Values start_w(c.experts * c.width, 0.5), start_gain(c.width, 0.5);  // the sums are added to
  const Input<float> d_w(start_w), d_w_again(start_w), d_gain(start_gain), d_gain_again(start_gain);
  Buffer<T> d_x(f.size);
  Buffer<float> scratch(kernels::add_norm_router_scratch(c.tokens, c.width, c.experts));
  const auto run = [&](float* into_w, float* into_gain) {
    run_captured([&](Stream s) {
      kernels::add_norm_router_backward(
          kernels::AddNormRouterBackward<T>{
              given.residual ? d_residual.get() : nullptr, given.normed ? d_normed.get() : nullptr, d_logits.get(),
              f.residual.get(), c.experts > kernels::kFusedWeightExperts ? f.normed.get() : nullptr, f.inverse.get(),
              f.logits.get(), f.given_gain(), f.w.get(), d_x.get(), into_w, c.gain ? into_gain : nullptr, scratch.get(),
              c.tokens, c.width, c.experts},
          s, given.rows ? rows.of() : kernels::RowSum<T>{});
    });
  };
  run(d_w.get(), d_gain.get());
  run(d_w_again.get(), d_gain_again.get());

  const Values r = values_of(f.residual), n = values_of(f.normed), inverse = values_of(f.inverse),
               logits = values_of(f.logits);
  Values want(f.size), size(f.size), want_w = start_w, size_w(start_w.size(), 1e-6), want_gain = start_gain,
                                     size_gain(start_gain.size(), 1e-6);
  for (int t = 0; t < c.tokens; ++t) {
    Values g(c.width), off(c.width);  // the gradient of n, and how far its products may be off
    double dot = 0, dot_size = 0;
    for (int e = 0; e < c.experts; ++e) {
      const double d = d_logits[t * c.experts + e], of_logit = d * logits[t * c.experts + e] / inverse[t];
      dot += of_logit, dot_size += std::fabs(of_logit);
    }
    for (int j = 0; j < c.width; ++j) {
      const std::size_t i = static_cast<std::size_t>(t) * c.width + j;
      const double others = (given.normed ? d_normed[i] : 0) + (given.rows ? rows.sum[i] : 0);
      // With nine to sixteen experts the sum is rounded to T.
      const bool rounds = given.rows && c.experts > 8 && c.experts <= kernels::kFusedWeightExperts && sizeof(T) == 2;
      const double rounded = rounds ? std::fabs(others) / 256 : 0;
      for (int e = 0; e < c.experts; ++e) {
        const double d = d_logits[t * c.experts + e], product = d * f.w[e * c.width + j];
        g[j] += product, off[j] += 4 * kSplit<T> * std::fabs(product);
        want_w[e * c.width + j] += d * n[i], size_w[e * c.width + j] += kSplit<T> * std::fabs(d * n[i]);
      }
      g[j] += others, off[j] += rounded;
      want_gain[j] += g[j] * r[i] * inverse[t];
      size_gain[j] += (1e-5 * std::fabs(g[j]) + off[j]) * std::fabs(r[i] * inverse[t]);
      dot += others * f.scale(j) * r[i];
      dot_size += std::fabs(others * f.scale(j) * r[i]) + 1e5 * rounded * std::fabs(f.scale(j) * r[i]);
    }
    const double along = inverse[t] * inverse[t] * inverse[t] / c.width;
    for (int j = 0; j < c.width; ++j) {
      const std::size_t i = static_cast<std::size_t>(t) * c.width + j;
      want[i] = (given.residual ? d_residual[i] : 0) + inverse[t] * g[j] * f.scale(j) - along * dot * r[i];
      size[i] = inverse[t] * off[j] * std::fabs(f.scale(j)) + 1e-5 * (along * dot_size * std::fabs(r[i]) + 1) +
                std::fabs(want[i]) * (sizeof(T) == 2 ? 1.0 / 250 : 2e-5);
    }
  }
  compare_scaled(report, kernel, name + ": d_x", values_of(d_x), want, size);
  compare_scaled(report, kernel, name + ": d_w", values_of(d_w.device), want_w, size_w);
  report.compare(kernel, name + ": d_w repeats bit for bit", values_of(d_w_again.device), values_of(d_w.device),
                 kExact);
  if (c.gain) {
    compare_scaled(report, kernel, name + ": d_gain", values_of(d_gain.device), want_gain, size_gain);
    report.compare(kernel, name + ": d_gain repeats bit for bit", values_of(d_gain_again.device),
                   values_of(d_gain.device), kExact);
  }
  report.expect(
      kernel, name + ": writes stay inside",
      d_x.guard_intact() && d_w.device.guard_intact() && d_gain.device.guard_intact() && scratch.guard_intact());
}

template <class T>
void check_case(Report& report, const RouterNormCase& c) {
  if (!kernels::add_norm_takes_router<T>(c.width, c.experts)) {
    std::printf("skipped: add_norm_router %s, %s: too little shared memory\n", type_name<T>().c_str(), c.name);
    return;
  }
  Forward<T> forward{c};
  forward.run(report);
  for (const Given& given : kGiven) check_backward(report, forward, given);
}

}  // namespace

void check_add_norm_router(Report& report) {
  report.expect("add_norm_router", "takes shapes that fit",
                kernels::add_norm_takes_router<float>(768, 16) && kernels::add_norm_takes_router<bf16>(352, 32) &&
                    !kernels::add_norm_takes_router<bf16>(768, 33) && !kernels::add_norm_takes_router<bf16>(1544, 8));
  for (const RouterNormCase& c : kCases) {
    check_case<float>(report, c);
    check_case<bf16>(report, c);
  }
}

}  // namespace switchyard::gpu_check
