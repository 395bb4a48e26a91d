// The portable product kernel: a block a tile of 128 x 128, operands through three stages of shared memory, the result
// from registers. 48 KB and at most 128 registers a thread: two blocks a multiprocessor on every GPU from Ampere on.
#pragma once

#include "kernels/grouped_gemm.h"
#include "kernels/portable_operands.cuh"

namespace switchyard::kernels::portable {

enum class Form { kForward, kDgrad, kWgrad };  // rows W^T, rows W, a^T b
enum class Epilogue { kStore, kRelu2, kRelu2Backward, kAdd };

constexpr int kStages = 3;
constexpr int kSharedBytes = kStages * kStageBytes;

template <class T>
struct Problem {
  const T *left, *right;
  const int* row_index;
  T* out;
  const T* active;
  const float* row_weight;
  float *dot, *grad;
  const int *offset, *count, *tile_expert, *longest_first;
  std::int64_t row_capacity;
  int experts, alignment;
  int rows, columns, inner;     // rows: of one expert's gradient (wgrad)
  int row_tiles, column_tiles;  // of an expert's gradient; of all rows
};

struct Tile {
  int row, column, expert;
};

template <class T, Form F, class Part>
__device__ __forceinline__ void multiply(const Operand<T>& left, const Operand<T>& right, unsigned char* memory,
                                         Part& part) {
  Loader<T, F == Form::kWgrad> load_left(left);
  Loader<T, F != Form::kForward> load_right(right);
  const std::uint32_t base = ampere::smem_address(memory);
  const int steps = (left.depth + kDepth<T> - 1) / kDepth<T>;
  const auto load = [&](int step) {
    if (step < steps) {
      const std::uint32_t stage = base + step % kStages * kStageBytes;
      load_left.load(stage), load_right.load(stage + kOperandBytes);
    }
    ampere::copies_commit();  // an empty group at the end keeps the count
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    ampere::copies_wait<kStages - 2>();
    __syncthreads();  // this step's copies of all threads are there, and nobody reads the previous step's stage
    load(step + kStages - 1);
    part.add_stage(memory + step % kStages * kStageBytes);
  }
}

// Weights below kLeastRowWeight count as that: the activation of such a row can still be told from its weight.
__device__ __forceinline__ float weight_of(const float* row_weight, int row) {
  const float weight = row_weight ? row_weight[row] : 1.0f;
  return fabsf(weight) < kLeastRowWeight ? copysignf(kLeastRowWeight, weight) : weight;
}

__device__ __forceinline__ float root(float x, const float*) { return sqrtf(x); }
__device__ __forceinline__ float root(float x, const bf16*) { return sqrt_fast(x); }  // before rounding to bf16

// kCount neighbouring values, in memory as T.
template <int kCount>
__device__ __forceinline__ void load_run(const bf16* from, float (&v)[kCount]) {
  static_assert(kCount == 2, "a lane's columns of an mma");
  unpack_two(*reinterpret_cast<const unsigned*>(from), v[0], v[1]);
}
template <int kCount>
__device__ __forceinline__ void store_run(bf16* to, const float (&v)[kCount]) {
  *reinterpret_cast<unsigned*>(to) = pack_two(v[0], v[1]);
}
template <int kCount>
__device__ __forceinline__ void load_run(const float* from, float (&v)[kCount]) {
  if constexpr (kCount == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else if constexpr (kCount == 2) {
    const float2 two = *reinterpret_cast<const float2*>(from);
    v[0] = two.x, v[1] = two.y;
  } else {
    v[0] = *from;
  }
}
template <int kCount>
__device__ __forceinline__ void store_run(float* to, const float (&v)[kCount]) {
  if constexpr (kCount == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
  } else if constexpr (kCount == 2) {
    *reinterpret_cast<float2*>(to) = make_float2(v[0], v[1]);
  } else {
    *to = v[0];
  }
}

// Of the tile's rows: the sum of each over the threads that share it, in a fixed order, over its weight.
template <class Part>
__device__ __forceinline__ void store_dots(float (&dot)[Part::kRows], const float* row_weight, float* to, int first_row,
                                           float* scratch) {
  __syncthreads();  // nobody multiplies any more
#pragma unroll
  for (int i = 0; i < Part::kRows; ++i) {
    const float sum = lane_sum<Part::kSharers>(dot[i]);
    if (threadIdx.x % Part::kSharers == 0) scratch[Part::row(i) * Part::kShares + Part::share()] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kTile) return;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Part::kShares; ++i) sum += scratch[threadIdx.x * Part::kShares + i];
  const int row = first_row + threadIdx.x;
  to[row] = sum / weight_of(row_weight, row);
}

template <class T, Epilogue E, class Part>
__device__ __forceinline__ void finish_rows(Part& part, const Problem<T>& p, const Tile& tile, float* scratch) {
  constexpr int kRun = Part::kRun;
  float dot[Part::kRows] = {};
#pragma unroll
  for (int i = 0; i < Part::kRows; ++i) {
    const int row = tile.row + Part::row(i);
    const float weight = E == Epilogue::kStore ? 1.0f : weight_of(p.row_weight, row);
    // w 2 relu(h) from the active w relu(h)^2: their product is never formed, it might not fit.
    const float factor = E == Epilogue::kRelu2Backward ? copysignf(2 * sqrtf(fabsf(weight)), weight) : 0.0f;
#pragma unroll
    for (int run = 0; run < Part::kRuns; ++run) {
      const int column = tile.column + Part::column(run);
      if (column >= p.columns) continue;
      const std::int64_t at = static_cast<std::int64_t>(row) * p.columns + column;
      float v[kRun], active[kRun];
      if constexpr (E == Epilogue::kRelu2Backward) load_run(p.active + at, active);
#pragma unroll
      for (int c = 0; c < kRun; ++c) {
        v[c] = part.at(i, run, c);
        if constexpr (E == Epilogue::kRelu2) {
          v[c] = fmaxf(v[c], 0.0f);
          v[c] *= v[c] * weight;
        }
        if constexpr (E == Epilogue::kRelu2Backward) {
          dot[i] = fmaf(v[c], active[c], dot[i]);
          v[c] *= factor * root(fabsf(active[c]), p.out);
        }
      }
      store_run(p.out + at, v);
    }
  }
  if constexpr (E == Epilogue::kRelu2Backward)
    if (p.dot) store_dots<Part>(dot, p.row_weight, p.dot + tile.column / kTile * p.row_capacity, tile.row, scratch);
}

template <class T, class Part>
__device__ __forceinline__ void finish_add(Part& part, const Problem<T>& p, const Tile& tile) {
  float* grad = p.grad + static_cast<std::int64_t>(tile.expert) * p.rows * p.columns;
#pragma unroll
  for (int i = 0; i < Part::kRows; ++i) {
    const int row = tile.row + Part::row(i);
    if (row >= p.rows) continue;
#pragma unroll
    for (int run = 0; run < Part::kRuns; ++run) {
      const int column = tile.column + Part::column(run);
      if (column >= p.columns) continue;
      float* to = grad + static_cast<std::int64_t>(row) * p.columns + column;
      float sum[Part::kRun];
      load_run(to, sum);
#pragma unroll
      for (int c = 0; c < Part::kRun; ++c) sum[c] += part.at(i, run, c);
      store_run(to, sum);
    }
  }
}

template <class T, Form F, Epilogue E>
__global__ void __launch_bounds__(kThreads, 2) portable_product(const Problem<T> p) {
  extern __shared__ __align__(128) unsigned char memory[];
  Part<T, F == Form::kWgrad, F != Form::kForward> part;
  const int row_tile = blockIdx.x / p.column_tiles;
  Tile tile;
  tile.column = static_cast<int>(blockIdx.x - row_tile * p.column_tiles) * kTile;
  if constexpr (F == Form::kWgrad) {
    const int place = row_tile / p.row_tiles;
    tile.row = (row_tile - place * p.row_tiles) * kTile;
    tile.expert = p.longest_first ? p.longest_first[place] : place;
    const int count = p.count ? p.count[tile.expert] : static_cast<int>(p.row_capacity);
    if (count == 0) return;  // the gradient stays bitwise as it is
    const std::int64_t first = p.offset ? p.offset[tile.expert] : 0;
    multiply<T, F>({p.left, nullptr, first, p.rows, tile.row, p.rows, count},
                   {p.right, nullptr, first, p.columns, tile.column, p.columns, count}, memory, part);
    finish_add(part, p, tile);
  } else {
    tile.row = row_tile * kTile;
    if (p.offset && tile.row >= p.offset[p.experts]) return;
    tile.expert = p.tile_expert ? p.tile_expert[tile.row / p.alignment] : 0;
    const T* matrix = p.right + static_cast<std::int64_t>(tile.expert) * p.columns * p.inner;
    const Operand<T> left{p.left, p.row_index, tile.row, p.inner, 0, kTile, p.inner};
    if constexpr (F == Form::kForward)
      multiply<T, F>(left, {matrix, nullptr, tile.column, p.inner, 0, p.columns - tile.column, p.inner}, memory, part);
    else
      multiply<T, F>(left, {matrix, nullptr, 0, p.columns, tile.column, p.columns, p.inner}, memory, part);
    finish_rows<T, E>(part, p, tile, reinterpret_cast<float*>(memory));
  }
}

}  // namespace switchyard::kernels::portable
