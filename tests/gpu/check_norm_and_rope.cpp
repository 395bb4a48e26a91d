// add_norm and qkv_rope.
#include "harness.h"
#include "kernels/add_norm.h"
#include "kernels/dispatch.h"
#include "kernels/qkv_rope.h"
#include "row_sums.h"

namespace switchyard::gpu_check {
namespace {

struct NormCase {
  const char* name;
  int tokens, width;
  bool delta, x0, gain;
  int top_k = 0;  // delta is the sum of so many rows; 0: a tensor
};
const std::vector<NormCase> kNormCases = {
    {"one token", 1, 64, true, true, false},
    {"odd tokens", 127, 768, true, true, false},
    {"no x0", 33, 768, true, false, false},
    {"a plain norm", 65, 256, false, false, true},
    {"one pack", 9, 8, true, true, true},
    {"width 1000", 41, 1000, true, true, true},
    {"a block a row", 19, 2048, true, true, true},
    {"width 5128", 7, 5128, true, true, true},
    {"many rows", 20011, 512, true, true, true},
    {"rows, one pack, K 1", 9, 8, true, true, true, 1},
    {"rows, one pack, K 8", 9, 8, true, false, true, 8},
    {"rows, one token, K 2", 1, 768, true, true, false, 2},
    {"rows, width 256, K 1", 65, 256, true, true, false, 1},
    {"rows, width 512, K 3", 67, 512, true, false, false, 3},
    {"rows, K 1", 127, 768, true, true, false, 1},
    {"rows, K 2", 127, 768, true, true, false, 2},
    {"rows, no x0, K 2", 129, 768, true, false, false, 2},
    {"rows, K 3", 33, 768, true, true, true, 3},
    {"rows, K 5", 33, 768, true, true, false, 5},
    {"rows, K 8", 131, 768, true, true, false, 8},
    {"rows, width 1000, K 2", 41, 1000, true, true, true, 2},
    {"rows, width 1000, K 8", 41, 1000, true, true, true, 8},
    {"rows, a block a row, K 2", 19, 1280, true, true, false, 2},
    {"rows, a block a row, K 8", 19, 1280, true, true, true, 8},
    {"rows, width 4096, K 1", 7, 4096, true, false, true, 1},
    {"rows, width 4096, K 5", 7, 4096, true, true, true, 5},
    {"rows, width 5128, K 2", 7, 5128, true, true, true, 2},
    {"rows, width 5128, K 3", 7, 5128, true, true, true, 3},
    {"many rows, K 2", 20011, 768, true, true, false, 2},
};
constexpr double kEps = 1e-6;

// What a norm adds, [T, D]: a tensor, or rows that it sums.
template <class T>
struct Delta {
  Input<T> tensor;  // empty where rows are summed
  Rows<T> rows;
  Values sum;

  Delta(const NormCase& c, Random& random)
      : tensor(c.top_k > 0 ? Values() : random.normal(static_cast<std::size_t>(c.tokens) * c.width)),
        rows(random, c.tokens, c.top_k, c.width),
        sum(c.top_k > 0 ? added(rows, c.width) : tensor.host) {}
  kernels::RowSum<T> rows_of(const NormCase& c) const { return c.top_k > 0 ? rows.of() : kernels::RowSum<T>{}; }

 private:
  // Added in fp32, as the kernel adds: near the middle of two bf16 values another sum would round elsewhere.
  static Values added(const Rows<T>& rows, int width) {
    std::vector<float> sum(rows.sum.size());
    for (std::size_t i = 0; i < rows.row_of.size(); ++i)
      for (int j = 0; rows.row_of[i] >= 0 && j < width; ++j)
        sum[i / rows.top_k * width + j] +=
            static_cast<float>(rows.rows[static_cast<std::size_t>(rows.row_of[i]) * width + j]);
    Values rounded;
    for (const float value : sum) {
      T as_stored;
      from_double(value, as_stored);
      rounded.push_back(to_double(as_stored));
    }
    return rounded;
  }
};

// The same as a sum and a norm behind it, to the bit.
template <class T>
void check_two_passes(Report& report, const NormCase& c, kernels::AddNorm<T> a, const Values& residual,
                      const Values& normed) {
  Buffer<T> sum(residual.size()), same_residual(residual.size()), same_normed(residual.size());
  const kernels::Combine<T> combine{a.rows.rows, a.rows.row_of, sum.get(), c.tokens, c.top_k, c.width};
  a.delta = sum.get(), a.rows = {}, a.residual = same_residual.get(), a.normed = same_normed.get();
  run_captured([&](Stream s) {
    kernels::combine(combine, s);
    kernels::add_norm(a, s);
  });
  const std::string kernel = "add_norm " + type_name<T>(), name = c.name;
  report.compare(kernel, name + ": residual of two passes", residual, values_of(same_residual), kExact);
  report.compare(kernel, name + ": normed of two passes", normed, values_of(same_normed), kExact);
}

template <class T>
void check_forward(Report& report, const NormCase& c, const Input<T>& x, const Delta<T>& delta, const Input<T>& x0,
                   const Input<float>& scalars, const Input<float>& gain, Buffer<T>& residual, Buffer<float>& inverse) {
  const std::string kernel = "add_norm " + type_name<T>(), name = c.name;
  const bool plain = !c.delta && !c.x0;
  Buffer<T> normed(x.host.size());
  kernels::AddNorm<T> a{x.get(),
                        c.delta && c.top_k == 0 ? delta.tensor.get() : nullptr,
                        c.x0 ? x0.get() : nullptr,
                        plain ? nullptr : scalars.get(),
                        scalars.get() + 1,
                        c.gain ? gain.get() : nullptr,
                        plain ? nullptr : residual.get(),
                        normed.get(),
                        inverse.get(),
                        c.tokens,
                        c.width,
                        static_cast<float>(kEps),
                        delta.rows_of(c)};
  run_captured([&](Stream s) { kernels::add_norm(a, s); });

  Values sum(x.host.size());
  for (std::size_t i = 0; i < sum.size(); ++i)
    sum[i] = plain ? x[i] : scalars[0] * (x[i] + (c.delta ? delta.sum[i] : 0)) + (c.x0 ? scalars[1] * x0[i] : 0);
  if (plain) {
    std::vector<T> same = x.device.download();
    residual.upload(same);
  }
  const Values stored = values_of(residual);
  report.compare(kernel, name + ": residual", stored, sum, bound_of<T>());
  Values want(sum.size()), want_inverse(c.tokens);
  for (int t = 0; t < c.tokens; ++t) {
    double squares = 0;
    for (int j = 0; j < c.width; ++j) squares += stored[t * c.width + j] * stored[t * c.width + j];
    want_inverse[t] = 1 / std::sqrt(squares / c.width + kEps);
    for (int j = 0; j < c.width; ++j)
      want[t * c.width + j] = stored[t * c.width + j] * want_inverse[t] * (c.gain ? gain[j] : 1);
  }
  report.compare(kernel, name + ": normed", values_of(normed), want, bound_of<T>());
  report.compare(kernel, name + ": inverse rms", values_of(inverse), want_inverse, {1e-5, 0});
  report.expect(kernel, name + ": writes stay inside", normed.guard_intact() && residual.guard_intact());
  if (c.top_k > 0) check_two_passes(report, c, a, stored, values_of(normed));
}

// d_x0 as the gradient of other readers, to which the kernel adds; without d_x it takes the part of x too.
template <class T>
void check_sum_of_x0(Report& report, const std::string& what, kernels::AddNormBackward<T> b, const Values& want_x,
                     const Values& want_x0) {
  b.d_keep = b.d_again = b.d_gain = nullptr, b.add_d_x0 = true;
  for (const bool x_is_x0 : {false, true}) {
    const Input<T> sum(Random(13).normal(want_x0.size()));
    b.d_x0 = sum.get();
    if (x_is_x0) b.d_x = nullptr;
    run_captured([&](Stream s) { kernels::add_norm_backward(b, s); });
    Values want = sum.host;
    for (std::size_t i = 0; i < want.size(); ++i) want[i] += want_x0[i] + (x_is_x0 ? want_x[i] : 0);
    report.compare("add_norm_backward " + type_name<T>(), what + (x_is_x0 ? ": d_x0 and d_x added" : ": d_x0 added"),
                   values_of(sum.device), want, bound_of<T>());
    report.expect("add_norm_backward " + type_name<T>(), what + ": writes stay inside", sum.device.guard_intact());
  }
}

template <class T>
void check_backward(Report& report, const NormCase& c, const Input<T>& x0, const Input<float>& scalars,
                    const Input<float>& gain, const Buffer<T>& residual, const Buffer<float>& inverse) {
  const std::string kernel = "add_norm_backward " + type_name<T>(), name = c.name;
  Random random(11);
  const std::size_t size = x0.host.size();
  const Input<T> d_residual(random.normal(size)), d_normed(random.normal(size));
  Buffer<T> d_x(size), d_x0(size);
  const Values start(2 + c.width, 0.5);  // the sums are added to
  Input<float> sums(start), again(start);
  Buffer<float> scratch(kernels::add_norm_scratch(c.tokens, c.width));
  auto describe = [&](float* into) {
    return kernels::AddNormBackward<T>{d_residual.get(),
                                       d_normed.get(),
                                       residual.get(),
                                       inverse.get(),
                                       c.x0 ? x0.get() : nullptr,
                                       scalars.get(),
                                       scalars.get() + 1,
                                       c.gain ? gain.get() : nullptr,
                                       d_x.get(),
                                       c.x0 ? d_x0.get() : nullptr,
                                       into,
                                       c.x0 ? into + 1 : nullptr,
                                       c.gain ? into + 2 : nullptr,
                                       scratch.get(),
                                       c.tokens,
                                       c.width};
  };
  run_captured([&](Stream s) { kernels::add_norm_backward(describe(sums.get()), s); });
  run_captured([&](Stream s) { kernels::add_norm_backward(describe(again.get()), s); });

  const Values r = values_of(residual), inv = values_of(inverse);
  Values want_x(size), want_x0(size), want_sums = start, magnitude(2 + c.width, 1.0);
  for (int t = 0; t < c.tokens; ++t) {
    double dot = 0;
    for (int j = 0; j < c.width; ++j) dot += r[t * c.width + j] * d_normed[t * c.width + j] * (c.gain ? gain[j] : 1);
    for (int j = 0; j < c.width; ++j) {
      const int i = t * c.width + j;
      const double g = d_normed[i] * (c.gain ? gain[j] : 1);
      const double total = d_residual[i] + inv[t] * g - r[i] * inv[t] * inv[t] * inv[t] * dot / c.width;
      const double of_x0 = c.x0 ? total * x0[i] : 0;
      const double terms[4] = {total * r[i] / scalars[0], -scalars[1] * of_x0 / scalars[0], of_x0,
                               c.gain ? d_normed[i] * r[i] * inv[t] : 0};
      want_x[i] = scalars[0] * total;
      want_x0[i] = scalars[1] * total;
      const int places[4] = {0, 0, 1, 2 + j};
      for (int k = 0; k < 4; ++k) want_sums[places[k]] += terms[k], magnitude[places[k]] += std::fabs(terms[k]);
    }
  }
  report.compare(kernel, name + ": d_x", values_of(d_x), want_x, bound_of<T>());
  if (c.x0) report.compare(kernel, name + ": d_x0", values_of(d_x0), want_x0, bound_of<T>());
  Values got = values_of(sums.device);
  for (std::size_t i = 0; i < got.size(); ++i) got[i] /= magnitude[i], want_sums[i] /= magnitude[i];
  report.compare(kernel, name + ": sums, to the sum of their terms' sizes", got, want_sums, {0, 2e-6});
  report.compare(kernel, name + ": sums repeat bit for bit", values_of(again.device), values_of(sums.device), kExact);
  report.expect(kernel, name + ": writes stay inside",
                d_x.guard_intact() && d_x0.guard_intact() && scratch.guard_intact());
  if (c.x0) check_sum_of_x0(report, name, describe(nullptr), want_x, want_x0);
}

template <class T>
void check_norms(Report& report) {
  for (const NormCase& c : kNormCases) {
    Random random(5);
    const std::size_t size = static_cast<std::size_t>(c.tokens) * c.width;
    const Input<T> x(random.normal(size)), x0(random.normal(size));
    const Delta<T> delta(c, random);
    const Input<float> scalars({0.9, 0.3}), gain(random.normal(c.width));
    Buffer<T> residual(size);
    Buffer<float> inverse(c.tokens);
    check_forward(report, c, x, delta, x0, scalars, gain, residual, inverse);
    check_backward(report, c, x0, scalars, gain, residual, inverse);
  }
}

struct RopeCase {
  const char* name;
  int tokens, seq_len, heads, kv_heads, head_dim;
  bool norm, value;
};
const std::vector<RopeCase> kRopeCases = {
    {"one token", 1, 1, 2, 2, 64, true, true},          {"odd sequences", 3 * 37, 37, 12, 12, 64, true, true},
    {"grouped queries", 50, 25, 8, 2, 128, true, true}, {"no norm, no value", 64, 32, 6, 6, 64, false, false},
    {"head_dim 16", 40, 20, 3, 1, 16, true, true},      {"head_dim 32", 40, 20, 5, 5, 32, true, true},
    {"head_dim 48", 31, 31, 4, 2, 48, true, true},      {"head_dim 80", 31, 31, 4, 2, 80, false, true},
    {"head_dim 256", 17, 17, 5, 3, 256, true, true},    {"norm, no value", 64, 16, 4, 4, 112, true, false},
};

// One head of C channels.
struct Head {
  Values out;
  double inverse = 1;
};
Head turn_head(const RopeCase& c, const double* in, const double* cos, const double* sin) {
  Head head{Values(c.head_dim)};
  const int half = c.head_dim / 2;
  if (c.norm) {
    double squares = 0;
    for (int i = 0; i < c.head_dim; ++i) squares += in[i] * in[i];
    head.inverse = 1 / std::sqrt(squares / c.head_dim + kEps);
  }
  for (int i = 0; i < half; ++i) {
    const double a = in[i] * head.inverse, b = in[i + half] * head.inverse;
    head.out[i] = a * cos[i] + b * sin[i];
    head.out[i + half] = b * cos[i] - a * sin[i];
  }
  return head;
}
// From the head that forward returned, as it was rounded.
Values turn_head_back(const RopeCase& c, const double* out, double inverse, const double* d_out, const double* cos,
                      const double* sin) {
  const int half = c.head_dim / 2;
  Values given(d_out, d_out + c.head_dim), d(c.head_dim);
  double along = 0;
  for (int i = 0; i < c.head_dim && c.norm; ++i) along += out[i] * d_out[i] / c.head_dim;
  for (int i = 0; i < c.head_dim; ++i) given[i] = inverse * (given[i] - out[i] * along);
  for (int i = 0; i < half; ++i) {
    d[i] = given[i] * cos[i] - given[i + half] * sin[i];
    d[i + half] = given[i] * sin[i] + given[i + half] * cos[i];
  }
  return d;
}

// cos and sin of a case's positions.
struct Tables {
  Values cos, sin;
  explicit Tables(const RopeCase& c) {
    const int half = c.head_dim / 2;
    for (int i = 0; i < c.seq_len * half; ++i) {
      const double angle = (i / half) * std::pow(10000.0, -2.0 * (i % half) / c.head_dim);
      cos.push_back(std::cos(angle)), sin.push_back(std::sin(angle));
    }
  }
};

template <class T>
void check_rope(Report& report, const RopeCase& c) {
  Random random(3);
  const int C = c.head_dim, half = C / 2, kv = c.kv_heads, rotated = c.heads + kv, all = rotated + kv;
  const kernels::QkvHeads size{c.tokens, c.seq_len, c.heads, kv, C};
  const Tables tables(c);
  const Input<float> cos(tables.cos), sin(tables.sin);
  const Input<T> in(random.normal(c.tokens * all * C)), value(random.normal(c.tokens * kv * C)),
      gate(random.normal(c.tokens * kv)), given_d(random.normal(c.tokens * all * C));
  Buffer<T> qkv(in.device.download()), d(given_d.device.download()), d_value(value.host.size()),
      d_gate(gate.host.size());
  Buffer<float> inverse(static_cast<std::size_t>(c.tokens) * rotated);
  float* norms = c.norm ? inverse.get() : nullptr;
  run_captured([&](Stream s) {
    kernels::qkv_rope<T>({size, qkv.get(), norms, cos.get(), sin.get(), static_cast<float>(kEps)}, s);
    if (c.value) kernels::value_embeddings<T>({size, qkv.get(), value.get(), gate.get()}, s);
    if (c.value)
      kernels::value_embeddings_backward<T>({size, d.get(), value.get(), gate.get(), d_value.get(), d_gate.get()}, s);
    kernels::qkv_rope_backward<T>({size, qkv.get(), norms, cos.get(), sin.get(), d.get()}, s);
  });

  const Values out = values_of(qkv);
  Values want_inverse(inverse.size()), want(in.host), want_d(given_d.host), want_dvalue(value.host.size()),
      want_dgate(gate.host.size());
  for (int t = 0; t < c.tokens; ++t) {
    const double* cs = &cos.host[t % c.seq_len * half];
    const double* sn = &sin.host[t % c.seq_len * half];
    for (int h = 0; h < rotated; ++h) {
      const int at = (t * all + h) * C;
      const Head head = turn_head(c, &in.host[at], cs, sn);
      want_inverse[static_cast<std::size_t>(t) * rotated + h] = head.inverse;
      const Values back = turn_head_back(c, &out[at], head.inverse, &given_d.host[at], cs, sn);
      for (int i = 0; i < C; ++i) want[at + i] = head.out[i], want_d[at + i] = back[i];
    }
    for (int j = 0; j < kv && c.value; ++j) {
      const int at = (t * all + rotated + j) * C, of_value = (t * kv + j) * C;
      const double open = 2 / (1 + std::exp(-gate[t * kv + j]));
      double dot = 0;
      for (int i = 0; i < C; ++i) {
        want[at + i] += open * value[of_value + i];
        want_dvalue[of_value + i] = open * given_d[at + i];
        dot += given_d[at + i] * value[of_value + i];
      }
      want_dgate[t * kv + j] = dot * open * (1 - open / 2);
    }
  }
  const std::string forward = "qkv_rope " + type_name<T>(), backward = "qkv_rope_backward " + type_name<T>(),
                    name = c.name;
  report.compare(forward, name + ": qkv", out, want, bound_of<T>());
  if (c.norm) report.compare(forward, name + ": 1 / rms", values_of(inverse), want_inverse, bound_of<float>());
  report.compare(backward, name + ": d_qkv", values_of(d), want_d, bound_of<T>());
  if (c.value) {
    report.compare(backward, name + ": d_value", values_of(d_value), want_dvalue, bound_of<T>());
    report.compare(backward, name + ": d_gate", values_of(d_gate), want_dgate, bound_of<T>());
  }
  report.expect(forward, name + ": writes stay inside", qkv.guard_intact() && inverse.guard_intact());
  report.expect(backward, name + ": writes stay inside",
                d.guard_intact() && d_value.guard_intact() && d_gate.guard_intact());
}

}  // namespace

void check_norm_and_rope(Report& report) {
  check_norms<float>(report);
  check_norms<bf16>(report);
  for (const RopeCase& c : kRopeCases) {
    check_rope<float>(report, c);
    check_rope<bf16>(report, c);
  }
}

}  // namespace switchyard::gpu_check
