// kernels/add_norm_router_parts.cuh: where the threads of add_norm_router's kernels stand, and what they do together.
#pragma once

#include "kernels/router_weight.cuh"
#include "kernels/row_sum.h"

namespace switchyard::kernels::norm_router {

inline constexpr int kRows = 8;    // tokens a block has at once
inline constexpr int kBlocks = 3;  // a warp's share of a row, in blocks of 32 channels
inline constexpr int kShare = kBlocks * kBlock;

// Lane 4 g + q holds row g, columns 2 q and 2 q + 1; afterwards column g of rows 2 q and 2 q + 1.
__device__ __forceinline__ unsigned transposed(unsigned v) {
  unsigned out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

// d += a b, of whose sixteen rows the first eight (d[2]) or all (d[4]) are wanted; the others of a are zero.
__device__ __forceinline__ void mma_rows(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma(d, a, b0, b1);
}
__device__ __forceinline__ void mma_rows(float (&d)[2], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("{\n.reg .f32 unused<2>;\n"
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, unused0, unused1}, {%2, %3, %4, %5}, {%6, %7}, "
      "{%0, %1, %8, %8};\n}"
      : "+f"(d[0]), "+f"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

// Starts bringing `bytes`, a multiple of 16, into L2. Nothing on GPUs before Hopper, nor of an odd address.
__device__ __forceinline__ void fetch_to_l2([[maybe_unused]] const void* from, [[maybe_unused]] unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#endif
}

// A turn's rows of a matrix, which may be missing.
template <class T>
__device__ __forceinline__ void fetch_turn(const T* matrix, std::int64_t first, int width) {
  if (matrix) fetch_to_l2(matrix + first * width, kRows * width * sizeof(T));
}

// Of a RowSum, each of the four lanes that share a row keeps one of four row indices, so that they are read once,
// before the loads that wait for them, and cost a register.
inline constexpr int kQuad = 4;

// This lane's index of rows k .. k + 3 of token t; -1 beyond the last, and where `there` is false.
template <class T>
__device__ __forceinline__ int quad_index(const RowSum<T>& from, bool there, std::int64_t t, int k = 0) {
  k += threadIdx.x % kQuad;
  return there && k < from.top_k ? from.row_of[t * from.top_k + k] : -1;
}

// Index k mod 4 of those that the quad keeps. All 32 lanes call it.
__device__ __forceinline__ int index_of_quad(int kept, int k) { return __shfl_sync(kAllLanes, kept, k, kQuad); }

template <class T>
__device__ __forceinline__ void add_pack(const Pack<T>& v, float (&sum)[kPack]) {
  float f[kPack];
  unpack(v, f);
#pragma unroll
  for (int c = 0; c < kPack; ++c) sum[c] += f[c];
}

// Where a thread stands in a block's turn.
struct Place {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, q = lane % 4;

  __device__ int channel(int block) const { return warp * kShare + block * kBlock + q * kPack; }
};

// The sum over all lanes of each row, from each lane's part. `parts` must not be in use: a barrier stands between the
// writes here and the reads, none before the writes.
template <int kWarps>
__device__ __forceinline__ float sum_of_row(float own, const Place& at, float (&parts)[kWarps][kRows]) {
  own = lane_sum<4>(own);
  if (at.q == 0) parts[at.warp][at.g] = own;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < blockDim.x / kWarp; ++warp) sum += parts[warp][at.g];
  return sum;
}

// The rows of token t, of which `index` is quad_index: four by each warp.
template <class T>
__device__ __forceinline__ void fetch_summands(const RowSum<T>& of, int width, std::int64_t t, bool real, int index,
                                               const Place& at) {
  for (int k = at.warp * kQuad; k < of.top_k; k += blockDim.x / kWarp * kQuad) {
    if (k > 0) index = quad_index(of, real, t, k);
    if (index >= 0) fetch_to_l2(of.rows + static_cast<std::int64_t>(index) * width, width * sizeof(T));
  }
}

// Two rows of a token, numbers k and k + 1, in this thread's channels: as many as there are registers for beside what
// the caller has under way. index: quad_index of the four that they are among.
template <class T>
__device__ __forceinline__ void load_rows(const RowSum<T>& of, int width, int index, int k, const Place& at,
                                          const bool (&there)[kBlocks], Pack<T> (&v)[2][kBlocks]) {
  const int row[2] = {index_of_quad(index, k), index_of_quad(index, k + 1)};
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
      v[j][i] =
          load_pack_if(row[j] >= 0 && there[i], of.rows + static_cast<std::int64_t>(row[j]) * width + at.channel(i));
}

// The sum of token t's rows, of which `v` holds the first two.
template <class T>
__device__ __forceinline__ void sum_rows(const RowSum<T>& of, int width, std::int64_t t, bool real, int index,
                                         const Place& at, const bool (&there)[kBlocks], Pack<T> (&v)[2][kBlocks],
                                         float (&sum)[kBlocks][kPack]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) unpack(v[0][i], sum[i]), add_pack(v[1][i], sum[i]);
  for (int k = 2; k < of.top_k; k += 2) {
    if (k % kQuad == 0) index = quad_index(of, real, t, k);
    load_rows(of, width, index, k, at, there, v);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) add_pack(v[0][i], sum[i]), add_pack(v[1][i], sum[i]);
  }
}

__device__ __forceinline__ void copy(const float (&from)[kPack], float (&to)[kPack]) {
#pragma unroll
  for (int c = 0; c < kPack; ++c) to[c] = from[c];
}

}  // namespace switchyard::kernels::norm_router
