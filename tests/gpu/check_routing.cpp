// router_logits and router_scores, forward and backward.
#include <algorithm>

#include "harness.h"
#include "kernels/router.h"
#include "kernels/router_logits.h"

namespace switchyard::gpu_check {
namespace {

using kernels::Score;

struct RouterCase {
  int tokens, group_size, experts, top_k, seq_len;
  Score score;
  bool normalize, bias;
};
// Every E with every K that fits, the rest taken in turns.
std::vector<RouterCase> router_cases() {
  std::vector<RouterCase> cases;
  const Score scores[] = {Score::kSoftmax, Score::kSigmoid, Score::kIdentity};
  int turn = 0;
  for (const int experts : {1, 2, 6, 8, 16, 33, 64, 128, 200, 512})
    for (const int top_k : {1, 2, 4, 8, 16}) {
      if (top_k > experts) continue;
      const Score score = scores[turn % 3];
      const int groups = 1 + turn % 3, group_size = 37 + 10 * (turn % 4);
      cases.push_back({groups * group_size, group_size, experts, top_k, 13, score,
                       score != Score::kIdentity && turn % 2 == 0, turn % 5 == 1});
      ++turn;
    }
  cases.push_back({65536, 65536, 8, 2, 1024, Score::kSoftmax, true, false});
  cases.push_back({65536, 1024, 64, 8, 1024, Score::kSigmoid, true, true});
  return cases;
}
std::string name_of(const RouterCase& c) {
  const char* score = c.score == Score::kSoftmax ? "softmax" : c.score == Score::kSigmoid ? "sigmoid" : "identity";
  return "T " + std::to_string(c.tokens) + " G " + std::to_string(c.tokens / c.group_size) + " E " +
         std::to_string(c.experts) + " K " + std::to_string(c.top_k) + " " + score;
}

struct TokenScores {
  Values score, prob;
  double log_sum;
};
TokenScores scores_of(const RouterCase& c, const double* logit) {
  TokenScores s{Values(c.experts), Values(c.experts), 0};
  const double most = *std::max_element(logit, logit + c.experts);
  double sum = 0, scores = 0;
  for (int e = 0; e < c.experts; ++e) sum += std::exp(logit[e] - most);
  s.log_sum = most + std::log(sum);
  for (int e = 0; e < c.experts; ++e) {
    s.prob[e] = std::exp(logit[e] - s.log_sum);
    s.score[e] = c.score == Score::kSoftmax   ? s.prob[e]
                 : c.score == Score::kSigmoid ? 1 / (1 + std::exp(-logit[e]))
                                              : logit[e];
    scores += s.score[e];
  }
  if (c.score == Score::kSigmoid)
    for (int e = 0; e < c.experts; ++e) s.prob[e] = s.score[e] / scores;
  return s;
}
Values weights_of(const RouterCase& c, const TokenScores& s, const int* expert) {
  Values w(c.top_k);
  double sum = 0;
  for (int k = 0; k < c.top_k; ++k) sum += w[k] = s.score[expert[k]];
  if (c.normalize)
    for (double& v : w) v /= sum;
  return w;
}
bool distinct_experts(const RouterCase& c, const int* expert) {
  std::vector<int> sorted(expert, expert + c.top_k);
  std::sort(sorted.begin(), sorted.end());
  return sorted.front() >= 0 && sorted.back() < c.experts &&
         std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
}

struct RouterOutputs {
  Buffer<int> expert, count;
  Buffer<float> weight, prob_sum, importance, z_sum, scratch;

  explicit RouterOutputs(const RouterCase& c)
      : expert(c.tokens * c.top_k),
        count(c.tokens / c.group_size * c.experts),
        weight(c.tokens * c.top_k),
        prob_sum(count.size()),
        importance(c.experts),
        z_sum(1),
        scratch(kernels::router_scratch(c.tokens, c.group_size, c.experts)) {}
};
constexpr float kScale = 1.5f;

void route(const RouterCase& c, const float* logits, const float* bias, bool rotate, int first, RouterOutputs& out) {
  const kernels::RouterScores<float> a{logits,
                                       bias,
                                       out.expert.get(),
                                       out.weight.get(),
                                       out.count.get(),
                                       out.prob_sum.get(),
                                       out.importance.get(),
                                       out.z_sum.get(),
                                       out.scratch.get(),
                                       c.tokens,
                                       c.group_size,
                                       c.experts,
                                       c.top_k,
                                       c.seq_len,
                                       c.score,
                                       c.normalize,
                                       rotate,
                                       kScale,
                                       first};
  run_captured([&](Stream s) { kernels::router_scores(a, s); });
}

void check_router_sums(Report& report, const RouterCase& c, const Input<float>& logits, const RouterOutputs& out) {
  const std::string kernel = "router_scores", name = name_of(c);
  const std::vector<int> expert = out.expert.download();
  const int groups = c.tokens / c.group_size;
  Values weight(c.tokens * c.top_k), count(groups * c.experts), prob(groups * c.experts), importance(c.experts), z(1);
  for (int t = 0; t < c.tokens; ++t) {
    const TokenScores s = scores_of(c, &logits.host[static_cast<std::size_t>(t) * c.experts]);
    const Values w = weights_of(c, s, &expert[t * c.top_k]);
    const int base = t / c.group_size * c.experts;
    for (int k = 0; k < c.top_k; ++k) {
      weight[t * c.top_k + k] = kScale * w[k];
      ++count[base + expert[t * c.top_k + k]];
      importance[expert[t * c.top_k + k]] += w[k];
    }
    for (int e = 0; e < c.experts; ++e) prob[base + e] += s.prob[e];
    z[0] += s.log_sum * s.log_sum;
  }
  report.compare(kernel, name + ": weight", values_of(out.weight), weight, {2e-5, 1e-6});
  report.compare(kernel, name + ": count", values_of(out.count), count, kExact);
  report.compare(kernel, name + ": prob_sum", values_of(out.prob_sum), prob, {2e-5, 1e-6});
  report.compare(kernel, name + ": importance", values_of(out.importance), importance, {2e-5, 1e-4});
  report.compare(kernel, name + ": z_sum", values_of(out.z_sum), z, {2e-5, 1e-6});
}

void check_router_choice(Report& report, const RouterCase& c) {
  Random random(23);
  const std::size_t size = static_cast<std::size_t>(c.tokens) * c.experts;
  const Input<float> logits(random.normal(size)), bias(random.normal(c.experts, 0.1));
  RouterOutputs out(c), again(c);
  route(c, logits.get(), c.bias ? bias.get() : nullptr, true, 0, out);
  route(c, logits.get(), c.bias ? bias.get() : nullptr, true, 0, again);
  const std::vector<int> expert = out.expert.download();
  bool distinct = true, largest = true;
  for (int t = 0; t < c.tokens && distinct; ++t) {
    const int* chosen = &expert[t * c.top_k];
    distinct = distinct_experts(c, chosen);
    if (!distinct) break;
    Values q = scores_of(c, &logits.host[static_cast<std::size_t>(t) * c.experts]).score;
    for (int e = 0; e < c.experts; ++e) q[e] += c.bias ? bias[e] : 0;
    double least = q[chosen[0]];
    for (int k = 1; k < c.top_k; ++k) {
      largest &= q[chosen[k]] <= q[chosen[k - 1]] + 1e-6;
      least = std::min(least, q[chosen[k]]);
    }
    for (int e = 0; e < c.experts; ++e)
      if (std::find(chosen, chosen + c.top_k, e) == chosen + c.top_k) largest &= q[e] <= least + 1e-6;
  }
  const std::string name = name_of(c);
  report.expect("router_scores", name + ": distinct experts", distinct);
  report.expect("router_scores", name + ": the largest, best first", largest);
  if (distinct) check_router_sums(report, c, logits, out);
  report.compare("router_scores", name + ": sums repeat bit for bit", values_of(again.prob_sum),
                 values_of(out.prob_sum), kExact);
  report.expect("router_scores", name + ": writes stay inside",
                out.expert.guard_intact() && out.weight.guard_intact() && out.count.guard_intact() &&
                    out.prob_sum.guard_intact() && out.scratch.guard_intact());
}

// Few distinct logits: scores tie bit for bit, and the order of ties must be the definition's.
void check_router_ties(Report& report, const RouterCase& c, bool all_equal, bool rotate, int first) {
  Random random(29);
  Values values(static_cast<std::size_t>(c.tokens) * c.experts);
  for (double& v : values) v = all_equal ? 0 : random.below(3) - 1;
  const Input<float> logits(values);
  RouterOutputs out(c);
  route(c, logits.get(), nullptr, rotate, first, out);
  std::vector<int> order(c.experts);
  Values want;
  for (int t = 0; t < c.tokens; ++t) {
    const int turn = rotate ? (first + t % c.seq_len) * c.top_k % c.experts : 0;
    for (int i = 0; i < c.experts; ++i) order[i] = (turn + i) % c.experts;
    const double* logit = &values[static_cast<std::size_t>(t) * c.experts];
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logit[a] > logit[b]; });
    for (int k = 0; k < c.top_k; ++k) want.push_back(order[k]);
  }
  report.compare("router_scores", name_of(c) + ": ties", values_of(out.expert), want, kExact);
}

void check_router_nan(Report& report) {
  const RouterCase c{64, 64, 40, 8, 16, Score::kSoftmax, true, false};
  Values values = Random(31).normal(c.tokens * c.experts);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i / c.experts % 3 == 0) values[i] = NAN;
    if (i / c.experts % 3 == 1 && i % 5 == 0) values[i] = i % 2 ? INFINITY : NAN;
  }
  std::vector<float> logits(values.begin(), values.end());
  const Buffer<float> device(logits);
  RouterOutputs out(c);
  route(c, device.get(), nullptr, true, 0, out);
  const std::vector<int> expert = out.expert.download();
  bool distinct = true;
  for (int t = 0; t < c.tokens; ++t) distinct &= distinct_experts(c, &expert[t * c.top_k]);
  report.expect("router_scores", "NaN and infinite logits: distinct experts", distinct);
}

// Central differences of sum(d_output * output) with the choice held fixed.
void check_router_backward(Report& report, const RouterCase& c) {
  Random random(37);
  const int groups = c.tokens / c.group_size;
  const Input<float> logits(random.normal(c.tokens * c.experts)), d_weight(random.normal(c.tokens * c.top_k)),
      d_prob(random.normal(groups * c.experts)), d_importance(random.normal(c.experts)), d_z(random.normal(1, 0.1));
  RouterOutputs out(c);
  route(c, logits.get(), nullptr, true, 0, out);
  Buffer<float> d_logits(c.tokens * c.experts);
  run_captured([&](Stream s) {
    kernels::router_scores_backward(
        kernels::RouterScoresBackward<float>{logits.get(), out.expert.get(), d_weight.get(), d_prob.get(),
                                             d_importance.get(), d_z.get(), d_logits.get(), c.tokens, c.group_size,
                                             c.experts, c.top_k, c.score, c.normalize, kScale},
        s);
  });
  const std::vector<int> expert = out.expert.download();
  // E^2 work a token: of many experts, only every so many tokens are compared.
  const int stride = std::max(1, c.tokens * c.experts / 8192);
  const Values all = values_of(d_logits);
  Values want, got;
  for (int t = 0; t < c.tokens; t += stride) {
    got.insert(got.end(), all.begin() + t * c.experts, all.begin() + (t + 1) * c.experts);
    const int* chosen = &expert[t * c.top_k];
    Values logit(logits.host.begin() + t * c.experts, logits.host.begin() + (t + 1) * c.experts);
    auto value = [&] {
      const TokenScores s = scores_of(c, logit.data());
      const Values w = weights_of(c, s, chosen);
      double sum = d_z[0] * s.log_sum * s.log_sum;
      for (int k = 0; k < c.top_k; ++k) sum += (kScale * d_weight[t * c.top_k + k] + d_importance[chosen[k]]) * w[k];
      for (int e = 0; e < c.experts; ++e) sum += d_prob[t / c.group_size * c.experts + e] * s.prob[e];
      return sum;
    };
    for (int e = 0; e < c.experts; ++e) {
      constexpr double kStep = 1e-5;
      const double middle = logit[e];
      logit[e] = middle + kStep;
      const double above = value();
      logit[e] = middle - kStep;
      want.push_back((above - value()) / (2 * kStep));
      logit[e] = middle;
    }
  }
  report.compare("router_scores_backward", name_of(c), got, want, {2e-5, 5e-6});
  report.expect("router_scores_backward", name_of(c) + ": writes stay inside", d_logits.guard_intact());
}

struct LogitsCase {
  int tokens, width, experts;
};
const std::vector<LogitsCase> kLogitsCases = {
    {1, 8, 1},      {77, 72, 8},     {130, 768, 8}, {33, 40, 13},  {257, 768, 16},  {300, 1280, 33},
    {129, 768, 64}, {100, 520, 128}, {65, 96, 200}, {50, 2048, 6}, {20000, 768, 8}, {70001, 40, 8},
};

// Each value against the error it may have.
void compare_scaled(Report& report, const std::string& kernel, const std::string& what, Values got, Values want,
                    const Values& allowed) {
  for (std::size_t i = 0; i < want.size(); ++i) got[i] /= allowed[i], want[i] /= allowed[i];
  report.compare(kernel, what, got, want, {0, 1});
}

// Sums of products and of their sizes, in double: out[i, j] = sum_k a(i, k) b(j, k).
struct Sums {
  Values value, size;
  template <class A, class B>
  Sums(int rows, int columns, int depth, A a, B b) : value(rows * columns), size(rows * columns) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j)
        for (int k = 0; k < depth; ++k) {
          const double product = a(i, k) * b(j, k);
          value[i * columns + j] += product, size[i * columns + j] += std::fabs(product);
        }
  }
};

template <class T>
void check_logits(Report& report, const LogitsCase& c, bool one_sign) {
  const int T_ = c.tokens, D = c.width, E = c.experts;
  const std::string name = "T " + std::to_string(T_) + " D " + std::to_string(D) + " E " + std::to_string(E) +
                           (one_sign ? " one sign" : ""),
                    forward = "router_logits " + type_name<T>(), backward = "router_logits_backward " + type_name<T>();
  Random random(41);
  const auto values = [&](int count) {
    Values v = random.normal(count);
    for (double& f : v) f = one_sign ? std::fabs(f) : f;
    return v;
  };
  const Input<T> x(values(T_ * D)), start(values(T_ * D));
  const Input<float> w(values(E * D)), d_logits(values(T_ * E)), d_w(values(E * D)), again(d_w.host);
  const Input<T> d_x(start.host), d_x_again(start.host);
  Buffer<float> logits(T_ * E), scratch(kernels::router_logits_scratch(T_, D, E));
  const double split = sizeof(T) == 2 ? 1e-5 : 2e-6;
  run_captured([&](Stream s) {
    kernels::router_logits(kernels::RouterLogits<T>{x.get(), w.get(), logits.get(), T_, D, E}, s);
    kernels::router_logits_backward(kernels::RouterLogitsBackward<T>{x.get(), w.get(), d_logits.get(), d_x.get(),
                                                                     d_w.get(), scratch.get(), T_, D, E},
                                    s);
    kernels::router_logits_backward(kernels::RouterLogitsBackward<T>{x.get(), w.get(), d_logits.get(), d_x_again.get(),
                                                                     again.get(), scratch.get(), T_, D, E},
                                    s);
  });

  const auto at = [](const auto& values, int columns) {
    return [&values, columns](int i, int j) { return values[static_cast<std::size_t>(i) * columns + j]; };
  };
  const auto turned = [](const auto& values, int columns) {
    return [&values, columns](int i, int j) { return values[static_cast<std::size_t>(j) * columns + i]; };
  };
  Sums want(T_, E, D, at(x, D), at(w, D));
  for (double& v : want.size) v = split * v + 1e-30;
  compare_scaled(report, forward, name, values_of(logits), want.value, want.size);

  Sums d_input(T_, D, E, at(d_logits, E), turned(w, D));
  for (std::size_t i = 0; i < d_input.value.size(); ++i) {
    d_input.value[i] += start[i];
    // Beyond 128 experts the sum is rounded on the way.
    double rounded = 0, partial = start[i];
    for (int e = 0; e < E; ++e) {
      if (e > 0 && e % 128 == 0) rounded += std::fabs(partial);
      partial += d_logits[i / D * E + e] * w[e * D + i % D];
    }
    d_input.size[i] = rounded / 250 +
                      (sizeof(T) == 2 ? 4 : 1) * split * (d_input.size[i] + std::fabs(start[i])) +  // both are split
                      (sizeof(T) == 2 ? 1.0 / 250 : 1e-6) * std::fabs(d_input.value[i]) + 1e-30;
  }
  compare_scaled(report, backward, name + ": d_x", values_of(d_x.device), d_input.value, d_input.size);

  Sums d_weight(E, D, T_, turned(d_logits, E), turned(x, D));
  for (std::size_t i = 0; i < d_weight.value.size(); ++i) {
    d_weight.value[i] += d_w[i];
    d_weight.size[i] = split * (d_weight.size[i] + std::fabs(d_w[i])) + 1e-30;
  }
  compare_scaled(report, backward, name + ": d_w", values_of(d_w.device), d_weight.value, d_weight.size);
  report.compare(backward, name + ": d_w repeats bit for bit", values_of(again.device), values_of(d_w.device), kExact);
  report.compare(backward, name + ": d_x repeats bit for bit", values_of(d_x_again.device), values_of(d_x.device),
                 kExact);
  report.expect(forward, name + ": writes stay inside", logits.guard_intact());
  report.expect(backward, name + ": writes stay inside",
                d_x.device.guard_intact() && d_w.device.guard_intact() && scratch.guard_intact());
}

}  // namespace

void check_routing(Report& report) {
  for (const LogitsCase& c : kLogitsCases) {
    check_logits<bf16>(report, c, false);
    check_logits<float>(report, c, false);
  }
  for (const LogitsCase& c : {LogitsCase{48, 2048, 8}, LogitsCase{4096, 64, 8}}) {
    check_logits<bf16>(report, c, true);
    check_logits<float>(report, c, true);
  }
  int turn = 0;
  for (const RouterCase& c : router_cases()) {
    check_router_choice(report, c);
    check_router_ties(report, c, turn % 2 == 0, turn % 3 != 0, turn % 4);
    if (c.tokens < 1000) check_router_backward(report, c);
    ++turn;
  }
  check_router_nan(report);
}

}  // namespace switchyard::gpu_check
