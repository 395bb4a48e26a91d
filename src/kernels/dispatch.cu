// The sort is three kernels: counts a block, their prefix over blocks (one block, a warp an expert), and the scatter.
// Ranks inside a block come from its warps, which take consecutive assignments: stable, and no atomic decides an order.
#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/dispatch.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxBlocks = 256;  // the prefix over blocks is eight values a lane
constexpr int kScanThreads = 1024;
constexpr int kMaxSorted = 1024;  // experts

struct Chunks {
  int blocks, size;  // size: assignments a block, a multiple of kThreads
};
Chunks chunks_of(std::int64_t assignments) {
  const std::int64_t wanted = std::min<std::int64_t>(kMaxBlocks, ceil_div<std::int64_t>(assignments, kThreads));
  const std::int64_t size =
      ceil_div<std::int64_t>(ceil_div<std::int64_t>(assignments, std::max<std::int64_t>(1, wanted)), kThreads) *
      kThreads;
  return {static_cast<int>(std::max<std::int64_t>(1, ceil_div(assignments, std::max<std::int64_t>(size, 1)))),
          static_cast<int>(size)};
}

// counts[warp][e] of the block's chunk, each warp's own consecutive share of it.
__device__ __forceinline__ void count_shares(const Dispatch& a, int chunk, int* counts) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, share = chunk / kWarps;
  for (int i = threadIdx.x; i < kWarps * a.experts; i += kThreads) counts[i] = 0;
  __syncthreads();
  const int begin = blockIdx.x * chunk + warp * share, end = min(begin + share, static_cast<int>(a.tokens) * a.top_k);
  for (int i = begin + lane; i < end; i += kWarp) {
    const int e = a.expert[i];
    if (e >= 0) atomicAdd(&counts[warp * a.experts + e], 1);
  }
  __syncthreads();
}

// scratch[e][block] = the block's count of e
__global__ void __launch_bounds__(kThreads) count_kernel(Dispatch a, int chunk) {
  extern __shared__ int counts[];
  count_shares(a, chunk, counts);
  for (int e = threadIdx.x; e < a.experts; e += kThreads) {
    int sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp * a.experts + e];
    a.scratch[e * kMaxBlocks + blockIdx.x] = sum;
  }
}

__device__ __forceinline__ int lane_prefix(int v) {  // inclusive
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int below = __shfl_up_sync(kAllLanes, v, step);
    if (lane >= step) v += below;
  }
  return v;
}

// By rank: an expert goes behind those that have more rows, and behind equal ones of lower index.
__device__ __forceinline__ void write_schedule(const Dispatch& a, const int* count) {
  for (int e = threadIdx.x; a.longest_first && e < a.experts; e += kScanThreads) {
    int rank = 0;
    for (int other = 0; other < a.experts; ++other)
      rank += count[other] > count[e] || (count[other] == count[e] && other < e);
    a.longest_first[rank] = e;
  }
  for (int e = threadIdx.x / kWarp; a.tile_expert && e < a.experts; e += kScanThreads / kWarp) {
    const int end = a.end[e] / a.alignment;
    for (int tile = a.offset[e] / a.alignment + threadIdx.x % kWarp; tile < end; tile += kWarp) a.tile_expert[tile] = e;
  }
  if (a.scheduler && threadIdx.x < 2) a.scheduler[threadIdx.x] = 0;
}

// scratch[e][block] becomes the first row of that block's assignments to e.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(Dispatch a, int blocks) {
  constexpr int kPer = kMaxBlocks / kWarp;
  __shared__ int total[kMaxSorted], first[kMaxSorted];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int e = warp; e < a.experts; e += kScanThreads / kWarp) {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int block = lane * kPer + i;
      sum += block < blocks ? a.scratch[e * kMaxBlocks + block] : 0;
    }
    sum = lane_prefix(sum);
    if (lane == kWarp - 1) total[e] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    int before = 0;
    for (int base = 0; base < a.experts; base += kWarp) {
      const int e = base + lane;
      const int count = e < a.experts ? total[e] : 0;
      const int padded = (count + a.alignment - 1) / a.alignment * a.alignment;
      const int through = lane_prefix(padded);
      if (e < a.experts) {
        first[e] = a.offset[e] = before + through - padded;
        a.end[e] = before + through;
        a.count[e] = count;
      }
      before += __shfl_sync(kAllLanes, through, kWarp - 1);
    }
    if (lane == 0) a.offset[a.experts] = before;
  }
  __syncthreads();
  write_schedule(a, total);
  for (int e = warp; e < a.experts; e += kScanThreads / kWarp) {
    int value[kPer], sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int block = lane * kPer + i;
      value[i] = block < blocks ? a.scratch[e * kMaxBlocks + block] : 0;
      sum += value[i];
    }
    int row = first[e] + lane_prefix(sum) - sum;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      a.scratch[e * kMaxBlocks + lane * kPer + i] = row;
      row += value[i];
    }
  }
}

// The rows that no assignment has: behind each expert's last, and from the last offset to the capacity.
__device__ __forceinline__ void mark_padding(const Dispatch& a) {
  for (int e = blockIdx.x; e < a.experts; e += gridDim.x) {
    for (int row = a.offset[e] + a.count[e] + threadIdx.x; row < a.end[e]; row += kThreads) a.token_of_row[row] = -1;
  }
  const int stride = gridDim.x * kThreads, capacity = static_cast<int>(a.row_capacity);
  for (int row = a.offset[a.experts] + blockIdx.x * kThreads + threadIdx.x; row < capacity; row += stride)
    a.token_of_row[row] = -1;
}

__global__ void __launch_bounds__(kThreads) scatter_kernel(Dispatch a, int chunk) {
  extern __shared__ int next[];  // [warp][e]: the row of the warp's next assignment to e
  count_shares(a, chunk, next);
  for (int e = threadIdx.x; e < a.experts; e += kThreads) {
    int row = a.scratch[e * kMaxBlocks + blockIdx.x];
    for (int warp = 0; warp < kWarps; ++warp) {
      const int count = next[warp * a.experts + e];
      next[warp * a.experts + e] = row;
      row += count;
    }
  }
  __syncthreads();

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, share = chunk / kWarps;
  const int begin = blockIdx.x * chunk + warp * share, end = min(begin + share, static_cast<int>(a.tokens) * a.top_k);
  int* own = next + warp * a.experts;
  for (int base = begin; base < end; base += kWarp) {
    const int i = base + lane;
    const int e = i < end ? a.expert[i] : -1;
    const unsigned peers = __match_any_sync(kAllLanes, e);
    const int before = __popc(peers & ((1u << lane) - 1));
    const int row = e >= 0 ? own[e] + before : -1;
    __syncwarp();
    if (e >= 0 && before == 0) own[e] += __popc(peers);
    __syncwarp();
    if (i < end) a.row_of[i] = row;
    if (e >= 0) a.token_of_row[row] = i / a.top_k;
  }
  mark_padding(a);
}

}  // namespace

std::int64_t dispatch_scratch(std::int64_t, int, int experts) {
  return static_cast<std::int64_t>(experts) * kMaxBlocks;
}

void dispatch(const Dispatch& a, Stream stream) {
  SWITCHYARD_ASSERT(a.experts >= 1 && a.experts <= kMaxSorted && a.alignment >= 1,
                    "dispatch sorts by 1 to 1024 experts");
  SWITCHYARD_ASSERT(a.row_capacity < (std::int64_t{1} << 31), "dispatch counts rows in 32 bits");
  const Chunks chunks = chunks_of(a.tokens * a.top_k);
  const std::size_t shared = sizeof(int) * kWarps * a.experts;
  count_kernel<<<chunks.blocks, kThreads, shared, stream>>>(a, chunks.size);
  SWITCHYARD_CUDA_LAUNCHED();
  scan_kernel<<<1, kScanThreads, 0, stream>>>(a, chunks.blocks);
  SWITCHYARD_CUDA_LAUNCHED();
  scatter_kernel<<<chunks.blocks, kThreads, shared, stream>>>(a, chunks.size);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
