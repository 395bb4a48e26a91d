// kernels/choice.h: what a router chooses by where a bias alone would not say it: noise on the logits, experts that sit
// a step out, groups of which a token takes a few (moe_spec R3, R7, R12, E13). router_scores takes it as `selection`.
#pragma once

#include "kernels/noise.h"
#include "kernels/router.h"

namespace switchyard::kernels {

// q = score(l + noise_scale n) + bias, n drawn as noise() draws it; -inf for dropped experts and for those outside the
// token's groups. Experts 0 to E-1 form groups of E / groups neighbours; later columns (zero experts) are in none. A
// group's score is the sum of its two largest q (a second one of -inf counts 0; NaN counts as -inf), or the largest;
// the `kept` largest stay. Equal groups rank by g, starting with that of column (first_position + token mod seq_len) K
// mod C if ties rotate, with group 0 where that is in no group.
template <class T>
struct ChoiceScores {
  const T* logits;      // [T, C]
  const float* bias;    // [C] or null
  const bool* dropped;  // [E] or null: none
  T* q;                 // [T, C] overwritten
  std::int64_t tokens;
  int columns, experts;
  Score score;
  float noise_scale;  // 0: no noise, `noise` is not read
  NoiseDraw noise;    // of C columns; `out` is not written
  int groups, kept;   // equal: all stay
  bool sum_of_two;
  int top_k, seq_len, first_position;
  bool rotate_ties;
};

void choice_scores(const ChoiceScores<float>&, Stream);  // columns up to kMaxExperts
template <class T>
void choice_scores_cpu(const ChoiceScores<T>&, Range tokens);  // float, double

// The group with which ties begin.
template <class T>
SWITCHYARD_HOST_DEVICE int first_group(const ChoiceScores<T>& a, std::int64_t token) {
  if (!a.rotate_ties) return 0;
  const unsigned position = a.first_position + static_cast<unsigned>(token) % static_cast<unsigned>(a.seq_len);
  const int turn = static_cast<int>(position * a.top_k % a.columns);
  return turn < a.experts ? turn / (a.experts / a.groups) : 0;
}

// Of n scores, as many as rank before that of g; `first` is the one that ties prefer.
template <class T>
SWITCHYARD_HOST_DEVICE int group_rank(const T* score, int n, int g, int first) {
  const int place = g < first ? g - first + n : g - first;
  int before = 0;
  for (int other = 0; other < n; ++other) {
    const int other_place = other < first ? other - first + n : other - first;
    before += score[other] > score[g] || (score[other] == score[g] && other_place < place);
  }
  return before;
}

template <class T>
SWITCHYARD_HOST_DEVICE T group_score(const T* q, int size, bool sum_of_two) {
  T best = -INFINITY, second = -INFINITY;
  for (int i = 0; i < size; ++i) {
    if (q[i] > best)
      second = best, best = q[i];
    else if (q[i] > second)
      second = q[i];
  }
  return sum_of_two && second > -INFINITY ? best + second : best;
}

}  // namespace switchyard::kernels
