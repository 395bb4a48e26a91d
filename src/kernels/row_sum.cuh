// kernels/row_sum.cuh: the step of a sum over a token's rows (kernels/row_sum.h) that kernels share.
#pragma once

#include "kernels/row_sum.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {

// Adds token t's rows k to k + kTogether, all of their loads in flight at once, in order of k. Of each a thread takes
// the packs first, first + kThreads, … of `width` elements: kPacks of them.
template <int kTogether, int kThreads, class T, int kPacks>
__device__ __forceinline__ void add_rows(const RowSum<T>& of, int width, std::int64_t t, int k, int first,
                                         float (&sum)[kPacks][kPack]) {
  const int packs = width / kPack;
  const int* row_of = of.row_of + t * of.top_k;
  int row[kTogether];
  Pack<T> v[kTogether][kPacks];
#pragma unroll
  for (int j = 0; j < kTogether; ++j) row[j] = k + j < of.top_k ? row_of[k + j] : -1;
#pragma unroll
  for (int j = 0; j < kTogether; ++j)
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int p = first + i * kThreads;
      v[j][i] = load_pack_if(row[j] >= 0 && p < packs, of.rows + static_cast<std::int64_t>(row[j]) * width + p * kPack);
    }
#pragma unroll
  for (int j = 0; j < kTogether; ++j) {
    if (row[j] < 0) continue;  // a branch, so that no load moves behind the uses of another
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      float f[kPack];
      unpack(v[j][i], f);
#pragma unroll
      for (int c = 0; c < kPack; ++c) sum[i][c] += f[c];
    }
  }
}

}  // namespace switchyard::kernels
