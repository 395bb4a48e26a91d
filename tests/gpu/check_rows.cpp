// activation, embedding and dropout.
#include <algorithm>
#include <numeric>

#include "harness.h"
#include "kernels/activation.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"

namespace switchyard::gpu_check {
namespace {

using kernels::ActivationKind;

struct ValueAndSlope {
  double value, slope;
};
ValueAndSlope act(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::kRelu2:
      return {x > 0 ? x * x : 0, x > 0 ? 2 * x : 0};
    case ActivationKind::kSwiglu: {
      const double s = 1 / (1 + std::exp(-x));
      return {x * s, s * (1 + x * (1 - s))};
    }
    default: {
      const double below = 0.5 * std::erfc(-x / std::sqrt(2.0));
      return {x * below, below + x * std::exp(-0.5 * x * x) / std::sqrt(2 * 3.14159265358979323846)};
    }
  }
}

struct ActivationCase {
  const char* name;
  ActivationKind kind;
  int rows, width, used;  // used: what *row_count says, -1 for no row_count
  bool weighted;          // and with padding rows
};
const std::vector<ActivationCase> kActivationCases = {
    {"relu2, one row", ActivationKind::kRelu2, 1, 8, -1, false},
    {"relu2, routed", ActivationKind::kRelu2, 131, 1536, 100, true},
    {"relu2, no rows used", ActivationKind::kRelu2, 16, 64, 0, true},
    {"gelu", ActivationKind::kGelu, 77, 520, -1, false},
    {"gelu, routed", ActivationKind::kGelu, 77, 768, 77, true},
    {"swiglu", ActivationKind::kSwiglu, 65, 264, -1, false},
    {"swiglu, routed", ActivationKind::kSwiglu, 65, 2048, 51, true},
    {"geglu, routed", ActivationKind::kGeglu, 65, 1000, 51, true},
};

template <class T>
void check_activation(Report& report, const ActivationCase& c) {
  Random random(7);
  const bool gated = is_gated(c.kind);
  const int N = c.width, wide = gated ? 2 * N : N, used = c.used < 0 ? c.rows : c.used;
  const Input<T> pre(random.normal(c.rows * wide, 2.0)), d_out(random.normal(c.rows * N));
  const Input<float> weight(random.normal(c.rows));
  std::vector<int> token(c.rows);
  for (int r = 0; r < c.rows; ++r) token[r] = c.weighted && r % 7 == 3 ? -1 : r;
  const Buffer<int> row_token(token), row_count(std::vector<int>{used});
  Buffer<T> out(c.rows * N), d_pre(c.rows * wide), again(c.rows * N);
  Buffer<float> d_weight(c.rows);
  const float* given_weight = c.weighted ? weight.get() : nullptr;
  const int* given_token = c.weighted ? row_token.get() : nullptr;
  const int* given_count = c.used < 0 ? nullptr : row_count.get();
  run_captured([&](Stream s) {
    kernels::activation(
        kernels::Activation<T>{pre.get(), given_weight, given_token, given_count, out.get(), c.rows, N, c.kind}, s);
    kernels::activation_backward(
        kernels::ActivationBackward<T>{pre.get(), d_out.get(), given_weight, given_token, given_count, d_pre.get(),
                                       again.get(), d_weight.get(), c.rows, N, c.kind},
        s);
  });

  const std::size_t n = static_cast<std::size_t>(used) * N;
  Values want(n), want_pre(static_cast<std::size_t>(used) * wide), want_weight(used);
  for (int r = 0; r < used; ++r) {
    if (token[r] < 0) continue;
    const double w = c.weighted ? weight[r] : 1;
    for (int j = 0; j < N; ++j) {
      const ValueAndSlope y = act(c.kind, pre[r * wide + j]);
      const double other = gated ? pre[r * wide + N + j] : 1, d = d_out[r * N + j];
      want[r * N + j] = w * y.value * other;
      want_pre[r * wide + j] = w * d * y.slope * other;
      if (gated) want_pre[r * wide + N + j] = w * d * y.value;
      want_weight[r] += d * y.value * other;
    }
  }
  auto used_part = [](Values all, std::size_t count) { return Values(all.begin(), all.begin() + count); };
  auto untouched = [](const Values& all, std::size_t from) {
    return std::all_of(all.begin() + from, all.end(), [](double v) { return std::isnan(v); });
  };
  const std::string forward = "activation " + type_name<T>(), backward = "activation_backward " + type_name<T>(),
                    name = c.name;
  const Bound bound = bound_of<T>();
  report.compare(forward, name + ": out", used_part(values_of(out), n), want, bound);
  report.compare(backward, name + ": again", used_part(values_of(again), n), want, bound);
  report.compare(backward, name + ": d_pre", used_part(values_of(d_pre), want_pre.size()), want_pre, bound);
  report.compare(backward, name + ": d_weight", used_part(values_of(d_weight), used), want_weight, {1e-5, 2e-4});
  report.expect(forward, name + ": rows past the count untouched", untouched(values_of(out), n) && out.guard_intact());
  report.expect(backward, name + ": rows past the count untouched",
                untouched(values_of(d_pre), want_pre.size()) && untouched(values_of(again), n) &&
                    untouched(values_of(d_weight), used) && d_pre.guard_intact() && again.guard_intact());
}

// again may be d_out itself.
template <class T>
void check_activation_in_place(Report& report) {
  Random random(9);
  const int rows = 33, N = 776;
  const Input<T> pre(random.normal(rows * N)), d_out(random.normal(rows * N));
  Buffer<T> d_pre(rows * N), d_pre_apart(rows * N), again(rows * N);
  kernels::ActivationBackward<T> a{
      pre.get(), d_out.get(),          nullptr, nullptr, nullptr, d_pre_apart.get(), again.get(), nullptr, rows,
      N,         ActivationKind::kGelu};
  run_captured([&](Stream s) { kernels::activation_backward(a, s); });
  a.d_pre = d_pre.get(), a.again = d_out.get();
  run_captured([&](Stream s) { kernels::activation_backward(a, s); });
  const std::string kernel = "activation_backward " + type_name<T>();
  report.compare(kernel, "in place: d_pre", values_of(d_pre), values_of(d_pre_apart), kExact);
  report.compare(kernel, "in place: again", values_of(d_out.device), values_of(again), kExact);
}

struct EmbeddingCase {
  const char* name;
  int vocab, tokens, width;
  bool one_token;  // all positions hold the same token
};
const std::vector<EmbeddingCase> kEmbeddingCases = {
    {"one row", 1, 1, 8, true},        {"odd", 100, 333, 776, false},     {"all the same token", 64, 1001, 128, true},
    {"large", 1000, 5000, 768, false}, {"long runs", 7, 3000, 64, false}, {"exactly two pieces", 2, 128, 64, false},
};

template <class T>
void check_embedding(Report& report, const EmbeddingCase& c) {
  Random random(13);
  const Input<T> table(random.normal(c.vocab * c.width)), d_out(random.normal(c.tokens * c.width));
  const Input<float> start(random.normal(c.vocab * c.width));
  std::vector<std::int64_t> token(c.tokens), order(c.tokens);
  for (auto& t : token) t = c.one_token ? c.vocab - 1 : random.below(c.vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return token[a] < token[b]; });
  const Buffer<std::int64_t> tokens(token), sorted(order);
  Buffer<T> out(c.tokens * c.width);
  const Input<float> grad(start.host), again(start.host);
  Buffer<float> scratch(kernels::embedding_scratch(c.tokens, c.width));
  run_captured([&](Stream s) {
    kernels::embedding(kernels::Embedding<T>{table.get(), tokens.get(), out.get(), c.tokens, c.width}, s);
    kernels::EmbeddingBackward<T> b{d_out.get(),   tokens.get(), sorted.get(), grad.get(),
                                    scratch.get(), c.tokens,     c.width};
    kernels::embedding_backward(b, s);
    b.d_table = again.get();
    kernels::embedding_backward(b, s);
  });

  Values want(c.tokens * c.width), want_table = start.host;
  for (int t = 0; t < c.tokens; ++t)
    for (int j = 0; j < c.width; ++j) {
      const std::size_t cell = token[t] * c.width + j;
      want[t * c.width + j] = table[cell];
      want_table[cell] += d_out[t * c.width + j];
    }
  const std::string name = c.name, backward = "embedding_backward " + type_name<T>();
  report.compare("embedding " + type_name<T>(), name, values_of(out), want, kExact);
  report.compare(backward, name, values_of(grad.device), want_table, {1e-5, 2e-4});
  report.compare(backward, name + ": again", values_of(again.device), values_of(grad.device), kExact);
  report.expect(backward, name + ": writes stay inside", scratch.guard_intact());
}

template <class T>
void check_dropout(Report& report) {
  Random random(17);
  const int sequences = 3, S = 37, D = 300;
  const float p = 0.3f;
  const std::uint64_t seed = 42, site = 5;
  const std::int64_t at_step = 77;
  const std::vector<std::int64_t> window = {12345678901, 0, 7};
  const Input<T> x(random.normal(sequences * S * D));
  const Buffer<std::int64_t> windows(window), step(std::vector<std::int64_t>{at_step});
  Buffer<T> out(x.host.size());
  run_captured([&](Stream s) {
    kernels::dropout(
        kernels::Dropout<T>{x.get(), out.get(), windows.get(), step.get(), seed, site, sequences * S, S, D, p}, s);
  });
  Values want(x.host.size());
  int kept = 0;
  for (int t = 0; t < sequences * S; ++t)
    for (int j = 0; j < D; ++j) {
      const Words4 words = philox(kernels::dropout_key(seed, at_step, site), window[t / S] * S + t % S, j / 4);
      const std::uint32_t of_channel[4] = {words.x, words.y, words.z, words.w};
      const bool keep = to_uniform(of_channel[j % 4]) >= p;
      kept += keep;
      want[t * D + j] = keep ? x[t * D + j] / (1 - p) : 0;
    }
  const Values got = values_of(out);
  bool same_mask = true;
  for (std::size_t i = 0; i < got.size(); ++i) same_mask &= (got[i] == 0) == (want[i] == 0);
  const std::string kernel = "dropout " + type_name<T>();
  report.compare(kernel, "values", got, want, {sizeof(T) == 2 ? 1.0 / 250 : 1e-6, 0});
  report.expect(kernel, "the mask of the definition", same_mask);
  report.expect(kernel, "keeps 70%", std::fabs(kept / static_cast<double>(got.size()) - 0.7) < 0.02);
}

struct RowDropoutCase {
  const char* name;
  int rows, width, used;  // used: what *row_count says
  int padding;            // every so many-th row has no id; 0: none
  float p;
};
const std::vector<RowDropoutCase> kRowDropoutCases = {
    {"no rows", 0, 64, 0, 0, 0.1f},
    {"one row", 1, 4, 1, 0, 0.5f},
    {"no rows used", 16, 64, 0, 0, 0.5f},
    {"odd, some unused", 131, 300, 100, 0, 0.3f},
    {"padding", 257, 1536, 200, 7, 0.1f},
    {"all padding", 33, 128, 33, 1, 0.5f},
    {"nearly all dropped", 77, 516, 77, 5, 0.9f},
    {"large", 40000, 256, 39999, 11, 0.1f},
};

template <class T>
void check_row_dropout(Report& report, const RowDropoutCase& c) {
  Random random(19);
  std::vector<std::int64_t> ids(c.rows);
  for (int r = 0; r < c.rows; ++r)
    ids[r] = c.padding > 0 && r % c.padding == 0 ? -1 : (r % 3 == 0 ? 12345678901 : 0) + (r * 7919ll) % (c.rows + 5);
  const Input<T> x(random.normal(static_cast<std::size_t>(c.rows) * c.width));
  const Buffer<std::int64_t> id(ids), step(std::vector<std::int64_t>{77});
  const Buffer<int> row_count(std::vector<int>{c.used});
  const std::int64_t at_step = 77;
  run_captured([&](Stream s) {
    kernels::row_dropout(
        kernels::RowDropout<T>{x.get(), id.get(), row_count.get(), step.get(), 42, 5, c.rows, c.width, c.p}, s);
  });
  std::vector<float> rows(x.host.begin(), x.host.end());
  kernels::row_dropout_cpu(
      kernels::RowDropout<float>{rows.data(), ids.data(), &c.used, &at_step, 42, 5, c.rows, c.width, c.p}, {0, c.rows});
  const Values got = values_of(x.device), want(rows.begin(), rows.end());
  bool same_mask = true, untouched = true;
  for (std::size_t i = 0; i < got.size(); ++i) {
    same_mask &= (got[i] == 0) == (want[i] == 0);
    const std::size_t r = i / c.width;
    if (static_cast<int>(r) >= c.used || ids[r] < 0) untouched &= got[i] == x[i];
  }
  const std::string kernel = "row_dropout " + type_name<T>(), name = c.name;
  report.compare(kernel, name, got, want, {sizeof(T) == 2 ? 1.0 / 250 : 1e-6, 0});
  report.expect(kernel, name + ": the mask of the CPU", same_mask);
  report.expect(kernel, name + ": padding and rows past the count untouched", untouched && x.device.guard_intact());
}

template <class T>
void check_all(Report& report) {
  for (const ActivationCase& c : kActivationCases) check_activation<T>(report, c);
  check_activation_in_place<T>(report);
  for (const EmbeddingCase& c : kEmbeddingCases) check_embedding<T>(report, c);
  check_dropout<T>(report);
  for (const RowDropoutCase& c : kRowDropoutCases) check_row_dropout<T>(report, c);
}

}  // namespace

void check_rows(Report& report) {
  check_all<float>(report);
  check_all<bf16>(report);
}

}  // namespace switchyard::gpu_check
