// A token is spread over L lanes, the power of two at or above C / 4 (at most 32): a lane holds whole blocks of four
// columns, as many as one draw of noise serves. Groups go through shared memory, since they fit no lanes; a token's
// lanes are of one warp, so that a warp's barrier suffices.
#include "kernels/choice.h"
#include "kernels/cuda_check.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kQuad = 4;

// Reductions over the neighbouring lanes that share a token; all 32 lanes call them.
__device__ __forceinline__ float token_max(int lanes, float v) {
  for (int step = lanes / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
__device__ __forceinline__ float token_sum(int lanes, float v) {
  for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

template <int kQuads>
struct Columns {
  float value[kQuads][kQuad];

  // Calls run(column, value) for this lane's columns below `end`.
  template <class Run>
  __device__ __forceinline__ void each(int lanes, int sub, int end, Run run) {
#pragma unroll
    for (int v = 0; v < kQuads; ++v)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const int c = (v * lanes + sub) * kQuad + j;
        if (c < end) run(c, value[v][j]);
      }
  }
};

template <int kQuads>
__device__ __forceinline__ void add_noise(const ChoiceScores<float>& a, std::int64_t t, int lanes, int sub,
                                          Columns<kQuads>& q) {
  const std::uint64_t key = dropout_key(a.noise.seed, *a.noise.step, a.noise.site), place = noise_place(a.noise, t);
#pragma unroll
  for (int v = 0; v < kQuads; ++v) {
    const int block = v * lanes + sub;
    if (block * kQuad >= a.columns) continue;
    const Draw4 draw = draw_noise(a.noise.kind, philox(key, place, block));
#pragma unroll
    for (int j = 0; j < kQuad; ++j) q.value[v][j] += a.noise_scale * draw.value[j];
  }
}

template <int kQuads>
__device__ __forceinline__ void to_scores(const ChoiceScores<float>& a, int lanes, int sub, Columns<kQuads>& q) {
  if (a.score == Score::kIdentity) return;
  if (a.score == Score::kSigmoid)
    return q.each(lanes, sub, a.columns, [](int, float& v) { v = 1.0f / (1.0f + expf(-v)); });
  float most = -INFINITY, sum = 0;
  q.each(lanes, sub, a.columns, [&](int, float& v) { most = fmaxf(most, v); });
  most = token_max(lanes, most);
  q.each(lanes, sub, a.columns, [&](int, float& v) { sum += v = expf(v - most); });
  sum = token_sum(lanes, sum);
  q.each(lanes, sub, a.columns, [&](int, float& v) { v /= sum; });
}

// own: shared memory of the token, [E] and [G].
template <int kQuads>
__device__ __forceinline__ void limit_to_groups(const ChoiceScores<float>& a, std::int64_t t, int lanes, int sub,
                                                float* own, Columns<kQuads>& q) {
  const int size = a.experts / a.groups, first = first_group(a, t);
  float* score = own + a.experts;
  q.each(lanes, sub, a.experts, [&](int c, float& v) { own[c] = v; });
  __syncwarp();
  for (int g = sub; g < a.groups; g += lanes) score[g] = group_score(own + g * size, size, a.sum_of_two);
  __syncwarp();
  unsigned stays = 0;  // a lane has at most 16 groups
  for (int g = sub, i = 0; g < a.groups; g += lanes, ++i)
    stays |= static_cast<unsigned>(group_rank(score, a.groups, g, first) < a.kept) << i;
  __syncwarp();
  for (int g = sub, i = 0; g < a.groups; g += lanes, ++i) score[g] = stays >> i & 1 ? 1.0f : 0.0f;
  __syncwarp();
  q.each(lanes, sub, a.experts, [&](int c, float& v) {
    if (score[c / size] == 0) v = -INFINITY;
  });
}

template <int kQuads>
__global__ void __launch_bounds__(kThreads) choice_kernel(ChoiceScores<float> a, int lanes) {
  extern __shared__ float shared[];
  const int sub = threadIdx.x & (lanes - 1), slot = threadIdx.x / lanes;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * (kThreads / lanes) + slot;
  const bool active = t < a.tokens;
  Columns<kQuads> q;
#pragma unroll
  for (int v = 0; v < kQuads; ++v) {
    const int c = (v * lanes + sub) * kQuad;
    const float* from = a.logits + t * a.columns + c;
    if (active && a.columns % kQuad == 0 && c < a.columns) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      q.value[v][0] = four.x, q.value[v][1] = four.y, q.value[v][2] = four.z, q.value[v][3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) q.value[v][j] = active && c + j < a.columns ? from[j] : 0.0f;
    }
  }
  if (a.noise_scale > 0 && active) add_noise(a, t, lanes, sub, q);
  to_scores(a, lanes, sub, q);
  if (a.bias) q.each(lanes, sub, a.columns, [&](int c, float& v) { v += a.bias[c]; });
  if (a.dropped)
    q.each(lanes, sub, a.experts, [&](int c, float& v) {
      if (a.dropped[c]) v = -INFINITY;
    });
  if (a.kept < a.groups) limit_to_groups(a, t, lanes, sub, shared + slot * (a.experts + a.groups), q);
  if (!active) return;
#pragma unroll
  for (int v = 0; v < kQuads; ++v) {
    const int c = (v * lanes + sub) * kQuad;
    float* to = a.q + t * a.columns + c;
    if (a.columns % kQuad == 0) {
      if (c < a.columns)
        *reinterpret_cast<float4*>(to) = make_float4(q.value[v][0], q.value[v][1], q.value[v][2], q.value[v][3]);
    } else {
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (c + j < a.columns) to[j] = q.value[v][j];
    }
  }
}

}  // namespace

void choice_scores(const ChoiceScores<float>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.columns >= 1 && a.columns <= kMaxExperts && a.experts <= a.columns,
                    "a choice is made of up to 512 columns");
  SWITCHYARD_ASSERT(a.groups >= 1 && a.kept >= 1 && a.kept <= a.groups && a.experts % a.groups == 0,
                    "groups divide the experts, and some are kept");
  if (a.tokens == 0) return;
  int lanes = 1;
  while (lanes * kQuad < a.columns && lanes < kWarp) lanes *= 2;
  const int tokens = kThreads / lanes;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, tokens));
  const std::size_t bytes = a.kept < a.groups ? tokens * (a.experts + a.groups) * sizeof(float) : 0;
  if (a.columns <= kWarp * kQuad)
    choice_kernel<1><<<blocks, kThreads, bytes, stream>>>(a, lanes);
  else if (a.columns <= 2 * kWarp * kQuad)
    choice_kernel<2><<<blocks, kThreads, bytes, stream>>>(a, lanes);
  else
    choice_kernel<4><<<blocks, kThreads, bytes, stream>>>(a, lanes);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
