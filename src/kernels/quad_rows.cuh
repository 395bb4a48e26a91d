// kernels/quad_rows.cuh: RowSum where four neighbouring lanes share a token. Each keeps one of four row indices, so
// that they are read once, before the loads that wait for them, and cost a register.
#pragma once

#include "kernels/row_sum.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {

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

}  // namespace switchyard::kernels
