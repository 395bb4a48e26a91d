// The grid is (chunks of the largest tensor, tensors); a block takes every gridDim.x-th chunk of its tensor, so that
// small tensors beside large ones cost no more than blocks that leave at once. Beside products it is one small block a
// multiprocessor, and blocks draw pieces of the tensors.
#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/cuda_check.h"
#include "kernels/tensor_map.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kFour = 4;

// Threads of a block, and the float4 that each has in flight of every tensor.
template <bool kBeside>
struct Plan {
  static constexpr int kThreads = 256, kBatch = 2, kChunk = kThreads * kFour * kBatch;
};
template <>  // of 32 registers a thread: what a block of symmetric_product leaves
struct Plan<true> {
  static constexpr int kThreads = 128, kBatch = 1, kChunk = kThreads * kFour * kBatch;
};
constexpr std::int64_t kMaxChunks = 1056;

struct Factors {
  float grad, beta1, beta2, first_correction, second_correction, lr, decay, eps;
};

__device__ __forceinline__ void update(const Factors& f, float g, float& w, float& m, float& v) {
  g *= f.grad;
  m = fmaf(f.beta1, m, (1.0f - f.beta1) * g);
  v = fmaf(f.beta2, v, (1.0f - f.beta2) * g * g);
  w -= f.lr * (m * f.first_correction / (sqrtf(v * f.second_correction) + f.eps) + f.decay * w);
}

__device__ __forceinline__ bool aligned(const void* p, unsigned bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

// Beside products the values pass by what those keep in the cache.
template <bool kBeside>
__device__ __forceinline__ float4 load_four(const float* p) {
  return kBeside ? __ldcs(reinterpret_cast<const float4*>(p)) : *reinterpret_cast<const float4*>(p);
}
template <bool kBeside, class T>
__device__ __forceinline__ void store_four(T* p, const T& v) {
  if constexpr (kBeside)
    __stcs(p, v);
  else
    *p = v;
}

template <bool kBeside>
__device__ __forceinline__ void update_fours(const AdamwTensor& a, const Factors& f, std::int64_t begin,
                                             std::int64_t end) {
  constexpr int kBatch = Plan<kBeside>::kBatch, kThreads = Plan<kBeside>::kThreads;
  float4 g[kBatch], w[kBatch], m[kBatch], v[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t at = begin + (i * kThreads + threadIdx.x) * kFour;
    if (at >= end) break;
    g[i] = load_four<kBeside>(a.grad + at);
    w[i] = load_four<kBeside>(a.weight + at);
    m[i] = load_four<kBeside>(a.first + at);
    v[i] = load_four<kBeside>(a.second + at);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t at = begin + (i * kThreads + threadIdx.x) * kFour;
    if (at >= end) break;
    update(f, g[i].x, w[i].x, m[i].x, v[i].x);
    update(f, g[i].y, w[i].y, m[i].y, v[i].y);
    update(f, g[i].z, w[i].z, m[i].z, v[i].z);
    update(f, g[i].w, w[i].w, m[i].w, v[i].w);
    store_four<kBeside>(reinterpret_cast<float4*>(a.weight + at), w[i]);
    store_four<kBeside>(reinterpret_cast<float4*>(a.first + at), m[i]);
    store_four<kBeside>(reinterpret_cast<float4*>(a.second + at), v[i]);
    if (a.copy)
      store_four<kBeside>(reinterpret_cast<uint2*>(a.copy + at),
                          make_uint2(pack_two(w[i].x, w[i].y), pack_two(w[i].z, w[i].w)));
  }
}

__device__ __forceinline__ void update_one(const AdamwTensor& a, const Factors& f, std::int64_t at) {
  float w = a.weight[at], m = a.first[at], v = a.second[at];
  update(f, a.grad[at], w, m, v);
  a.weight[at] = w, a.first[at] = m, a.second[at] = v;
  if (a.copy) from_float(w, a.copy[at]);
}

__device__ __forceinline__ Factors factors_of(const AdamwStep& a, const AdamwTensor& tensor) {
  const float n = static_cast<float>(*a.applied);
  // 1 - b^n without cancellation; b = 0 gives 1.
  return {*a.grad_factor,
          tensor.beta1,
          a.beta2,
          -1.0f / expm1f(n * logf(tensor.beta1)),
          -1.0f / expm1f(n * logf(a.beta2)),
          tensor.lr * *a.schedule,
          tensor.weight_decay,
          a.eps};
}

// How many of the tensor's first elements whole float4 hold.
__device__ __forceinline__ std::int64_t in_fours(const AdamwTensor& a) {
  const bool vectors = aligned(a.weight, 16) && aligned(a.grad, 16) && aligned(a.first, 16) && aligned(a.second, 16) &&
                       aligned(a.copy, 8);
  return vectors ? a.count / kFour * kFour : 0;
}

template <bool kBeside>
__device__ __forceinline__ void update_chunk(const AdamwTensor& a, const Factors& f, std::int64_t fours,
                                             std::int64_t begin) {
  const std::int64_t end = min(begin + Plan<kBeside>::kChunk, a.count);
  update_fours<kBeside>(a, f, begin, min(end, fours));
  for (std::int64_t at = max(begin, fours) + threadIdx.x; at < end; at += Plan<kBeside>::kThreads) update_one(a, f, at);
}

__global__ void __launch_bounds__(Plan<false>::kThreads) adamw_kernel(AdamwStep a) {
  constexpr int kChunk = Plan<false>::kChunk;
  if (*a.apply == 0) return;
  const AdamwTensor tensor = a.tensors[blockIdx.y];
  if (static_cast<std::int64_t>(blockIdx.x) * kChunk >= tensor.count) return;
  const Factors f = factors_of(a, tensor);
  const std::int64_t fours = in_fours(tensor), stride = static_cast<std::int64_t>(gridDim.x) * kChunk;
  for (std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kChunk; begin < tensor.count; begin += stride)
    update_chunk<false>(tensor, f, fours, begin);
}

// ---- beside products ----

// a.beside: pieces drawn, blocks that ended, blocks on each multiprocessor; zeros before and after.
constexpr int kMultiprocessors = kAdamwBeside - 2;
constexpr std::int64_t kPiece = 32 * Plan<true>::kChunk;  // elements drawn at a time

__device__ __forceinline__ bool first_on_multiprocessor(int* blocks) {
  unsigned id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return atomicAdd(blocks + id % kMultiprocessors, 1) == 0;
}

// The same number for all threads, which have left what the number before stood for.
__device__ __forceinline__ int draw_piece(int* drawn) {
  __shared__ int piece;
  __syncthreads();
  if (threadIdx.x == 0) piece = atomicAdd(drawn, 1);
  __syncthreads();
  return piece;
}

__device__ __forceinline__ void update_pieces(const AdamwStep& a) {
  __shared__ AdamwTensor tensor;
  __shared__ Factors f;
  int piece = draw_piece(a.beside);
  for (int i = 0, first = 0; i < a.tensor_count; ++i) {  // first: the number of the tensor's first piece
    const std::int64_t count = a.tensors[i].count;
    const int pieces = static_cast<int>((count + kPiece - 1) / kPiece);
    if (piece < first + pieces) {
      if (threadIdx.x == 0) tensor = a.tensors[i], f = factors_of(a, tensor);
      __syncthreads();
      const std::int64_t fours = in_fours(tensor);
      for (; piece < first + pieces; piece = draw_piece(a.beside)) {
        const std::int64_t begin = (piece - first) * kPiece, end = min(begin + kPiece, count);
        for (std::int64_t at = begin; at < end; at += Plan<true>::kChunk) update_chunk<true>(tensor, f, fours, at);
      }
    }
    first += pieces;
  }
}

__global__ void __launch_bounds__(Plan<true>::kThreads, 16) adamw_beside_kernel(AdamwStep a) {
  __shared__ bool stays;
  // A second block on a multiprocessor would keep the products' from it.
  if (threadIdx.x == 0) stays = first_on_multiprocessor(a.beside + 2);
  __syncthreads();
  if (stays && *a.apply != 0) update_pieces(a);
  __syncthreads();
  if (threadIdx.x != 0 || atomicInc(reinterpret_cast<unsigned*>(a.beside) + 1, gridDim.x - 1) != gridDim.x - 1) return;
  a.beside[0] = 0;  // by the last block to end
  for (int i = 0; i < kMultiprocessors; ++i) a.beside[2 + i] = 0;
}

}  // namespace

void adamw(const AdamwStep& a, Stream stream) {
  if (a.tensor_count == 0 || a.largest == 0) return;
  SWITCHYARD_ASSERT(a.tensor_count <= 65535, "adamw takes up to 65535 tensors a launch");
  if (a.beside) {
    // A multiprocessor keeps its division of shared memory and cache while a block runs on it: this one is the
    // products'.
    SWITCHYARD_CUDA(cudaFuncSetAttribute(adamw_beside_kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared));
    adamw_beside_kernel<<<multiprocessors(), Plan<true>::kThreads, 0, stream>>>(a);
    SWITCHYARD_CUDA_LAUNCHED();
    return;
  }
  const auto chunks =
      static_cast<unsigned>(std::min(ceil_div<std::int64_t>(a.largest, Plan<false>::kChunk), kMaxChunks));
  adamw_kernel<<<dim3(chunks, a.tensor_count), Plan<false>::kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
