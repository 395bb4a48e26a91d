// router_scores, forward and backward.
#include <algorithm>

#include "harness.h"
#include "kernels/router.h"

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
  for (const int experts : {1, 2, 6, 8, 9, 16, 32, 33, 64, 65, 128, 200, 256, 260, 512})
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
  cases.push_back({40001, 40001, 32, 4, 1024, Score::kSoftmax, true, false});  // blocks that take several turns
  cases.push_back({20003, 20003, 128, 8, 1024, Score::kSigmoid, true, true});
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

kernels::RouterScores<float> described(const RouterCase& c, const float* logits, const float* bias, bool rotate,
                                       int first, RouterOutputs& out) {
  return {logits,
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
}

void route(const RouterCase& c, const float* logits, const float* bias, bool rotate, int first, RouterOutputs& out) {
  const kernels::RouterScores<float> a = described(c, logits, bias, rotate, first, out);
  run_captured([&](Stream s) { kernels::router_scores(a, s); });
}

void check_router_sums(Report& report, const RouterCase& c, const Input<float>& logits, const RouterOutputs& out) {
  const std::string kernel = "router_scores", name = name_of(c);
  const std::vector<int> expert = out.expert.download();
  const int groups = c.tokens / c.group_size;
  Values weight(c.tokens * c.top_k), count(groups * c.experts), prob(groups * c.experts), importance(c.experts), z(1);
  for (int t = 0; t < c.tokens; ++t) {
    if (expert[t * c.top_k] < 0) continue;  // padding
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
  report.compare("router_scores", name + ": importance repeats bit for bit", values_of(again.importance),
                 values_of(out.importance), kExact);
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

// q as it is given, most of it -inf, and padding: the choice by a sort of q, sums over the real tokens alone.
void check_router_given(Report& report, const RouterCase& c, bool by_q) {
  Random random(43);
  const std::size_t size = static_cast<std::size_t>(c.tokens) * c.experts;
  Values q_values(size);
  for (double& v : q_values) v = random.below(3) ? -INFINITY : random.below(5) - 2;
  Values logit_values = random.normal(size);
  std::vector<unsigned char> real(c.tokens);
  for (int t = 0; t < c.tokens; ++t) {
    real[t] = random.below(4) != 0;
    for (int e = 0; e < c.experts && !real[t]; ++e) logit_values[static_cast<std::size_t>(t) * c.experts + e] = NAN;
  }
  const Input<float> logits(logit_values), q(q_values);
  const Buffer<unsigned char> mask(real);
  RouterOutputs out(c);
  kernels::RouterScores<float> a = described(c, logits.get(), nullptr, true, 0, out);
  a.selection = by_q ? q.get() : nullptr;
  a.real = reinterpret_cast<const bool*>(mask.get());
  run_captured([&](Stream s) { kernels::router_scores(a, s); });
  const std::string name = name_of(c) + (by_q ? ": given q, padding" : ": padding");
  const std::vector<int> expert = out.expert.download();
  bool padding = true, distinct = true;
  std::vector<int> order(c.experts);
  Values want, got;
  for (int t = 0; t < c.tokens; ++t) {
    const int* chosen = &expert[t * c.top_k];
    if (!real[t]) {
      padding &= std::all_of(chosen, chosen + c.top_k, [](int e) { return e == -1; });
      continue;
    }
    distinct &= distinct_experts(c, chosen);
    const int turn = t % c.seq_len * c.top_k % c.experts;
    for (int i = 0; i < c.experts; ++i) order[i] = (turn + i) % c.experts;
    const double* row = &q.host[static_cast<std::size_t>(t) * c.experts];
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return row[x] > row[y]; });
    for (int k = 0; k < c.top_k; ++k) got.push_back(chosen[k]), want.push_back(order[k]);
  }
  report.expect("router_scores", name + ": padding goes to no expert", padding);
  report.expect("router_scores", name + ": distinct experts", distinct);
  if (by_q) report.compare("router_scores", name, got, want, kExact);
  if (padding && distinct) check_router_sums(report, c, logits, out);

  const Input<float> d_weight(random.normal(c.tokens * c.top_k)), d_z(random.normal(1, 0.1)),
      d_prob(random.normal(c.tokens / c.group_size * c.experts)), d_importance(random.normal(c.experts));
  Buffer<float> d_logits(size);
  run_captured([&](Stream s) {
    kernels::router_scores_backward(
        kernels::RouterScoresBackward<float>{logits.get(), out.expert.get(), d_weight.get(), d_prob.get(),
                                             d_importance.get(), d_z.get(), d_logits.get(), c.tokens, c.group_size,
                                             c.experts, c.top_k, c.score, c.normalize, kScale},
        s);
  });
  const std::vector<float> d = d_logits.download();
  bool zero = true, finite = true;
  for (std::size_t i = 0; i < size; ++i) {
    zero &= real[i / c.experts] || d[i] == 0;
    finite &= std::isfinite(d[i]) != 0;
  }
  report.expect("router_scores_backward", name + ": padding gets 0, the rest is finite", zero && finite);
}

}  // namespace

void check_routing(Report& report) {
  int turn = 0;
  for (const RouterCase& c : router_cases()) {
    check_router_choice(report, c);
    check_router_ties(report, c, turn % 2 == 0, turn % 3 != 0, turn % 4);
    if (c.tokens < 1000) check_router_backward(report, c);
    if (c.tokens < 1000) check_router_given(report, c, turn % 4 != 3);
    ++turn;
  }
  check_router_nan(report);
}

}  // namespace switchyard::gpu_check
