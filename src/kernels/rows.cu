// The moves of rows that dispatch plans: one warp a row or token, all of its loads in flight before the first store.
#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/dispatch.h"
#include "kernels/row_sum.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;
constexpr int kBatch = 3;  // packs in flight a lane and row: a width of 768 in one go

template <class T>
__global__ void __launch_bounds__(kThreads) permute_rows_kernel(PermuteRows<T> a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  const int packs = a.width / kPack, lane = threadIdx.x % kWarp;
  if (i < *a.row_count && a.token_of_row[i] < 0) {
    Pack<T> zero;
    set_zero(zero);
    for (int p = lane; p < packs; p += kWarp) store_pack(a.out + i * a.width + p * kPack, zero);
  }
  if (i >= a.tokens) return;
  for (int base = lane; base < packs; base += kBatch * kWarp) {
    Pack<T> v[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int p = base + j * kWarp;
      v[j] = load_pack_if(p < packs, a.rows + i * a.width + p * kPack);
    }
    for (int k = 0; k < a.top_k; ++k) {
      const int row = a.row_of[i * a.top_k + k];
      if (row < 0) continue;
      T* to = a.out + static_cast<std::int64_t>(row) * a.width;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int p = base + j * kWarp;
        if (p < packs) store_pack(to + p * kPack, v[j]);
      }
    }
  }
}

// kTogether rows of a token are in flight at once.
template <class T, int kTogether>
__global__ void __launch_bounds__(kThreads) combine_kernel(Combine<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const RowSum<T> of{a.rows, a.row_of, a.top_k};
  const int packs = a.width / kPack;
  for (int base = threadIdx.x % kWarp; base < packs; base += kBatch * kWarp) {
    float sum[kBatch][kPack] = {};
    for (int k = 0; k < a.top_k; k += kTogether) add_rows<kTogether, kWarp>(of, a.width, t, k, base, sum);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int p = base + i * kWarp;
      if (p < packs) store_floats(a.out + t * a.width + p * kPack, sum[i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) values_to_rows_kernel(AssignmentValues a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < a.assignments && a.row_of[i] >= 0) a.out[a.row_of[i]] = a.values[i];
  if (i < a.row_capacity && a.token_of_row[i] < 0) a.out[i] = 0;
}

__global__ void __launch_bounds__(kThreads) values_from_rows_kernel(AssignmentValues a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.assignments) return;
  float sum = 0;
  const int row = a.row_of[i];
  for (int part = 0; part < a.parts && row >= 0; ++part) sum += a.values[part * a.row_capacity + row];
  a.out[i] = sum;
}

unsigned blocks_for(std::int64_t items, int a_block) {
  return static_cast<unsigned>(ceil_div<std::int64_t>(items, a_block));
}

}  // namespace

template <class T>
void permute_rows(const PermuteRows<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "permute_rows needs a width that is a multiple of 8");
  if (a.items() == 0) return;
  permute_rows_kernel<T><<<blocks_for(a.items(), kRows), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void combine(const Combine<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "combine needs a width that is a multiple of 8");
  if (a.tokens == 0) return;
  const unsigned blocks = blocks_for(a.tokens, kRows);
  if (a.top_k == 1)
    combine_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(a);
  else if (a.top_k == 2)
    combine_kernel<T, 2><<<blocks, kThreads, 0, stream>>>(a);
  else
    combine_kernel<T, 4><<<blocks, kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

void values_to_rows(const AssignmentValues& a, Stream stream) {
  const std::int64_t items = std::max(a.assignments, a.row_capacity);
  if (items == 0) return;
  values_to_rows_kernel<<<blocks_for(items, kThreads), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

void values_from_rows(const AssignmentValues& a, Stream stream) {
  if (a.assignments == 0) return;
  values_from_rows_kernel<<<blocks_for(a.assignments, kThreads), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void permute_rows(const PermuteRows<bf16>&, Stream);
template void permute_rows(const PermuteRows<float>&, Stream);
template void combine(const Combine<bf16>&, Stream);
template void combine(const Combine<float>&, Stream);

}  // namespace switchyard::kernels
