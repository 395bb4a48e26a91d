// cross_entropy, the guard of a step, adamw and Muon's elementwise parts.
#include <algorithm>

#include "harness.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/muon.h"
#include "kernels/step_guard.h"

namespace switchyard::gpu_check {
namespace {

struct LossCase {
  const char* name;
  int tokens, vocab;
  float cap;
  bool gradient;
  double scale, shift;  // of the logits
};
const std::vector<LossCase> kLossCases = {
    {"eight logits", 3, 8, 15, true, 5, 0},        {"short rows", 257, 264, 15, true, 10, 0},
    {"no cap, short", 33, 1000, 0, true, 10, 0},   {"odd length", 35, 4104, 15, true, 10, 0},
    {"in registers", 301, 32768, 15, true, 10, 0}, {"no gradient", 150, 32768, 15, false, 10, 0},
    {"no cap", 150, 32768, 0, true, 10, 0},        {"no cap, far from 0", 20, 32000, 0, true, 3, -500},
    {"wide cap", 20, 16008, 100, true, 30, -90},   {"odd, in registers", 140, 8200, 30, true, 20, 0},
    {"long rows", 20, 50304, 15, true, 10, 0},     {"long rows, no cap", 20, 50304, 0, true, 10, 200},
    {"saturated", 5, 32768, 15, true, 300, 0},
};

template <class T>
void check_loss(Report& report, const LossCase& c) {
  Random random(47);
  Values values = random.normal(static_cast<std::size_t>(c.tokens) * c.vocab, c.scale);
  for (double& v : values) v += c.shift;
  const Input<T> logits(values);
  std::vector<std::int64_t> target(c.tokens);
  for (int t = 0; t < c.tokens; ++t) target[t] = t % 5 == 3 ? -1 : t == 0 ? c.vocab - 1 : random.below(c.vocab);
  const Buffer<std::int64_t> targets(target);
  Buffer<float> nll(c.tokens);
  const float grad_scale = 0.25f;
  run_captured([&](Stream s) {
    kernels::cross_entropy(kernels::CrossEntropy<T>{logits.get(), targets.get(), nll.get(), c.tokens, c.vocab, c.cap,
                                                    grad_scale, c.gradient},
                           s);
  });

  Values want_nll(c.tokens), want = logits.host;
  for (int t = 0; t < c.tokens; ++t) {
    double* row = &want[static_cast<std::size_t>(t) * c.vocab];
    if (target[t] < 0) {
      if (c.gradient) std::fill_n(row, c.vocab, 0.0);
      continue;
    }
    Values z(row, row + c.vocab), slope(c.vocab, 1.0);
    for (int v = 0; v < c.vocab && c.cap > 0; ++v) {
      const double tanh = std::tanh(row[v] / c.cap);
      z[v] = c.cap * tanh, slope[v] = 1 / std::pow(std::cosh(row[v] / c.cap), 2);
    }
    const double most = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (const double v : z) sum += std::exp(v - most);
    const double log_sum = most + std::log(sum);
    want_nll[t] = log_sum - z[target[t]];
    for (int v = 0; v < c.vocab && c.gradient; ++v)
      row[v] = grad_scale * (std::exp(z[v] - log_sum) - (v == target[t])) * slope[v];
  }
  const std::string kernel = "cross_entropy " + type_name<T>(), name = c.name;
  report.compare(kernel, name + ": nll", values_of(nll), want_nll, {1e-5, 1e-6 * std::max(10.f, 4 * c.cap)});
  const Bound bound = !c.gradient      ? kExact
                      : sizeof(T) == 2 ? Bound{1.0 / 250, 1e-6}
                                       : Bound{1e-4 * std::max(1.0, c.cap / 30.0), 1e-6};
  report.compare(kernel, name + (c.gradient ? ": gradient" : ": logits untouched"), values_of(logits.device), want,
                 bound);
  report.expect(kernel, name + ": writes stay inside", logits.device.guard_intact() && nll.guard_intact());
}

// ---- sum_of_squares, step_guard ----

struct GuardCase {
  const char* name;
  std::vector<std::int64_t> counts;  // of the ranges
  int offset;                        // elements before each range: an odd address
  double clip;
  bool bad_gradient, bad_loss;
};
const std::vector<GuardCase> kGuardCases = {
    {"one value", {1}, 0, 0, false, false},
    {"one range", {3000001}, 0, 1, false, false},
    {"many ranges", {5, 1, 100003, 64, 8192}, 0, 1e9, false, false},
    {"odd address", {9001, 7}, 1, 0.5, false, false},
    {"gradient not finite", {40, 70000}, 0, 1, true, false},
    {"loss not finite", {40}, 0, 1, false, true},
};

void check_guard(Report& report, const GuardCase& c) {
  Random random(61);
  std::vector<std::unique_ptr<Input<float>>> data;
  std::vector<kernels::SquareRange> list;
  std::int64_t largest = 0;
  double squares = 0;
  for (const std::int64_t count : c.counts) {
    data.push_back(std::make_unique<Input<float>>(random.normal(count + c.offset)));
    list.push_back({data.back()->get() + c.offset, count});
    largest = std::max(largest, count);
    for (std::int64_t i = c.offset; i < count + c.offset; ++i) squares += std::pow((*data.back())[i], 2);
  }
  if (c.bad_gradient) {
    std::vector<float> bad(c.counts[1] + c.offset, 1.0f);
    bad.back() = INFINITY;
    data[1]->device.upload(bad);
  }
  const Buffer<kernels::SquareRange> ranges(list);
  const int range_count = static_cast<int>(list.size());
  Buffer<float> parts(kernels::sum_of_squares_parts(range_count, largest)), sum(1), norm(1);
  const Buffer<float> loss(std::vector<float>{c.bad_loss ? NAN : 2.5f}), factor(std::vector<float>{0.25f});
  const Buffer<int> apply(1);
  using Count = Buffer<std::int64_t>;
  const Count applied(std::vector<std::int64_t>{5}), skipped(std::vector<std::int64_t>{3}),
      in_a_row(std::vector<std::int64_t>{2});
  run_captured([&](Stream s) {
    kernels::sum_of_squares({ranges.get(), range_count, largest, parts.get(), sum.get()}, s);
    kernels::step_guard({sum.get(), loss.get(), norm.get(), factor.get(), apply.get(), applied.get(), skipped.get(),
                         in_a_row.get(), static_cast<float>(c.clip)},
                        s);
  });
  const std::string name = c.name;
  const bool good = !c.bad_gradient && !c.bad_loss;
  if (!c.bad_gradient) {
    report.compare("sum_of_squares", name, values_of(sum), {squares}, {1e-5, 0});
    report.compare("step_guard", name + ": norm", values_of(norm), {std::sqrt(squares)}, {1e-5, 0});
    const double clipped = std::min(1.0, c.clip / (std::sqrt(squares) + 1e-6));
    report.compare("step_guard", name + ": factor", values_of(factor), {c.clip > 0 ? clipped : 0.25}, {1e-5, 0});
  }
  report.expect("sum_of_squares", name + ": writes stay inside", parts.guard_intact() && sum.guard_intact());
  const std::int64_t counts[3] = {applied.download()[0], skipped.download()[0], in_a_row.download()[0]};
  report.expect("step_guard", name + ": decision and counters",
                apply.download()[0] == (good ? 1 : 0) && counts[0] == (good ? 6 : 5) && counts[1] == (good ? 3 : 4) &&
                    counts[2] == (good ? 0 : 3));
}

// ---- adamw ----

struct AdamwData {
  Input<float> weight, grad, first, second;
  Buffer<bf16> copy;
  kernels::AdamwTensor tensor;

  // offset: elements before the tensor's start, so that its address is odd
  AdamwData(Random& random, int count, int offset, float beta1, bool with_copy)
      : weight(random.normal(count + offset)),
        grad(random.normal(count + offset)),
        first(random.normal(count + offset, 0.1)),
        second(squares(random.normal(count + offset, 0.3))),
        copy(count + offset),
        tensor{weight.get() + offset,
               grad.get() + offset,
               first.get() + offset,
               second.get() + offset,
               with_copy ? copy.get() + offset : nullptr,
               count,
               0.02f,
               beta1,
               0.1f} {}

  static Values squares(Values v) {
    for (double& x : v) x *= x;
    return v;
  }
};

void check_adamw(Report& report, bool apply) {
  Random random(53);
  const std::vector<int> counts = {1, 3, 8, 1000, 100003, 7, 2048};
  std::vector<std::unique_ptr<AdamwData>> data;
  std::vector<kernels::AdamwTensor> tensors;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    data.push_back(
        std::make_unique<AdamwData>(random, counts[i], i % 3 == 2 ? 3 : 0, i == 1 ? 0.0f : 0.8f, i % 4 != 1));
    tensors.push_back(data.back()->tensor);
  }
  if (!apply) {  // what a step that must not be applied looks like
    data[3]->grad.device.upload(std::vector<float>(data[3]->grad.host.size(), NAN));
  }
  const Buffer<kernels::AdamwTensor> device_tensors(tensors);
  const Input<float> schedule(Values{0.7}), grad_factor(Values{0.5});
  const Buffer<std::int64_t> applied(std::vector<std::int64_t>{3});
  const Buffer<int> flag(std::vector<int>{apply});
  const float beta2 = 0.95f, eps = 1e-10f;
  run_captured([&](Stream s) {
    kernels::adamw({device_tensors.get(), static_cast<int>(tensors.size()), 100003, schedule.get(), grad_factor.get(),
                    applied.get(), flag.get(), beta2, eps},
                   s);
  });
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const AdamwData& d = *data[i];
    const std::size_t from = d.weight.host.size() - counts[i];
    Values w = d.weight.host, m = d.first.host, v = d.second.host, copy(w.size(), 0);
    const double b1 = d.tensor.beta1, b2 = beta2, lr = d.tensor.lr * schedule[0];
    for (std::size_t j = from; j < w.size() && apply; ++j) {
      const double g = d.grad[j] * grad_factor[0];
      m[j] = b1 * m[j] + (1 - b1) * g;
      v[j] = b2 * v[j] + (1 - b2) * g * g;
      const double step = m[j] / (1 - std::pow(b1, 3)) / (std::sqrt(v[j] / (1 - std::pow(b2, 3))) + eps);
      w[j] -= lr * (step + d.tensor.weight_decay * w[j]);
    }
    const std::string name = std::to_string(counts[i]) + " elements" + (apply ? "" : ", not applied");
    const Bound bound = apply ? Bound{2e-5, 1e-6} : kExact;
    report.compare("adamw", name + ": weight", values_of(d.weight.device), w, bound);
    report.compare("adamw", name + ": first moment", values_of(d.first.device), m, bound);
    report.compare("adamw", name + ": second moment", values_of(d.second.device), v, bound);
    Values got = values_of(d.copy);
    const bool written = apply && d.tensor.copy;
    if (written)
      report.compare("adamw", name + ": copy", Values(got.begin() + from, got.end()), Values(w.begin() + from, w.end()),
                     {1.0 / 250, 1e-6});
    else
      report.expect("adamw", name + ": copy untouched",
                    std::all_of(got.begin(), got.end(), [](double x) { return std::isnan(x); }));
  }
}

// ---- muon ----

struct MuonCase {
  const char* name;
  int count, rows, cols;
  bool nesterov, cautious, copies;
  int offset;  // elements before each matrix: an odd address
};
const std::vector<MuonCase> kMuonCases = {
    {"one element", 1, 1, 1, true, true, true, 0},
    {"experts", 6, 96, 200, true, true, true, 0},
    {"odd size", 3, 5, 37, true, true, true, 0},
    {"odd addresses", 3, 16, 48, true, false, true, 1},
    {"no copies", 2, 130, 129, false, true, false, 0},
    {"large", 2, 768, 1536, true, true, true, 0},
    {"more parts than blocks at a time", 12, 768, 1537, true, true, true, 0},
    {"a matrix for nearly all blocks", 2, 2048, 2048, true, true, true, 0},
    {"a matrix for nearly all blocks, odd size", 2, 2049, 2047, true, true, true, 0},
    {"larger parts", 2, 1280, 5120, true, true, true, 0},
    {"more than all blocks hold", 2, 4096, 2048, true, true, true, 0},
    {"more than all blocks hold, odd size", 1, 4096, 2047, true, true, true, 0},
    {"more than all blocks hold, odd addresses", 1, 4096, 2048, true, true, true, 1},
};

struct MuonData {
  std::vector<std::unique_ptr<Input<float>>> weight, grad, momentum;
  std::vector<std::unique_ptr<Buffer<bf16>>> copy;
  std::vector<kernels::MuonMatrix> matrices;

  explicit MuonData(const MuonCase& c) {
    Random random(59);
    const std::size_t size = static_cast<std::size_t>(c.rows) * c.cols + c.offset;
    for (int i = 0; i < c.count; ++i) {
      const double scale = i == 1 ? 0 : 1;  // a matrix of zeros
      weight.push_back(std::make_unique<Input<float>>(random.normal(size)));
      grad.push_back(std::make_unique<Input<float>>(random.normal(size, scale)));
      momentum.push_back(std::make_unique<Input<float>>(random.normal(size, scale)));
      copy.push_back(std::make_unique<Buffer<bf16>>(size));
      matrices.push_back({weight[i]->get() + c.offset, grad[i]->get() + c.offset, momentum[i]->get() + c.offset,
                          c.copies ? copy[i]->get() + c.offset : nullptr});
    }
  }
};

void check_muon(Report& report, const MuonCase& c, bool apply) {
  MuonData data(c);
  const std::size_t size = static_cast<std::size_t>(c.rows) * c.cols;
  const Buffer<kernels::MuonMatrix> matrices(data.matrices);
  const Input<float> mu(Values{0.95}), grad_factor(Values{0.5}), schedule(Values{0.7}), decay(Values{0.2});
  const Buffer<int> flag(std::vector<int>{apply});
  Buffer<int> progress(std::vector<int>(c.count + 1, 0));
  Buffer<fp16> direction(size * c.count);
  Buffer<float> parts(kernels::muon_norm_parts(c.rows, c.cols) * c.count);
  const kernels::MuonBatch batch{matrices.get(), c.count, c.rows, c.cols};
  const float safety = 1.02f, eps = 1e-6f, lr = 0.02f, shrink = 0.03f;
  run_captured([&](Stream s) {
    kernels::muon_prepare({batch, direction.get(), parts.get(), progress.get(), mu.get(), grad_factor.get(), flag.get(),
                           c.nesterov, safety, eps},
                          s);
    kernels::muon_apply({batch, direction.get(), schedule.get(), decay.get(), flag.get(), lr, shrink, c.cautious}, s);
  });
  const Values scaled = values_of(direction);

  for (int i = 0; i < c.count; ++i) {
    Values m = data.momentum[i]->host, w = data.weight[i]->host, want_update(size), want_scaled(size);
    double squares = 0;
    for (std::size_t j = 0; j < size; ++j) {
      const double g = data.grad[i]->host[c.offset + j] * grad_factor[0];
      double& momentum = m[c.offset + j];
      const double moved = mu[0] * momentum + (1 - mu[0]) * g;
      want_update[j] = c.nesterov ? g + mu[0] * (moved - g) : moved;
      if (apply) momentum = moved;
      squares += want_update[j] * want_update[j];
    }
    for (std::size_t j = 0; j < size; ++j) {
      want_scaled[j] = want_update[j] / (std::sqrt(squares) * safety + eps);
      double& weight = w[c.offset + j];
      const double o = scaled[i * size + j];
      const double decays = !c.cautious || o * weight >= 0 ? shrink * decay[0] * weight : 0;
      if (apply) weight -= schedule[0] * (lr * o + decays);
    }
    const std::string name = std::string(c.name) + ", matrix " + std::to_string(i) + (apply ? "" : ", not applied");
    auto part = [&](const Values& all) { return Values(all.begin() + i * size, all.begin() + (i + 1) * size); };
    const Bound bound = apply ? Bound{1e-5, 1e-6} : kExact;
    report.compare("muon_prepare", name + ": momentum", values_of(data.momentum[i]->device), m, bound);
    report.compare("muon_prepare", name + ": direction", part(scaled), want_scaled, {1.0 / 200, 1e-6});
    report.compare("muon_apply", name + ": weight", values_of(data.weight[i]->device), w, bound);
    Values copy = values_of(*data.copy[i]);
    if (apply && c.copies)
      report.compare("muon_apply", name + ": copy", Values(copy.begin() + c.offset, copy.end()),
                     Values(w.begin() + c.offset, w.end()), {1.0 / 250, 1e-6});
    else
      report.expect("muon_apply", name + ": copy untouched",
                    std::all_of(copy.begin(), copy.end(), [](double x) { return std::isnan(x); }));
  }
  report.expect("muon_prepare", std::string(c.name) + ": writes stay inside",
                progress.guard_intact() && direction.guard_intact() && parts.guard_intact());
  report.expect("muon_prepare", std::string(c.name) + ": progress is left at zero",
                progress.download() == std::vector<int>(c.count + 1, 0));
}

}  // namespace

void check_loss_and_optimizers(Report& report) {
  for (const LossCase& c : kLossCases) {
    check_loss<float>(report, c);
    check_loss<bf16>(report, c);
  }
  for (const GuardCase& c : kGuardCases) check_guard(report, c);
  for (const bool apply : {true, false}) {
    check_adamw(report, apply);
    for (const MuonCase& c : kMuonCases) check_muon(report, c, apply);
  }
}

}  // namespace switchyard::gpu_check
