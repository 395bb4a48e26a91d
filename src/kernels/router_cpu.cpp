#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/router.h"
#include "kernels/token_scores.h"

namespace switchyard::kernels {
namespace {

// The K largest of q, best first. Candidates come in the order that ties prefer and displace only smaller ones, so an
// earlier one wins a tie. NaN counts as the smallest: K distinct experts come out whatever the logits are.
template <class T>
void choose(const T* q, int experts, int top_k, int first, int* expert, T* best) {
  int found = 0;
  for (int step = 0; step < experts; ++step) {
    const int e = first + step < experts ? first + step : first + step - experts;
    const T value = q[e] == q[e] ? q[e] : -std::numeric_limits<T>::infinity();
    if (found == top_k && !(value > best[top_k - 1])) continue;
    int place = found < top_k ? found++ : top_k - 1;
    for (; place > 0 && value > best[place - 1]; --place) {
      best[place] = best[place - 1];
      expert[place] = expert[place - 1];
    }
    best[place] = value;
    expert[place] = e;
  }
}

// 1 / (sum of the chosen scores), or 1.
template <class T>
SWITCHYARD_INLINE T inverse_norm(const T* score, const int* expert, int top_k, bool normalize) {
  if (!normalize) return T(1);
  T total = 0;
  for (int k = 0; k < top_k; ++k) total += score[expert[k]];
  return T(1) / (total + static_cast<T>(kTiny));
}

// Sums of one group in double: a float would lose what thousands of tokens add to it.
struct GroupSums {
  std::vector<double> probability, importance;
  double z = 0;
  explicit GroupSums(int experts) : probability(experts), importance(experts) {}
};

// Scores, choice and weights of a real token, and what it adds to the sums.
template <class T>
class TokenRouter {
 public:
  explicit TokenRouter(const RouterScores<T>& p)
      : p_(p), scores_(p.experts, p.score), biased_(p.experts), best_(p.top_k) {}

  void route(std::int64_t t, GroupSums& sums) {
    scores_.read(p_.logits + t * p_.experts);
    const T* score = scores_.score();
    const std::int64_t position = p_.first_position + t % p_.seq_len;
    const int first = p_.rotate_ties ? static_cast<int>(position * p_.top_k % p_.experts) : 0;
    int* expert = p_.expert + t * p_.top_k;
    choose(selection(t, score), p_.experts, p_.top_k, first, expert, best_.data());

    int* count = p_.count + t / p_.group_size * p_.experts;
    const T inverse = inverse_norm(score, expert, p_.top_k, p_.normalize);
    for (int k = 0; k < p_.top_k; ++k) {
      const T weight = score[expert[k]] * inverse;
      p_.weight[t * p_.top_k + k] = weight * static_cast<T>(p_.scale);
      count[expert[k]] += 1;
      sums.importance[expert[k]] += static_cast<double>(weight);
    }
    for (int e = 0; e < p_.experts; ++e) sums.probability[e] += static_cast<double>(scores_.probability(e));
    sums.z += static_cast<double>(scores_.log_sum()) * static_cast<double>(scores_.log_sum());
  }

 private:
  const T* selection(std::int64_t t, const T* score) {
    if (p_.selection) return p_.selection + t * p_.experts;
    if (!p_.selection_bias) return score;
    for (int e = 0; e < p_.experts; ++e) biased_[e] = score[e] + static_cast<T>(p_.selection_bias[e]);
    return biased_.data();
  }

  const RouterScores<T>& p_;
  TokenScores<T> scores_;
  std::vector<T> biased_, best_;
};

template <class T>
void add_to_outputs(const RouterScores<T>& p, std::int64_t group, GroupSums& sums) {
  for (int e = 0; e < p.experts; ++e) {
    p.prob_sum[group * p.experts + e] += static_cast<T>(sums.probability[e]);
    if (p.importance) p.importance[e] += static_cast<T>(sums.importance[e]);
  }
  *p.z_sum += static_cast<T>(sums.z);
  sums = GroupSums(p.experts);
}

template <class T>
void check(const T& p) {
  SWITCHYARD_ASSERT(p.top_k >= 1 && p.top_k <= p.experts, "top_k must be 1 to experts");
  SWITCHYARD_ASSERT(p.group_size >= 1, "group_size must be positive");
}

}  // namespace

template <class T>
void router_scores_cpu(const RouterScores<T>& p, Range tokens) {
  check(p);
  TokenRouter<T> router(p);
  GroupSums sums(p.experts);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    if (!p.real || p.real[t]) {
      router.route(t, sums);
    } else {
      std::fill_n(p.expert + t * p.top_k, p.top_k, -1);
      std::fill_n(p.weight + t * p.top_k, p.top_k, T(0));
    }
    if (t + 1 == tokens.end || (t + 1) % p.group_size == 0) add_to_outputs(p, t / p.group_size, sums);
  }
}

template <class T>
void router_scores_backward_cpu(const RouterScoresBackward<T>& p, Range tokens) {
  check(p);
  TokenScores<T> scores(p.experts, p.score);
  std::vector<T> d_probability(p.experts), d_score(p.experts), d_chosen(p.top_k);
  const T d_z = p.d_z_sum ? T(2) * *p.d_z_sum : T(0);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const int* expert = p.expert + t * p.top_k;
    T* d_logits = p.d_logits + t * p.experts;
    if (expert[0] < 0) {
      std::fill_n(d_logits, p.experts, T(0));
      continue;
    }
    scores.read(p.logits + t * p.experts);
    const T* score = scores.score();
    const T* softmax = scores.softmax();

    // Of the chosen: n = s / Z with Z the sum over them, so d s_k = (d n_k - sum_i n_i d n_i) / Z.
    std::fill(d_score.begin(), d_score.end(), T(0));
    const T inverse = inverse_norm(score, expert, p.top_k, p.normalize);
    T share = 0;
    for (int k = 0; k < p.top_k; ++k) {
      T d = p.d_weight ? p.d_weight[t * p.top_k + k] * static_cast<T>(p.scale) : T(0);
      if (p.d_importance) d += p.d_importance[expert[k]];
      d_chosen[k] = d;
      if (p.normalize) share += d * score[expert[k]] * inverse;
    }
    for (int k = 0; k < p.top_k; ++k) d_score[expert[k]] = (d_chosen[k] - share) * inverse;

    const T* d_group = p.d_prob_sum ? p.d_prob_sum + t / p.group_size * p.experts : nullptr;
    for (int e = 0; e < p.experts; ++e) {
      d_probability[e] = d_group ? d_group[e] : T(0);
      if (p.score == Score::kSoftmax) d_probability[e] += d_score[e];  // there p is s
    }
    T mean = 0;
    for (int e = 0; e < p.experts; ++e) mean += scores.probability(e) * d_probability[e];

    const T d_log_sum = d_z * scores.log_sum();
    for (int e = 0; e < p.experts; ++e) {
      T d = d_log_sum * softmax[e];
      if (p.score == Score::kSigmoid) {
        d += (d_score[e] + (d_probability[e] - mean) / scores.sigmoid_sum()) * score[e] * (T(1) - score[e]);
      } else {
        d += softmax[e] * (d_probability[e] - mean);
        if (p.score == Score::kIdentity) d += d_score[e];
      }
      d_logits[e] = d;
    }
  }
}

template void router_scores_cpu(const RouterScores<float>&, Range);
template void router_scores_cpu(const RouterScores<double>&, Range);
template void router_scores_backward_cpu(const RouterScoresBackward<float>&, Range);
template void router_scores_backward_cpu(const RouterScoresBackward<double>&, Range);

}  // namespace switchyard::kernels
