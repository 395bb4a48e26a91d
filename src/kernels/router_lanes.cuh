// kernels/router_lanes.cuh: how lanes share a token's experts, for router_scores forward and backward. A lane holds
// eight of them (16 beyond 256), so that E = 64 takes 8 lanes, four tokens share a warp and a reduction over a token
// has three steps: the integer units bound these kernels, not memory.
#pragma once

#include <type_traits>

#include "kernels/cuda_check.h"
#include "kernels/router.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {

inline constexpr int kRouterThreads = 256;
inline constexpr float kTinySum = 1e-20f;  // guards divisions by sums of scores

// Lanes that share a token, and the experts each of them holds.
inline int experts_a_lane(int experts) { return experts <= 256 ? 8 : 16; }
inline int lanes_for(int experts) {
  int lanes = 1;
  while (lanes * experts_a_lane(experts) < experts) lanes *= 2;
  return lanes;
}

// Reductions over the kLanes neighbouring lanes that share a token; all 32 lanes call them.
template <int kLanes, class Value, class Combine>
__device__ __forceinline__ Value over_lanes(Value v, Combine combine) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
template <int kLanes>
__device__ __forceinline__ float token_max(float v) {
  return over_lanes<kLanes>(v, [](float a, float b) { return fmaxf(a, b); });
}

// A lane's part of a token: element v is expert first + offset(v), in packs of four neighbours.
template <int kLanes, int kPer>
struct Part {
  int experts, first;

  __device__ __forceinline__ Part(int experts, int lane) : experts(experts), first(lane % kLanes * 4) {}
  __device__ static constexpr int offset(int v) { return v / 4 * 4 * kLanes + v % 4; }
  __device__ __forceinline__ int expert(int v) const { return first + offset(v); }
  __device__ __forceinline__ bool has(int v) const { return expert(v) < experts; }
  // This lane's part of row [E]; `rest` beyond E.
  __device__ __forceinline__ void load(bool there, const float* row, float rest, float (&f)[kPer]) const {
    if (experts % 4 == 0) {
#pragma unroll
      for (int v = 0; v < kPer; v += 4) {
        float4 pack = make_float4(rest, rest, rest, rest);
        if (there && has(v)) pack = *reinterpret_cast<const float4*>(row + expert(v));
        f[v] = pack.x, f[v + 1] = pack.y, f[v + 2] = pack.z, f[v + 3] = pack.w;
      }
    } else {
#pragma unroll
      for (int v = 0; v < kPer; ++v) f[v] = there && has(v) ? row[expert(v)] : rest;
    }
  }
  __device__ __forceinline__ void store(const float (&f)[kPer], float* row) const {
    if (experts % 4 == 0) {
#pragma unroll
      for (int v = 0; v < kPer; v += 4)
        if (has(v)) *reinterpret_cast<float4*>(row + expert(v)) = make_float4(f[v], f[v + 1], f[v + 2], f[v + 3]);
    } else {
#pragma unroll
      for (int v = 0; v < kPer; ++v)
        if (has(v)) row[expert(v)] = f[v];
    }
  }
};

// A lane's part of a token's scores. Logits beyond E are -inf, so that they add nothing.
template <int kLanes, int kPer>
struct Row {
  float logit[kPer], score[kPer], prob[kPer];  // prob: p of the balance losses
  float softmax_max, softmax_inverse, score_inverse, log_sum;

  __device__ __forceinline__ void evaluate(Score kind) {
    float most = logit[0], sum = 0;
#pragma unroll
    for (int v = 1; v < kPer; ++v) most = fmaxf(most, logit[v]);
    softmax_max = token_max<kLanes>(most);
#pragma unroll
    for (int v = 0; v < kPer; ++v) sum += prob[v] = expf(logit[v] - softmax_max);
    sum = lane_sum<kLanes>(sum);
    softmax_inverse = reciprocal_fast(sum);
    log_sum = softmax_max + logf(sum);
    if (kind == Score::kSigmoid) {
      float scores = 0;
#pragma unroll
      for (int v = 0; v < kPer; ++v) scores += score[v] = reciprocal_fast(1.0f + expf(-logit[v]));
      score_inverse = reciprocal_fast(lane_sum<kLanes>(scores) + kTinySum);
#pragma unroll
      for (int v = 0; v < kPer; ++v) prob[v] = score[v] * score_inverse;
    } else {
#pragma unroll
      for (int v = 0; v < kPer; ++v) {
        prob[v] *= softmax_inverse;
        score[v] = kind == Score::kSoftmax ? prob[v] : logit[v];
      }
    }
  }
};

// Calls run(lanes a token, experts a lane) with compile-time constants: as lanes_for and experts_a_lane.
template <int kLanes = 1, class Run>
void with_experts(int experts, int top_k, Run run) {
  using std::integral_constant;
  SWITCHYARD_ASSERT(experts >= 1 && experts <= kMaxExperts && top_k >= 1 && top_k <= kMaxTopK && top_k <= experts,
                    "the router takes up to 512 experts and 16 of them a token");
  if (experts <= 8 * kLanes) return run(integral_constant<int, kLanes>(), integral_constant<int, 8>());
  if constexpr (kLanes < kWarp)
    with_experts<2 * kLanes>(experts, top_k, run);
  else
    run(integral_constant<int, kWarp>(), integral_constant<int, 16>());
}

}  // namespace switchyard::kernels
