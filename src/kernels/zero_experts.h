// kernels/zero_experts.h: what experts without products add to the sum of a token's experts: copies of x, and constant
// experts a1 x + a2 v with (a1, a2) = softmax(W x) (moe_spec E8, E10; AdaMoE, Zeng et al. 2024; MoE++, Jin et al.
// 2024).
#pragma once

#include <type_traits>

#include "base/philox.h"
#include "kernels/types.h"

namespace switchyard::kernels {

// What an assignment goes to: none of these experts, a copy, or constant expert kConstant + j.
inline constexpr int kNoZeroExpert = -1, kCopy = 0, kConstant = 1;

struct ZeroExpertChoice {
  const int* expert;                    // [T, K] columns of the router; -1: none, or without a place
  const bool* dropped;                  // [T, K] without a place, or null: none is
  int first_copy, first_constant, end;  // columns that are copies, and from first_constant on constants
  int of_dropped;                       // what an assignment without a place goes to
};

SWITCHYARD_HOST_DEVICE int zero_expert(const ZeroExpertChoice& a, std::int64_t assignment) {
  if (a.dropped && a.dropped[assignment]) return a.of_dropped;
  const int e = a.expert[assignment];
  if (e < a.first_copy || e >= a.end) return kNoZeroExpert;
  return e < a.first_constant ? kCopy : kConstant + e - a.first_constant;
}

// Weights and constants' parameters: fp32, fp64 beside fp64 activations.
template <class T>
using ZeroExpertValue = std::conditional_t<std::is_same_v<T, double>, double, float>;

// out[t] += sum_k weight[t,k] Z(x[t]) over the assignments to such experts; other tokens are neither read nor written.
template <class T>
struct ZeroExperts {
  using Value = ZeroExpertValue<T>;
  ZeroExpertChoice choice;
  const T* x;           // [T, D]
  const Value* weight;  // [T, K]
  const Value* map;     // [J, 2, D] W of the constants, or null without any
  const Value* vector;  // [J, D] their v
  T* out;               // [T, D] added to
  std::int64_t tokens;
  int top_k, width, constants;  // K at most 32, D a multiple of 8 on CUDA; constants: J
};

// The gradients by x, by the weights of such assignments, and per constant what its parameters' gradients are sums of:
// coefficient[j, t] = {d z_1 = - d z_2, the gradient of the logits W x; weight a2}, zeros for other tokens.
template <class T>
struct ZeroExpertsBackward {
  using Value = ZeroExpertValue<T>;
  ZeroExpertChoice choice;
  const T* x;           // [T, D]
  const T* d_out;       // [T, D]
  const Value* weight;  // [T, K]
  const Value* map;     // [J, 2, D]
  const Value* vector;  // [J, D]
  T* d_x;               // [T, D] added to
  Value* d_weight;      // [T, K] written at assignments to such experts alone
  Value* coefficient;   // [J, T, 2] overwritten, null without constants
  std::int64_t tokens;
  int top_k, width, constants;
};

// sums[j] = {sum_t coefficient[j,t,0] x[t], sum_t coefficient[j,t,1] d_out[t]}
template <class T>
struct ZeroExpertSums {
  using Value = ZeroExpertValue<T>;
  const T* x;                // [T, D]
  const T* d_out;            // [T, D]
  const Value* coefficient;  // [J, T, 2]
  Value* sums;               // [J, 2, D] zero when called on CUDA, overwritten on a CPU
  float* scratch;            // zero_expert_scratch(...) floats, CUDA only
  std::int64_t tokens;
  int width, constants;
};

template <class T>
void zero_experts(const ZeroExperts<T>&, Stream);  // bf16, float
template <class T>
void zero_experts_backward(const ZeroExpertsBackward<T>&, Stream);  // bf16, float
template <class T>
void zero_expert_sums(const ZeroExpertSums<T>&, Stream);  // bf16, float
std::int64_t zero_expert_scratch(std::int64_t tokens, int width, int constants);

template <class T>
void zero_experts_cpu(const ZeroExperts<T>&, Range tokens);  // float, double
template <class T>
void zero_experts_backward_cpu(const ZeroExpertsBackward<T>&, Range tokens);  // float, double
template <class T>
void zero_expert_sums_cpu(const ZeroExpertSums<T>&, Range constants);  // float, double

}  // namespace switchyard::kernels
