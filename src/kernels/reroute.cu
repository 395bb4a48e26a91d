// One warp a token, lanes over its experts; few tokens have a dropped assignment and most warps end after K flags.
#include "kernels/cuda_check.h"
#include "kernels/reroute.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kTokens = 8;  // a block: one a warp
constexpr int kThreads = kTokens * kWarp;

// Whether the token has expert e, or asked for it with a choice before k (this warp's own writes, seen after
// __syncwarp).
__device__ __forceinline__ bool has(const Proposals& a, std::int64_t t, int k, int e) {
  for (int i = 0; i < a.top_k; ++i) {
    if (a.held[t * a.top_k + i] == e || (i < k && a.expert[i * a.tokens + t] == e)) return true;
  }
  return false;
}

// The lane's candidate is its best score and that expert's place in the order of ties; a place of E is none.
__device__ __forceinline__ int best(const Proposals& a, std::int64_t t, int k, int lane) {
  const int first = a.first ? a.first[t] : 0;
  float highest = -INFINITY;
  int place = a.experts;
  for (int step = lane; step < a.experts; step += kWarp) {
    const int e = (first + step) % a.experts;
    const float score = a.score[t * a.experts + e];
    if (score > highest && a.room[e] > 0 && !has(a, t, k, e)) {
      highest = score;
      place = step;
    }
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, highest, offset);
    const int other_place = __shfl_xor_sync(kAllLanes, place, offset);
    if (other > highest || (other == highest && other_place < place)) {
      highest = other;
      place = other_place;
    }
  }
  return place < a.experts ? (first + place) % a.experts : -1;
}

__global__ void __launch_bounds__(kThreads) proposals_kernel(Proposals a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kTokens + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const int lane = threadIdx.x % kWarp;
  for (int k = 0; k < a.top_k; ++k) {
    const int expert = a.dropped[t * a.top_k + k] ? best(a, t, k, lane) : -1;
    if (lane == 0) a.expert[k * a.tokens + t] = expert;
    __syncwarp();
  }
}

}  // namespace

void proposals(const Proposals& a, Stream stream) {
  if (a.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kTokens));
  proposals_kernel<<<blocks, kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
