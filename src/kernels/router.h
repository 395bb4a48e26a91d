// kernels/router.h: from logits to scores, the K chosen experts, their weights, and the sums the balance losses need.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

enum class Score { kSoftmax, kSigmoid, kIdentity };

inline constexpr int kMaxTopK = 16;      // K, on CUDA
inline constexpr int kMaxExperts = 512;  // E, on CUDA

// s = score(l); q = s + selection_bias; S_t = the K largest q, ties in the order (e - t K) mod E with t the position in
// the sequence, first_position + token mod seq_len (rotate), or e (lowest index); w = s[S], normalised (w / (sum +
// 1e-20)) if asked, times scale. For the choice a NaN q counts as -inf: the K experts are always distinct. p =
// softmax(l), for sigmoid s / (sum s + 1e-20). Token t belongs to group t / group_size: sequences, or all as one.
// A token that is not real (padding) gets the experts -1 and the weights 0, and adds nothing to any sum.
template <class T>
struct RouterScores {
  const T* logits;                  // [T, E]
  const float* selection_bias;      // [E] or null
  int* expert;                      // [T, K] chosen, best first
  T* weight;                        // [T, K]
  int* count;                       // [G, E] overwritten: assignments
  T* prob_sum;                      // [G, E] overwritten: sum_t p
  T* importance;                    // [E] overwritten: sum over assignments of w (before scale), null: not wanted
  T* z_sum;                         // [1] overwritten: sum_t (ln sum_e e^l)^2
  float* scratch;                   // router_scratch(...) floats, CUDA only
  std::int64_t tokens, group_size;  // group_size divides tokens
  int experts, top_k, seq_len;
  Score score;
  bool normalize, rotate_ties;
  float scale;
  int first_position = 0;        // of each sequence's first token here (cached decoding)
  const T* selection = nullptr;  // [T, E] q itself, of which selection_bias is then no part; null: as above
  const bool* real = nullptr;    // [T], null: all are
};

// The gradient of all of forward's outputs by the logits. d_* null: zero.
template <class T>
struct RouterScoresBackward {
  const T* logits;
  const int* expert;      // [T, K] as forward chose; -1: not a real token, its gradient is 0
  const T* d_weight;      // [T, K] or null
  const T* d_prob_sum;    // [G, E] or null
  const T* d_importance;  // [E] or null
  const T* d_z_sum;       // [1] or null
  T* d_logits;            // [T, E] overwritten
  std::int64_t tokens, group_size;
  int experts, top_k;
  Score score;
  bool normalize;
  float scale;
};

void router_scores(const RouterScores<float>&, Stream);
void router_scores_backward(const RouterScoresBackward<float>&, Stream);
std::int64_t router_scratch(std::int64_t tokens, std::int64_t group_size, int experts);

// CPU: sums of the range's tokens; the range must lie in whole groups or inside one group, and count, prob_sum (of the
// groups it touches), importance and z_sum are added to: the caller zeroes them and adds ranges in order.
template <class T>
void router_scores_cpu(const RouterScores<T>&, Range tokens);  // float, double
template <class T>
void router_scores_backward_cpu(const RouterScoresBackward<T>&, Range tokens);

}  // namespace switchyard::kernels
