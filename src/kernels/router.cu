// Every lane keeps the sums of its own experts in registers, a block adds its warps' in order, and a second kernel adds
// the blocks': no atomics on floats, so the sums repeat bit for bit. The number of blocks depends on the problem alone.
#include <algorithm>
#include <climits>

#include "kernels/router_lanes.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = kRouterThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocksEach = 3;            // of a multiprocessor, as registers allow
constexpr int kGrid = 132 * kBlocksEach;  // blocks that are there at once on an H100

// Per block: probabilities [E], counts [E] (as ints), importance [E], and one z sum.
__host__ __device__ constexpr int partial_width(int experts) { return 3 * experts + 1; }

// Words of shared memory: sums of each warp, counts, and one more to end on a multiple of two.
__host__ __device__ constexpr int counts_and_sums(int experts) { return (kWarps + 1) * experts + experts % 2; }

std::int64_t blocks_a_group(std::int64_t tokens, std::int64_t group_size, int experts) {
  const std::int64_t groups = std::max<std::int64_t>(1, tokens / group_size);
  const std::int64_t at_once = std::max(64, kThreads / lanes_for(experts));
  return std::max<std::int64_t>(1, std::min(ceil_div(group_size, at_once), kGrid / groups));
}

// Larger keys are chosen first: the score's bits in an order that integers keep. NaN counts as -inf and -0 as 0. Keys
// up to kMaxTopK are no scores: the rank of an expert that is chosen, or kMaxTopK, what is no expert.
__device__ __forceinline__ unsigned choice_key(float q) {
  const int bits = __float_as_int(fmaxf(q, -INFINITY) + 0.0f);
  return static_cast<unsigned>(bits ^ (bits >> 31 | INT_MIN));
}

// Gives the top_k largest keys of a token their ranks. Without kTies all keys that equal the largest get its rank;
// true: there were such. With it the smallest order(v) goes first. A rank is less than any score's key, so that what is
// chosen is never the largest again.
template <int kLanes, bool kTies, int kPer, class Order>
__device__ __forceinline__ bool choose(int top_k, unsigned (&key)[kPer], Order order) {
  unsigned best = 0;
  for (int k = 0; k < top_k; ++k) {
    best = key[0];
#pragma unroll
    for (int v = 1; v < kPer; ++v) best = max(best, key[v]);
    best = over_lanes<kLanes>(best, [](unsigned a, unsigned b) { return max(a, b); });
    int first = INT_MAX;
    if constexpr (kTies) {
#pragma unroll
      for (int v = 0; v < kPer; ++v)
        if (key[v] == best) first = min(first, order(v));
      first = over_lanes<kLanes>(first, [](int a, int b) { return min(a, b); });
    }
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      if (key[v] == best && (!kTies || order(v) == first)) key[v] = k;
  }
  // More ranks than rounds, or a round that found no score left.
  int ranks = 0;
#pragma unroll
  for (int v = 0; v < kPer; ++v) ranks += key[v] < kMaxTopK;
  ranks = over_lanes<kLanes>(ranks, [](int a, int b) { return a + b; });
  return ranks != top_k || best <= kMaxTopK;
}

// The chosen experts' ranks of one token, kMaxTopK or more for the others.
template <int kLanes, int kPer>
__device__ __forceinline__ void rank_experts(const RouterScores<float>& a, const Part<kLanes, kPer>& part,
                                             const float (&score)[kPer], std::int64_t t, bool real,
                                             unsigned (&rank)[kPer]) {
  const auto set_keys = [&] {
    float q[kPer];
    if (a.selection) {
      part.load(real, a.selection + t * a.experts, 0, q);
    } else if (a.selection_bias) {
      part.load(true, a.selection_bias, 0, q);
#pragma unroll
      for (int v = 0; v < kPer; ++v) q[v] += score[v];
    } else {
#pragma unroll
      for (int v = 0; v < kPer; ++v) q[v] = score[v];
    }
#pragma unroll
    for (int v = 0; v < kPer; ++v) rank[v] = choice_key(q[v]);
    if (a.experts == kLanes * kPer) return;
#pragma unroll
    for (int v = 0; v < kPer; ++v)
      if (!part.has(v)) rank[v] = kMaxTopK;
  };
  set_keys();
  const bool ties = choose<kLanes, false>(a.top_k, rank, [](int) { return 0; });
  if (!__any_sync(kAllLanes, ties && real)) return;

  // Scores that are equal are rare: only then the order of ties is worked out.
  int turn = 0;  // the order starts at this expert
  if (a.rotate_ties) {
    const unsigned position = a.first_position + static_cast<unsigned>(t) % static_cast<unsigned>(a.seq_len);
    turn = static_cast<int>(position * a.top_k % a.experts);
  }
  set_keys();
  choose<kLanes, true>(a.top_k, rank, [&](int v) {
    const int e = part.expert(v);
    return e >= turn ? e - turn : e - turn + a.experts;
  });
}

// An assignment on its way to memory: a warp collects those of its tokens and writes them as neighbours.
struct Assignment {
  int expert;
  float weight;
};
// To an address in shared memory that is worked out once: of an array the compiler works it out at every store.
__device__ __forceinline__ void store_shared(unsigned address, const Assignment& a) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(a.expert), "f"(a.weight) : "memory");
}

template <int kLanes, int kPer>
__global__ void __launch_bounds__(kThreads, kPer == 8 ? kBlocksEach : 1) router_kernel(RouterScores<float> a) {
  extern __shared__ __align__(16) float shared[];  // sums [warp][E], int counts [E], Assignment [token of the block][K]
  constexpr int kSlots = kThreads / kLanes, kWarpSlots = kWarp / kLanes;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, experts = a.experts, top_k = a.top_k;
  const Part<kLanes, kPer> part(experts, lane);
  int* counts = reinterpret_cast<int*>(shared + kWarps * experts);
  const Assignment* of_warp =
      reinterpret_cast<Assignment*>(shared + counts_and_sums(experts)) + warp * kWarpSlots * top_k;
  unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(of_warp + lane / kLanes * top_k));
  asm volatile("" : "+r"(own));
  const std::int64_t group = blockIdx.y, begin = group * a.group_size;
  const unsigned group_size = static_cast<unsigned>(a.group_size);
  float prob_sum[kPer] = {}, importance[kPer] = {}, z_sum = 0;
  for (int e = threadIdx.x; e < experts; e += kThreads) counts[e] = 0;
  __syncthreads();

  for (unsigned base = blockIdx.x * kSlots; base < group_size; base += gridDim.x * kSlots) {
    const unsigned warp_first = base + warp * kWarpSlots, in_group = warp_first + lane / kLanes;
    const std::int64_t t = begin + in_group;
    const bool real = in_group < group_size && (!a.real || a.real[t]);
    Row<kLanes, kPer> row;
    part.load(real, a.logits + t * experts, -INFINITY, row.logit);
    row.evaluate(a.score);
    unsigned rank[kPer];
    rank_experts(a, part, row.score, t, real, rank);

    float sum = 0;
#pragma unroll
    for (int v = 0; v < kPer; ++v) sum += rank[v] < kMaxTopK ? row.score[v] : 0.0f;
    const float inverse = a.normalize ? reciprocal_fast(lane_sum<kLanes>(sum) + kTinySum) : 1.0f;
    if (real) {
#pragma unroll
      for (int v = 0; v < kPer; ++v) {
        const bool chosen = rank[v] < kMaxTopK;
        const float weight = row.score[v] * inverse;
        prob_sum[v] += row.prob[v];
        importance[v] += chosen ? weight : 0.0f;
        if (chosen) store_shared(own + rank[v] * sizeof(Assignment), {part.expert(v), weight * a.scale});
      }
      if (lane % kLanes == 0) z_sum = fmaf(row.log_sum, row.log_sum, z_sum);
    } else {
#pragma unroll 1
      for (int k = lane % kLanes; k < top_k; k += kLanes) store_shared(own + k * sizeof(Assignment), {-1, 0.0f});
    }
    __syncwarp();
    if (warp_first < group_size) {
      const int assignments = static_cast<int>(min(group_size - warp_first, static_cast<unsigned>(kWarpSlots))) * top_k;
      const std::int64_t to = (begin + warp_first) * top_k;
#pragma unroll 1
      for (int i = lane; i < assignments; i += kWarp) {
        const Assignment assignment = of_warp[i];
        a.expert[to + i] = assignment.expert;
        a.weight[to + i] = assignment.weight;
        if (assignment.expert >= 0) atomicAdd(counts + assignment.expert, 1);  // whole numbers: in any order
      }
    }
    __syncwarp();  // what was collected has been read
  }

  // Tokens of a warp, then warps of the block, in order.
  float* partial = a.scratch + (group * gridDim.x + blockIdx.x) * partial_width(experts);
  auto add_block = [&](auto own, auto store) {
#pragma unroll
    for (int v = 0; v < kPer; ++v) {
      float sum = own(v);
#pragma unroll
      for (int step = kLanes; step < kWarp; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (lane < kLanes && part.has(v)) shared[warp * experts + part.expert(v)] = sum;
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
  add_block([&](int v) { return importance[v]; }, [&](int e, float sum) { partial[2 * experts + e] = sum; });
  for (int e = threadIdx.x; e < experts; e += kThreads) partial[experts + e] = __int_as_float(counts[e]);
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

}  // namespace

std::int64_t router_scratch(std::int64_t tokens, std::int64_t group_size, int experts) {
  const std::int64_t groups = std::max<std::int64_t>(1, tokens / group_size);
  return groups * blocks_a_group(tokens, group_size, experts) * partial_width(experts);
}

void router_scores(const RouterScores<float>& a, Stream stream) {
  if (a.tokens == 0) return;
  const auto groups = static_cast<unsigned>(a.tokens / a.group_size);
  SWITCHYARD_ASSERT(a.tokens % a.group_size == 0 && groups <= 65535,
                    "group_size must divide tokens into at most 65535 groups");
  const auto blocks = static_cast<unsigned>(blocks_a_group(a.tokens, a.group_size, a.experts));
  with_experts(a.experts, a.top_k, [&](auto lanes, auto per) {
    constexpr int kLanes = decltype(lanes)::value, kPer = decltype(per)::value;
    const std::size_t bytes =
        counts_and_sums(a.experts) * sizeof(float) + kThreads / kLanes * a.top_k * sizeof(Assignment);
    router_kernel<kLanes, kPer><<<dim3(blocks, groups), kThreads, bytes, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
  const unsigned jobs = groups * a.experts + a.experts + 1;
  add_router_partials_kernel<<<ceil_div<unsigned>(jobs, kWarps), kThreads, 0, stream>>>(a, static_cast<int>(groups),
                                                                                        static_cast<int>(blocks));
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
