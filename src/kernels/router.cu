// A token is spread over L lanes, the power of two at or above E (at most 32): E = 8 puts four tokens in a warp. Every
// lane keeps the sums of its own experts in registers, a block adds its warps' in order, and a second kernel adds the
// blocks': no atomics, so the sums repeat bit for bit. The number of blocks depends on the problem alone.
#include <algorithm>
#include <climits>

#include "kernels/cuda_check.h"
#include "kernels/router.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr float kTiny = 1e-20f;

// Per block: probabilities [E], counts [E] (as ints), importance [E], and one z sum.
__host__ __device__ constexpr int partial_width(int experts) { return 3 * experts + 1; }

std::int64_t blocks_a_group(std::int64_t tokens, std::int64_t group_size) {
  const std::int64_t groups = std::max<std::int64_t>(1, tokens / group_size);
  return std::max<std::int64_t>(1,
                                std::min(ceil_div<std::int64_t>(group_size, 64), ceil_div<std::int64_t>(512, groups)));
}

int lanes_for(int experts) {
  int lanes = 1;
  while (lanes < experts && lanes < kWarp) lanes *= 2;
  return lanes;
}

// Reductions over the `lanes` neighbouring lanes that share a token; all 32 lanes call them.
template <class Value, class Combine>
__device__ __forceinline__ Value over_lanes(int lanes, Value v, Combine combine) {
  for (int step = lanes / 2; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
__device__ __forceinline__ float token_sum(int lanes, float v) {
  return over_lanes(lanes, v, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float token_max(int lanes, float v) {
  return over_lanes(lanes, v, [](float a, float b) { return fmaxf(a, b); });
}

// One token's experts as this lane holds them: expert v * lanes + sub is element v.
template <int kPer>
struct Row {
  float logit[kPer], score[kPer], prob[kPer];  // prob: p of the balance losses
  float softmax_max, softmax_sum, score_sum;

  __device__ __forceinline__ void load(const float* logits, int experts, int lanes, int sub, bool active) {
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      const int e = v * lanes + sub;
      logit[v] = active && e < experts ? logits[e] : -INFINITY;
    }
  }

  __device__ __forceinline__ void evaluate(Score kind, int experts, int lanes, int sub) {
    float most = -INFINITY, sum = 0, scores = 0;
#pragma unroll
    for (int v = 0; v < kPer; ++v) most = fmaxf(most, logit[v]);
    softmax_max = token_max(lanes, most);
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      prob[v] = v * lanes + sub < experts ? expf(logit[v] - softmax_max) : 0.0f;
      sum += prob[v];
    }
    softmax_sum = token_sum(lanes, sum);
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      prob[v] /= softmax_sum;
      score[v] = kind == Score::kSoftmax   ? prob[v]
                 : kind == Score::kSigmoid ? 1.0f / (1.0f + expf(-logit[v]))
                                           : logit[v];
      if (v * lanes + sub >= experts) score[v] = 0;
      scores += score[v];
    }
    if (kind != Score::kSigmoid) return;
    score_sum = token_sum(lanes, scores) + kTiny;
#pragma unroll
    for (int v = 0; v < kPer; ++v) prob[v] = score[v] / score_sum;
  }
  __device__ __forceinline__ float softmax(int v) const { return expf(logit[v] - softmax_max) / softmax_sum; }
  __device__ __forceinline__ float log_sum() const { return softmax_max + logf(softmax_sum); }

  // The score of any of the token's experts, to all of its lanes.
  __device__ __forceinline__ float score_of(int e, int lanes, int sub) const {
    float mine = 0;
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      if (v * lanes + sub == e) mine = score[v];
    return __shfl_sync(kAllLanes, mine, e & (lanes - 1), lanes);
  }
};

// Larger keys are chosen first: the score's bits in an order that integers keep, then the smaller place in the tie
// order. NaN counts as -inf and -0 as 0; a key of 0 is never chosen.
__device__ __forceinline__ unsigned long long choice_key(float q, int order) {
  q = isnan(q) ? -INFINITY : q + 0.0f;
  const unsigned bits = __float_as_uint(q);
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - static_cast<unsigned>(order));
}

template <int kPer>
__global__ void __launch_bounds__(kThreads) router_kernel(RouterScores<float> a, int lanes) {
  extern __shared__ float shared[];  // [warp][E]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, sub = lane & (lanes - 1);
  const int slot = (warp * kWarp + lane) / lanes, slots = kThreads / lanes, experts = a.experts;
  const std::int64_t group = blockIdx.y, begin = group * a.group_size;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * slots;
  float prob_sum[kPer] = {}, importance[kPer] = {}, z_sum = 0;
  int count[kPer] = {};

  for (std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * slots; base < a.group_size; base += stride) {
    const bool active = base + slot < a.group_size;
    const std::int64_t t = begin + base + slot;
    const bool real = active && (!a.real || a.real[t]);
    Row<kPer> row;
    row.load(a.logits + t * experts, experts, lanes, sub, real);
    row.evaluate(a.score, experts, lanes, sub);

    unsigned long long key[kPer];
    unsigned turn = 0;  // the tie order starts at this expert
    if (a.rotate_ties) {
      const unsigned position = a.first_position + static_cast<unsigned>(t) % static_cast<unsigned>(a.seq_len);
      turn = position * a.top_k % experts;
    }
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      const int e = v * lanes + sub;
      const int order = e >= static_cast<int>(turn) ? e - turn : e - turn + experts;
      float q;
      if (a.selection)
        q = real && e < experts ? a.selection[t * experts + e] : 0.0f;
      else
        q = row.score[v] + (a.selection_bias && e < experts ? a.selection_bias[e] : 0.0f);
      key[v] = e < experts ? choice_key(q, order) : 0;
    }

    // Lane k of the token keeps its k-th choice.
    int chosen = 0;
    float weight = 0, sum = 0;
    for (int k = 0; k < a.top_k; ++k) {
      unsigned long long best = 0;
#pragma unroll
      for (int v = 0; v < kPer; ++v) best = max(best, key[v]);
      best = over_lanes(lanes, best, [](unsigned long long x, unsigned long long y) { return max(x, y); });
      int e = static_cast<int>(0xffffffffu - static_cast<unsigned>(best)) + static_cast<int>(turn);
      if (e >= experts) e -= experts;
      const float s = row.score_of(e, lanes, sub);
      sum += s;
      if (sub == k) chosen = e, weight = s;
#pragma unroll
      for (int v = 0; v < kPer; ++v)
        if (v * lanes + sub == e) key[v] = 0;
    }
    if (a.normalize) weight /= sum + kTiny;
    if (active && sub < a.top_k) {
      a.expert[t * a.top_k + sub] = real ? chosen : -1;
      a.weight[t * a.top_k + sub] = real ? weight * a.scale : 0.0f;
    }
    for (int k = 0; k < a.top_k; ++k) {
      const int e = __shfl_sync(kAllLanes, chosen, k, lanes);
      const float w = __shfl_sync(kAllLanes, weight, k, lanes);
#pragma unroll
      for (int v = 0; v < kPer; ++v)
        if (real && v * lanes + sub == e) importance[v] += w, ++count[v];
    }
    if (!real) continue;
    const float z = row.log_sum();
    if (sub == 0) z_sum = fmaf(z, z, z_sum);
#pragma unroll
    for (int v = 0; v < kPer; ++v) prob_sum[v] += row.prob[v];
  }

  // Tokens of a warp, then warps of the block, in order.
  float* partial = a.scratch + (group * gridDim.x + blockIdx.x) * partial_width(experts);
  auto add_block = [&](auto own, auto store) {
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      float sum = own(v);
      for (int step = lanes; step < kWarp; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      const int e = v * lanes + sub;
      if (lane < lanes && e < experts) shared[warp * experts + e] = sum;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kThreads) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared[w * experts + e];
      store(e, sum);
    }
    __syncthreads();
  };
  add_block([&](int v) { return prob_sum[v]; }, [&](int e, float sum) { partial[e] = sum; });
  // A block sees fewer than 2^24 tokens: its counts are exact in fp32.
  add_block([&](int v) { return static_cast<float>(count[v]); },
            [&](int e, float sum) { partial[experts + e] = __int_as_float(static_cast<int>(sum)); });
  add_block([&](int v) { return importance[v]; }, [&](int e, float sum) { partial[2 * experts + e] = sum; });
  z_sum = row_sum<kThreads>(z_sum);
  if (threadIdx.x == 0) partial[3 * experts] = z_sum;
}

// Column c of [rows, width], one warp a column, in a fixed order. Only lane 0's result counts.
template <class Value, class Read>
__device__ __forceinline__ Value column_sum(int rows, Read read) {
  Value sum = 0;
#pragma unroll 4
  for (int row = threadIdx.x % kWarp; row < rows; row += kWarp) sum += read(row);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(kAllLanes, sum, step);
  return sum;
}

// Warps 0 .. G*E-1: prob_sum and count of (g, e). Then E warps: importance. Then one: z_sum.
__global__ void __launch_bounds__(kThreads) add_router_partials_kernel(RouterScores<float> a, int groups, int blocks) {
  const int width = partial_width(a.experts), lane = threadIdx.x % kWarp;
  int job = blockIdx.x * kWarps + threadIdx.x / kWarp;
  const float* partial = a.scratch;
  if (job < groups * a.experts) {
    const int g = job / a.experts, e = job % a.experts;
    const float* own = partial + static_cast<std::int64_t>(g) * blocks * width + e;
    const float prob = column_sum<float>(blocks, [&](int row) { return own[static_cast<std::int64_t>(row) * width]; });
    const int count = column_sum<int>(
        blocks, [&](int row) { return __float_as_int(own[static_cast<std::int64_t>(row) * width + a.experts]); });
    if (lane == 0) a.prob_sum[job] = prob, a.count[job] = count;
    return;
  }
  job -= groups * a.experts;
  if (job > a.experts) return;
  const float sum = column_sum<float>(
      groups * blocks, [&](int row) { return partial[static_cast<std::int64_t>(row) * width + 2 * a.experts + job]; });
  if (lane != 0) return;
  if (job == a.experts)
    *a.z_sum = sum;
  else if (a.importance)
    a.importance[job] = sum;
}

template <int kPer>
__global__ void __launch_bounds__(kThreads) router_backward_kernel(RouterScoresBackward<float> a, int lanes) {
  const int lane = threadIdx.x % kWarp, sub = lane & (lanes - 1), experts = a.experts;
  const std::int64_t t = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const bool active = t < a.tokens, real = active && a.expert[t * a.top_k] >= 0;
  Row<kPer> row;
  row.load(a.logits + t * experts, experts, lanes, sub, real);
  row.evaluate(a.score, experts, lanes, sub);

  // Lane k holds the gradient of the token's k-th weight (before scale), then of its score.
  const bool chooses = real && sub < a.top_k;
  const int chosen = chooses ? a.expert[t * a.top_k + sub] : 0;
  float d_weight = 0;
  if (chooses && a.d_weight) d_weight = a.scale * a.d_weight[t * a.top_k + sub];
  if (chooses && a.d_importance) d_weight += a.d_importance[chosen];
  if (a.normalize) {
    float sum = 0, own = 0;
    for (int k = 0; k < a.top_k; ++k) {
      const float s = row.score_of(__shfl_sync(kAllLanes, chosen, k, lanes), lanes, sub);
      sum += s;
      if (sub == k) own = s;
    }
    const float inverse = 1.0f / (sum + kTiny);
    d_weight = inverse * (d_weight - token_sum(lanes, chooses ? d_weight * own * inverse : 0.0f));
  }

  float d_score[kPer] = {}, d_prob[kPer];
  for (int k = 0; k < a.top_k; ++k) {
    const int e = __shfl_sync(kAllLanes, chosen, k, lanes);
    const float d = __shfl_sync(kAllLanes, d_weight, k, lanes);
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      if (v * lanes + sub == e) d_score[v] += d;
  }
  const float* d_prob_sum =
      a.d_prob_sum && real ? a.d_prob_sum + static_cast<unsigned>(t) / static_cast<unsigned>(a.group_size) * experts
                           : nullptr;
  float along = 0;
#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    const int e = v * lanes + sub;
    d_prob[v] = d_prob_sum && e < experts ? d_prob_sum[e] : 0.0f;
    if (a.score == Score::kSoftmax) d_prob[v] += d_score[v];
    along = fmaf(d_prob[v], row.prob[v], along);
  }
  along = token_sum(lanes, along);
  const float z = a.d_z_sum ? 2.0f * *a.d_z_sum * row.log_sum() : 0.0f;

#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    const int e = v * lanes + sub;
    if (!active || e >= experts) continue;
    float d;
    if (a.score == Score::kSigmoid) {
      const float s = row.score[v];
      d = (d_score[v] + (d_prob[v] - along) / row.score_sum) * s * (1.0f - s);
    } else {
      d = row.prob[v] * (d_prob[v] - along) + (a.score == Score::kIdentity ? d_score[v] : 0.0f);
    }
    if (a.d_z_sum) d = fmaf(z, row.softmax(v), d);
    a.d_logits[t * experts + e] = real ? d : 0.0f;
  }
}

// Calls run(experts a lane) with a compile-time constant.
template <class Run>
void with_experts(int experts, int top_k, Run run) {
  SWITCHYARD_ASSERT(experts >= 1 && experts <= kMaxExperts && top_k >= 1 && top_k <= kMaxTopK && top_k <= experts,
                    "the router takes up to 512 experts and 16 of them a token");
  if (experts <= 32) return run(std::integral_constant<int, 1>());
  if (experts <= 64) return run(std::integral_constant<int, 2>());
  if (experts <= 128) return run(std::integral_constant<int, 4>());
  if (experts <= 256) return run(std::integral_constant<int, 8>());
  run(std::integral_constant<int, 16>());
}

}  // namespace

std::int64_t router_scratch(std::int64_t tokens, std::int64_t group_size, int experts) {
  const std::int64_t groups = std::max<std::int64_t>(1, tokens / group_size);
  return groups * blocks_a_group(tokens, group_size) * partial_width(experts);
}

void router_scores(const RouterScores<float>& a, Stream stream) {
  if (a.tokens == 0) return;
  const auto groups = static_cast<unsigned>(a.tokens / a.group_size);
  SWITCHYARD_ASSERT(a.tokens % a.group_size == 0 && groups <= 65535,
                    "group_size must divide tokens into at most 65535 groups");
  const auto blocks = static_cast<unsigned>(blocks_a_group(a.tokens, a.group_size));
  with_experts(a.experts, a.top_k, [&](auto per) {
    router_kernel<decltype(per)::value>
        <<<dim3(blocks, groups), kThreads, kWarps * a.experts * sizeof(float), stream>>>(a, lanes_for(a.experts));
  });
  SWITCHYARD_CUDA_LAUNCHED();
  const unsigned jobs = groups * a.experts + a.experts + 1;
  add_router_partials_kernel<<<ceil_div<unsigned>(jobs, kWarps), kThreads, 0, stream>>>(a, static_cast<int>(groups),
                                                                                        static_cast<int>(blocks));
  SWITCHYARD_CUDA_LAUNCHED();
}

void router_scores_backward(const RouterScoresBackward<float>& a, Stream stream) {
  if (a.tokens == 0) return;
  const int lanes = lanes_for(a.experts);
  with_experts(a.experts, a.top_k, [&](auto per) {
    router_backward_kernel<decltype(per)::value>
        <<<static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens * lanes, kThreads)), kThreads, 0, stream>>>(a, lanes);
  });
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
