// A block holds parts of matrices, as bf16 in shared memory, until the norm of the matrix is known: so gradient and
// momentum are read once and the direction is written once. Blocks draw parts in order, and a block prepares its next
// part before it waits for the norm of the one before. A part's sum of squares has a place of its own, and who needs
// the norm adds the places in order. Matrices that all blocks together cannot hold take two passes, the update between
// them as bf16 where the direction will be.
#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/device_limits.h"
#include "kernels/muon.h"
#include "kernels/muon_rates.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kFour = 4;
constexpr int kBatch = 4;  // fours a thread: of gradient and momentum eight loads in flight
constexpr int kChunk = kThreads * kFour * kBatch;
constexpr int kBlocks = 4;         // a multiprocessor
constexpr int kStaticBytes = 128;  // of shared memory, at most

__device__ __forceinline__ uint2 pack_four(const float (&f)[kFour]) {
  return make_uint2(pack_two(f[0], f[1]), pack_two(f[2], f[3]));
}
__device__ __forceinline__ void unpack_four(uint2 raw, float (&f)[kFour]) {
  unpack_two(raw.x, f[0], f[1]);
  unpack_two(raw.y, f[2], f[3]);
}

__device__ __forceinline__ void load_four(const float* p, float (&f)[kFour]) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  f[0] = v.x, f[1] = v.y, f[2] = v.z, f[3] = v.w;
}
__device__ __forceinline__ void load_four(const bf16* p, float (&f)[kFour]) {
  unpack_four(*reinterpret_cast<const uint2*>(p), f);
}
__device__ __forceinline__ void load_four(const fp16* p, float (&f)[kFour]) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  const float2 low = unpack_halves(raw.x), high = unpack_halves(raw.y);
  f[0] = low.x, f[1] = low.y, f[2] = high.x, f[3] = high.y;
}
__device__ __forceinline__ void store_four(float* p, const float (&f)[kFour]) {
  *reinterpret_cast<float4*>(p) = make_float4(f[0], f[1], f[2], f[3]);
}
__device__ __forceinline__ void store_four(bf16* p, const float (&f)[kFour]) {
  *reinterpret_cast<uint2*>(p) = pack_four(f);
}
__device__ __forceinline__ void store_four(fp16* p, const float (&f)[kFour]) {
  *reinterpret_cast<uint2*>(p) = make_uint2(pack_halves(f[0], f[1]), pack_halves(f[2], f[3]));
}

// Four elements of a matrix of `size`: the i-th of this thread from chunk `chunk` on. With kVectors the matrices are
// whole fours at aligned addresses.
template <bool kVectors>
struct Reach {
  std::int64_t at;
  int valid;  // of the four, those that the matrix has

  __device__ __forceinline__ Reach(std::int64_t chunk, int i, std::int64_t size)
      : at((chunk * kBatch + i) * kThreads * kFour + threadIdx.x * kFour),
        valid(static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kFour}, size - at)))) {}

  template <class T>
  __device__ __forceinline__ void load(const T* base, float (&f)[kFour]) const {
#pragma unroll
    for (int c = 0; c < kFour; ++c) f[c] = 0;
    if constexpr (kVectors) {
      if (valid > 0) load_four(base + at, f);
    } else {
#pragma unroll
      for (int c = 0; c < kFour; ++c)
        if (c < valid) f[c] = to_float(base[at + c]);
    }
  }
  template <class T>
  __device__ __forceinline__ void store(T* base, const float (&f)[kFour]) const {
    if constexpr (kVectors) {
      if (valid > 0) store_four(base + at, f);
    } else {
#pragma unroll
      for (int c = 0; c < kFour; ++c)
        if (c < valid) from_float(f[c], base[at + c]);
    }
  }
};

__device__ __forceinline__ bool takes_vectors(const MuonMatrix& m, std::int64_t size) {
  const auto bits = reinterpret_cast<std::uintptr_t>(m.weight) | reinterpret_cast<std::uintptr_t>(m.grad) |
                    reinterpret_cast<std::uintptr_t>(m.momentum) | reinterpret_cast<std::uintptr_t>(m.copy);
  return bits % 16 == 0 && size % kFour == 0;
}

__device__ __forceinline__ std::int64_t size_of(const MuonBatch& b) { return b.rows * b.cols; }

struct Scalars {
  float mu, grad_factor;
  bool apply;
  __device__ explicit Scalars(const MuonPrepare& a) : mu(*a.mu), grad_factor(*a.grad_factor), apply(*a.apply != 0) {}
};

// A chunk's momentum; keep(i, reach, update) for its update, rounded to bf16. The update's squares, of this thread.
template <bool kVectors, class Keep>
__device__ __forceinline__ float prepare_chunk(const MuonPrepare& a, const Scalars& of, const MuonMatrix& matrix,
                                               std::int64_t chunk, Keep keep) {
  float g[kBatch][kFour], m[kBatch][kFour], squares = 0;
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(chunk, i, size_of(a.batch));
    reach.load(matrix.grad, g[i]);
    reach.load(matrix.momentum, m[i]);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(chunk, i, size_of(a.batch));
#pragma unroll
    for (int c = 0; c < kFour; ++c) {
      const float own = g[i][c] * of.grad_factor;
      m[i][c] = fmaf(of.mu, m[i][c] - own, own);
      g[i][c] = a.nesterov ? fmaf(of.mu, m[i][c] - own, own) : m[i][c];
    }
    if (of.apply) reach.store(matrix.momentum, m[i]);
    unpack_four(pack_four(g[i]), g[i]);
    keep(i, reach, g[i]);
#pragma unroll
    for (int c = 0; c < kFour; ++c) squares = fmaf(g[i][c], g[i][c], squares);
  }
  return squares;
}

// What an update of a matrix is multiplied by, from its `parts` sums of squares.
__device__ __forceinline__ float factor_of(const MuonPrepare& a, int matrix, int parts) {
  const float* sums = a.norm_parts + static_cast<std::int64_t>(matrix) * parts;
  float squares = 0;
  for (int part = threadIdx.x; part < parts; part += kThreads) squares += __ldcg(sums + part);
  return 1.0f / (sqrtf(row_sum<kThreads>(squares)) * a.safety + a.eps);
}

template <bool kVectors>
__device__ __forceinline__ void store_scaled(const Reach<kVectors>& reach, fp16* direction, float factor,
                                             float (&u)[kFour]) {
#pragma unroll
  for (int c = 0; c < kFour; ++c) u[c] *= factor;
  reach.store(direction, u);
}

// ---- matrices that the blocks can hold ----

struct Parts {
  int of_matrix, chunks;  // chunks: of a part
  __host__ __device__ int fours() const { return chunks * kBatch * kThreads; }
  int bytes() const { return 2 * fours() * static_cast<int>(sizeof(uint2)); }  // of shared memory
};

// Updates of a part into `held`, each thread's own; the part's sum of squares.
template <bool kVectors>
__device__ __forceinline__ float prepare_part(const MuonPrepare& a, const Scalars& of, const MuonMatrix& matrix,
                                              const Parts& parts, int part, uint2* held) {
  float squares = 0;
#pragma unroll 1
  for (int j = 0; j < parts.chunks; ++j, held += kBatch * kThreads)
    squares += prepare_chunk<kVectors>(a, of, matrix, static_cast<std::int64_t>(part) * parts.chunks + j,
                                       [&](int i, const Reach<kVectors>&, const float(&u)[kFour]) {
                                         held[i * kThreads + threadIdx.x] = pack_four(u);
                                       });
  return row_sum<kThreads>(squares);
}

template <bool kVectors>
__device__ __forceinline__ void scale_part(const MuonPrepare& a, const Parts& parts, int matrix, int part, float factor,
                                           const uint2* held) {
  fp16* direction = a.direction + matrix * size_of(a.batch);
#pragma unroll 1
  for (int j = 0; j < parts.chunks; ++j, held += kBatch * kThreads)
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      float u[kFour];
      unpack_four(held[i * kThreads + threadIdx.x], u);
      const Reach<kVectors> reach(static_cast<std::int64_t>(part) * parts.chunks + j, i, size_of(a.batch));
      store_scaled(reach, direction, factor, u);
    }
}

// progress: of each matrix the parts prepared, then also those scaled; behind them the parts drawn. What is drawn is
// prepared without waiting, and a block that waits has two parts: so blocks that run can only wait for one another in
// vain over a matrix of more than twice as many parts.
__global__ void __launch_bounds__(kThreads, kBlocks) prepare_held_kernel(MuonPrepare a, Parts parts) {
  extern __shared__ uint2 held[];  // two parts' updates, each thread's own
  __shared__ int next;
  const Scalars of(a);
  const int items = parts.of_matrix * a.batch.count;
  int* drawn = a.progress + a.batch.count;
  for (int before = -1, turn = 0;; turn ^= 1) {
    __syncthreads();  // all have read `next`
    if (threadIdx.x == 0) next = atomicAdd(drawn, 1);
    __syncthreads();
    const int item = next;
    if (item < items) {
      const int matrix = item / parts.of_matrix, part = item - matrix * parts.of_matrix;
      const MuonMatrix pointers = a.batch.matrices[matrix];
      uint2* to = held + turn * parts.fours();
      const float squares = takes_vectors(pointers, size_of(a.batch))
                                ? prepare_part<true>(a, of, pointers, parts, part, to)
                                : prepare_part<false>(a, of, pointers, parts, part, to);
      if (threadIdx.x == 0) {
        a.norm_parts[item] = squares;
        __threadfence();
        atomicAdd(a.progress + matrix, 1);
      }
    } else if (threadIdx.x == 0 && item == items + static_cast<int>(gridDim.x) - 1) {
      *drawn = 0;  // each block draws once in vain
    }
    if (before >= 0) {
      const int matrix = before / parts.of_matrix, part = before - matrix * parts.of_matrix;
      int* done = a.progress + matrix;
      if (threadIdx.x == 0) {
        while (*static_cast<volatile int*>(done) < parts.of_matrix) __nanosleep(100);
        __threadfence();
      }
      __syncthreads();
      const float factor = factor_of(a, matrix, parts.of_matrix);
      const uint2* from = held + (turn ^ 1) * parts.fours();
      size_of(a.batch) % kFour == 0 ? scale_part<true>(a, parts, matrix, part, factor, from)
                                    : scale_part<false>(a, parts, matrix, part, factor, from);
      if (threadIdx.x == 0 && atomicAdd(done, 1) == 2 * parts.of_matrix - 1) *done = 0;
    }
    if (item >= items) return;
    before = item;
  }
}

// ---- larger ones ----

__global__ void __launch_bounds__(kThreads) prepare_kernel(MuonPrepare a) {
  const Scalars of(a);
  const MuonMatrix matrix = a.batch.matrices[blockIdx.y];
  const std::int64_t size = size_of(a.batch);
  bf16* update = reinterpret_cast<bf16*>(a.direction) + blockIdx.y * size;
  const auto keep = [&](int, const auto& reach, const float(&u)[kFour]) { reach.store(update, u); };
  const float squares =
      row_sum<kThreads>(takes_vectors(matrix, size) ? prepare_chunk<true>(a, of, matrix, blockIdx.x, keep)
                                                    : prepare_chunk<false>(a, of, matrix, blockIdx.x, keep));
  if (threadIdx.x == 0) a.norm_parts[static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = squares;
}

template <bool kVectors>
__device__ __forceinline__ void scale_chunk(const MuonPrepare& a, float factor) {
  fp16* direction = a.direction + blockIdx.y * size_of(a.batch);
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(blockIdx.x, i, size_of(a.batch));
    float u[kFour];
    reach.load(reinterpret_cast<const bf16*>(direction), u);
    store_scaled(reach, direction, factor, u);
  }
}

__global__ void __launch_bounds__(kThreads) scale_kernel(MuonPrepare a) {
  const float factor = factor_of(a, static_cast<int>(blockIdx.y), static_cast<int>(gridDim.x));
  size_of(a.batch) % kFour == 0 ? scale_chunk<true>(a, factor) : scale_chunk<false>(a, factor);
}

// ---- the weights' update ----

template <bool kVectors>
__device__ __forceinline__ void apply(const MuonApply& a, const MuonMatrix& matrix, std::int64_t size) {
  const MuonRates rates(a);
  float w[kBatch][kFour], o[kBatch][kFour];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(blockIdx.x, i, size);
    reach.load(matrix.weight, w[i]);
    reach.load(a.direction + blockIdx.y * size, o[i]);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const Reach<kVectors> reach(blockIdx.x, i, size);
#pragma unroll
    for (int c = 0; c < kFour; ++c) w[i][c] = rates.updated(w[i][c], o[i][c]);
    reach.store(matrix.weight, w[i]);
    if (matrix.copy) reach.store(matrix.copy, w[i]);
  }
}

__global__ void __launch_bounds__(kThreads) apply_kernel(MuonApply a) {
  if (*a.apply == 0) return;
  const MuonMatrix matrix = a.batch.matrices[blockIdx.y];
  const std::int64_t size = size_of(a.batch);
  takes_vectors(matrix, size) ? apply<true>(a, matrix, size) : apply<false>(a, matrix, size);
}

dim3 grid_for(int count, std::int64_t rows, std::int64_t cols) {
  SWITCHYARD_ASSERT(count <= 65535, "a Muon batch holds up to 65535 matrices");
  return dim3(static_cast<unsigned>(muon_norm_parts(rows, cols)), count);
}

// How many blocks that hold parts run at a time.
int held_blocks(const Parts& parts) {
  int blocks = 0;
  SWITCHYARD_CUDA(
      cudaFuncSetAttribute(prepare_held_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, parts.bytes()));
  SWITCHYARD_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, prepare_held_kernel, kThreads, parts.bytes()));
  return blocks * multiprocessors();
}

}  // namespace

std::int64_t muon_norm_parts(std::int64_t rows, std::int64_t cols) {
  return ceil_div<std::int64_t>(rows * cols, kChunk);
}

void muon_prepare(const MuonPrepare& a, Stream stream) {
  if (a.batch.count == 0 || a.batch.rows * a.batch.cols == 0) return;
  const dim3 chunks = grid_for(a.batch.count, a.batch.rows, a.batch.cols);
  // Parts no larger than they must be: what they take of shared memory, the cache that loads pass through lacks.
  for (Parts parts{0, 2}; parts.bytes() <= most_shared_memory() - kStaticBytes; ++parts.chunks) {
    parts.of_matrix = ceil_div<int>(chunks.x, parts.chunks);
    const int blocks = held_blocks(parts);
    if (parts.of_matrix > blocks) continue;
    prepare_held_kernel<<<std::min(blocks, parts.of_matrix * a.batch.count), kThreads, parts.bytes(), stream>>>(a,
                                                                                                                parts);
    SWITCHYARD_CUDA_LAUNCHED();
    return;
  }
  prepare_kernel<<<chunks, kThreads, 0, stream>>>(a);
  scale_kernel<<<chunks, kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

void muon_apply(const MuonApply& a, Stream stream) {
  if (a.batch.count == 0 || a.batch.rows * a.batch.cols == 0) return;
  apply_kernel<<<grid_for(a.batch.count, a.batch.rows, a.batch.cols), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
