// kernels/column_sums.cuh: the second half of a sum over tokens, which adds the blocks' partial sums in a fixed order.
#pragma once

#include "kernels/cuda_check.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {

// sum[column] += the column of `partial` [rows, columns]; 32 columns a block, 32 rows at a time.
static __global__ void add_columns_kernel(const float* partial, int rows, int columns, float* sum) {
  __shared__ float shared[kWarp][kWarp + 1];
  const int column = blockIdx.x * kWarp + threadIdx.x;
  float own = 0;
  if (column < columns) {
#pragma unroll 4
    for (int row = threadIdx.y; row < rows; row += kWarp)
      own += partial[static_cast<std::int64_t>(row) * columns + column];
  }
  shared[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  own = 0;
#pragma unroll
  for (int row = 0; row < kWarp; ++row) own += shared[row][threadIdx.x];
  sum[column] += own;
}

// Rows of `partial` are contiguous.
static void add_columns(const float* partial, int rows, int columns, float* sum, Stream stream) {
  add_columns_kernel<<<ceil_div(columns, kWarp), dim3(kWarp, kWarp), 0, stream>>>(partial, rows, columns, sum);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
