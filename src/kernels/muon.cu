// A block has a chunk of a matrix. A chunk's sum of squares has a place of its own, and who needs the norm adds the
// places in order.
#include <climits>

#include "kernels/cuda_check.h"
#include "kernels/muon.h"
#include "kernels/muon_rates.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 2;  // packs a thread
constexpr int kChunk = kThreads * kPack * kBatch;

// The i-th pack of this thread. With kVectors the matrices are whole packs at aligned addresses.
template <bool kVectors>
struct Reach {
  std::int64_t at;
  int valid;  // elements of the pack that the matrix has

  __device__ __forceinline__ Reach(int i, int chunk, std::int64_t size)
      : at((static_cast<std::int64_t>(chunk) * kBatch + i) * kThreads * kPack + threadIdx.x * kPack),
        valid(static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kPack}, size - at)))) {}

  template <class T>
  __device__ __forceinline__ void load(const T* base, float (&f)[kPack]) const {
    if constexpr (kVectors) {
      unpack(load_pack_if(valid > 0, base + at), f);
    } else {
#pragma unroll
      for (int c = 0; c < kPack; ++c) f[c] = c < valid ? to_float(base[at + c]) : 0.0f;
    }
  }
  template <class T>
  __device__ __forceinline__ void store(T* base, const float (&f)[kPack]) const {
    if constexpr (kVectors) {
      if (valid > 0) store_floats(base + at, f);
    } else {
#pragma unroll
      for (int c = 0; c < kPack; ++c)
        if (c < valid) from_float(f[c], base[at + c]);
    }
  }
};

__device__ __forceinline__ bool takes_vectors(const MuonMatrix& m, std::int64_t size) {
  const auto bits = reinterpret_cast<std::uintptr_t>(m.weight) | reinterpret_cast<std::uintptr_t>(m.grad) |
                    reinterpret_cast<std::uintptr_t>(m.momentum) | reinterpret_cast<std::uintptr_t>(m.copy);
  return bits % 16 == 0 && size % kPack == 0;
}

// A chunk of one of the batch's matrices.
struct Piece {
  int matrix, chunk, chunks;
  std::int64_t size;
};

template <bool kVectors>
__device__ __forceinline__ void prepare(const MuonPrepare& a, const MuonMatrix& matrix, const Piece& p) {
  const float mu = *a.mu, grad_factor = *a.grad_factor;
  const bool apply = *a.apply != 0;
  bf16* update = reinterpret_cast<bf16*>(a.direction) + p.matrix * p.size;
  float g[kBatch][kPack], m[kBatch][kPack], squares = 0;
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(i, p.chunk, p.size);
    reach.load(matrix.grad, g[i]);
    reach.load(matrix.momentum, m[i]);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(i, p.chunk, p.size);
    Pack<bf16> rounded;
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      const float own = g[i][c] * grad_factor;
      m[i][c] = fmaf(mu, m[i][c] - own, own);
      g[i][c] = a.nesterov ? fmaf(mu, m[i][c] - own, own) : m[i][c];
    }
    if (apply) reach.store(matrix.momentum, m[i]);
    reach.store(update, g[i]);
    pack(g[i], rounded);
    unpack(rounded, g[i]);
#pragma unroll
    for (int c = 0; c < kPack; ++c) squares = fmaf(g[i][c], g[i][c], squares);
  }
  squares = row_sum<kThreads>(squares);
  if (threadIdx.x == 0) a.norm_parts[static_cast<std::int64_t>(p.matrix) * p.chunks + p.chunk] = squares;
}

template <bool kVectors>
__device__ __forceinline__ void scale(const MuonPrepare& a, const Piece& p) {
  const std::int64_t begin = p.matrix * p.size;
  float u[kBatch][kPack];
#pragma unroll
  for (int i = 0; i < kBatch; ++i)
    Reach<kVectors>(i, p.chunk, p.size).load(reinterpret_cast<const bf16*>(a.direction) + begin, u[i]);
  const float* parts = a.norm_parts + static_cast<std::int64_t>(p.matrix) * p.chunks;
  float squares = 0;
  for (int part = threadIdx.x; part < p.chunks; part += kThreads) squares += parts[part];
  const float factor = 1.0f / (sqrtf(row_sum<kThreads>(squares)) * a.safety + a.eps);
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) u[i][c] *= factor;
    Reach<kVectors>(i, p.chunk, p.size).store(a.direction + begin, u[i]);
  }
}

// Blocks prepare all chunks of a matrix, then scale those of the matrix before, whose update L2 still holds. Who scales
// waits for blocks of lower index alone, which the device starts first.
__global__ void __launch_bounds__(kThreads, 3) prepare_kernel(MuonPrepare a, int chunks) {
  const int turn = blockIdx.x / chunks;
  const bool scales = turn % 2 != 0;
  const Piece p{turn / 2 - scales, static_cast<int>(blockIdx.x) - turn * chunks, chunks, a.batch.rows * a.batch.cols};
  if (p.matrix < 0 || p.matrix >= a.batch.count) return;
  int* done = a.progress + p.matrix;  // chunks prepared, then also those scaled
  if (scales) {
    if (threadIdx.x == 0) {
      while (*static_cast<volatile int*>(done) < chunks) __nanosleep(100);
      __threadfence();
    }
    __syncthreads();
    p.size % kPack == 0 ? scale<true>(a, p) : scale<false>(a, p);
  } else {
    const MuonMatrix matrix = a.batch.matrices[p.matrix];
    takes_vectors(matrix, p.size) ? prepare<true>(a, matrix, p) : prepare<false>(a, matrix, p);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(done, 1) == 2 * chunks - 1) *done = 0;
}

template <bool kVectors>
__device__ __forceinline__ void apply(const MuonApply& a, const MuonMatrix& matrix, std::int64_t size) {
  const MuonRates rates(a);
  float w[kBatch][kPack], o[kBatch][kPack];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(i, blockIdx.x, size);
    reach.load(matrix.weight, w[i]);
    reach.load(a.direction + blockIdx.y * size, o[i]);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(i, blockIdx.x, size);
#pragma unroll
    for (int c = 0; c < kPack; ++c) w[i][c] = rates.updated(w[i][c], o[i][c]);
    reach.store(matrix.weight, w[i]);
    if (matrix.copy) reach.store(matrix.copy, w[i]);
  }
}

__global__ void __launch_bounds__(kThreads) apply_kernel(MuonApply a) {
  if (*a.apply == 0) return;
  const MuonMatrix matrix = a.batch.matrices[blockIdx.y];
  const std::int64_t size = a.batch.rows * a.batch.cols;
  takes_vectors(matrix, size) ? apply<true>(a, matrix, size) : apply<false>(a, matrix, size);
}

dim3 grid_for(int count, std::int64_t rows, std::int64_t cols) {
  SWITCHYARD_ASSERT(count <= 65535, "a Muon batch holds up to 65535 matrices");
  return dim3(static_cast<unsigned>(muon_norm_parts(rows, cols)), count);
}

}  // namespace

std::int64_t muon_norm_parts(std::int64_t rows, std::int64_t cols) {
  return ceil_div<std::int64_t>(rows * cols, kChunk);
}

void muon_prepare(const MuonPrepare& a, Stream stream) {
  if (a.batch.count == 0 || a.batch.rows * a.batch.cols == 0) return;
  const std::int64_t chunks = muon_norm_parts(a.batch.rows, a.batch.cols), blocks = 2 * chunks * (a.batch.count + 1);
  SWITCHYARD_ASSERT(blocks <= INT_MAX, "a Muon batch is larger than a grid");
  prepare_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(a, static_cast<int>(chunks));
  SWITCHYARD_CUDA_LAUNCHED();
}

void muon_apply(const MuonApply& a, Stream stream) {
  if (a.batch.count == 0 || a.batch.rows * a.batch.cols == 0) return;
  apply_kernel<<<grid_for(a.batch.count, a.batch.rows, a.batch.cols), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
