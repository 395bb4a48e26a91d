// The gradient of router_scores: a token's lanes recompute its scores from the logits, all else stays in registers.
#include "kernels/router_lanes.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = kRouterThreads;

// What a row of gradients holds where an expert was not chosen: a NaN that no arithmetic makes.
constexpr unsigned kNotChosen = 0xffffffffu;

// The gradients of the token's weights (before scale), each beside its expert: the K assignments are read as neighbours
// and find their lanes through `row` in shared memory, [kLanes * kPer].
template <int kLanes, int kPer>
__device__ __forceinline__ void weight_gradients(const RouterScoresBackward<float>& a, const Part<kLanes, kPer>& part,
                                                 std::int64_t t, bool active, float* row, float (&d)[kPer]) {
  const float none = __uint_as_float(kNotChosen);
#pragma unroll
  for (int v = 0; v < kPer; v += 4)
    *reinterpret_cast<float4*>(row + part.expert(v)) = make_float4(none, none, none, none);
  __syncwarp();
  for (int k = threadIdx.x % kLanes; active && k < a.top_k; k += kLanes) {
    const int e = a.expert[t * a.top_k + k];
    float gradient = a.d_weight ? a.scale * a.d_weight[t * a.top_k + k] : 0.0f;
    if (e < 0) continue;
    if (a.d_importance) gradient += a.d_importance[e];
    row[e] = gradient;
  }
  __syncwarp();
#pragma unroll
  for (int v = 0; v < kPer; v += 4) {
    const float4 pack = *reinterpret_cast<const float4*>(row + part.expert(v));
    d[v] = pack.x, d[v + 1] = pack.y, d[v + 2] = pack.z, d[v + 3] = pack.w;
  }
}

// From the gradients of the weights to those of the scores, in place; 0 for an expert that was not chosen.
template <int kLanes, int kPer>
__device__ __forceinline__ void score_gradients(const float (&score)[kPer], bool normalize, float (&d)[kPer]) {
  if (normalize) {
    // Of the chosen: n = s / Z with Z the sum over them, so d s_k = (d n_k - sum_i n_i d n_i) / Z.
    float sum = 0, share = 0;
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      if (__float_as_uint(d[v]) != kNotChosen) sum += score[v], share = fmaf(d[v], score[v], share);
    const float inverse = reciprocal_fast(lane_sum<kLanes>(sum) + kTinySum);
    share = lane_sum<kLanes>(share) * inverse;
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      if (__float_as_uint(d[v]) != kNotChosen) d[v] = inverse * (d[v] - share);
  }
#pragma unroll
  for (int v = 0; v < kPer; ++v)
    if (__float_as_uint(d[v]) == kNotChosen) d[v] = 0;
}

template <int kLanes, int kPer>
__global__ void __launch_bounds__(kThreads) router_backward_kernel(RouterScoresBackward<float> a) {
  __shared__ __align__(16) float given[kThreads * kPer];
  const std::int64_t t = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const bool active = t < a.tokens, real = active && a.expert[t * a.top_k] >= 0;
  const Part<kLanes, kPer> part(a.experts, threadIdx.x);
  Row<kLanes, kPer> row;
  part.load(active, a.logits + t * a.experts, -INFINITY, row.logit);
  float d_score[kPer], d_prob[kPer] = {};
  weight_gradients(a, part, t, active, given + threadIdx.x / kLanes * kLanes * kPer, d_score);
  if (a.d_prob_sum) {
    const unsigned group = static_cast<unsigned>(t) / static_cast<unsigned>(a.group_size);
    part.load(active, a.d_prob_sum + static_cast<std::int64_t>(group) * a.experts, 0, d_prob);
  }
  row.evaluate(a.score);
  score_gradients<kLanes>(row.score, a.normalize, d_score);

  float along = 0;
#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    if (a.score == Score::kSoftmax) d_prob[v] += d_score[v];
    along = fmaf(d_prob[v], row.prob[v], along);
  }
  along = lane_sum<kLanes>(along);
  const float z = a.d_z_sum ? 2.0f * *a.d_z_sum * row.log_sum : 0.0f;

  float d[kPer];
  if (a.score == Score::kSigmoid) {
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      const float s = row.score[v];
      d[v] = (d_score[v] + (d_prob[v] - along) * row.score_inverse) * s * (1.0f - s);
      if (a.d_z_sum) d[v] = fmaf(z, expf(row.logit[v] - row.softmax_max) * row.softmax_inverse, d[v]);
    }
  } else {
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      d[v] = row.prob[v] * (d_prob[v] - along + z);
      if (a.score == Score::kIdentity) d[v] += d_score[v];
    }
  }
#pragma unroll
  for (int v = 0; v < kPer; ++v) d[v] = real ? d[v] : 0.0f;
  if (active) part.store(d, a.d_logits + t * a.experts);
}

}  // namespace

void router_scores_backward(const RouterScoresBackward<float>& a, Stream stream) {
  if (a.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens * lanes_for(a.experts), kThreads));
  with_experts(a.experts, a.top_k, [&](auto lanes, auto per) {
    router_backward_kernel<decltype(lanes)::value, decltype(per)::value><<<blocks, kThreads, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
