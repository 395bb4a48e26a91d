#include "kernels/cuda_check.h"
#include "kernels/embedding.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;
constexpr int kBatch = 3;  // packs in flight a lane
constexpr int kRunThreads = 128;
constexpr int kPiece = 64;    // positions, of a block
constexpr int kRunBatch = 8;  // rows in flight a thread

template <class T>
__global__ void __launch_bounds__(kThreads) embedding_kernel(Embedding<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const int packs = a.width / kPack;
  const T* from = a.table + a.token[t] * a.width;
  for (int base = threadIdx.x % kWarp; base < packs; base += kBatch * kWarp) {
    Pack<T> v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int p = base + i * kWarp;
      v[i] = load_pack_if(p < packs, from + p * kPack);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int p = base + i * kWarp;
      if (p < packs) store_pack(a.out + t * a.width + p * kPack, v[i]);
    }
  }
}

// A run that leaves its piece is joined from partial sums: a piece keeps at most two, of the run it enters with and of
// the run it leaves with.
struct Partials {
  float *entering, *leaving;  // [pieces, D]
  int *opens, *passes;        // [pieces] a run begins here and leaves; one that entered leaves too
  __host__ __device__ Partials(float* scratch, std::int64_t pieces, int width)
      : entering(scratch),
        leaving(scratch + pieces * width),
        opens(reinterpret_cast<int*>(scratch + 2 * pieces * width)),
        passes(opens + pieces) {}
};

__device__ __forceinline__ void add_to_cell(float* cell, const float (&sum)[kPack]) {
  float f[kPack];
  unpack(load_pack(cell), f);
#pragma unroll
  for (int c = 0; c < kPack; ++c) f[c] += sum[c];
  store_floats(cell, f);
}

template <class T>
__global__ void __launch_bounds__(kRunThreads) embedding_pieces_kernel(EmbeddingBackward<T> a, Partials partials) {
  __shared__ std::int64_t position[kPiece], token[kPiece];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kPiece;
  const int count = static_cast<int>(min(static_cast<std::int64_t>(kPiece), a.tokens - begin));
  for (int i = threadIdx.x; i < count; i += kRunThreads) {
    position[i] = a.order[begin + i];
    token[i] = a.token[position[i]];
  }
  __syncthreads();
  const bool enters = begin > 0 && a.token[a.order[begin - 1]] == token[0];
  const bool leaves = begin + count < a.tokens && a.token[a.order[begin + count]] == token[count - 1];
  if (threadIdx.x == 0) {
    const bool one_run = token[0] == token[count - 1];
    partials.passes[blockIdx.x] = enters && leaves && one_run;
    partials.opens[blockIdx.x] = leaves && !(enters && one_run);
  }
  const int packs = a.width / kPack;
  for (int p = threadIdx.x; p < packs; p += kRunThreads) {
    float sum[kPack] = {};
    bool entered = enters;  // the run at hand came from the piece before
    for (int base = 0; base < count; base += kRunBatch) {
      Pack<T> v[kRunBatch];
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i) {
        const bool there = base + i < count;
        v[i] = load_pack_if(there, a.d_out + (there ? position[base + i] : 0) * a.width + p * kPack);
      }
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i) {
        const int at = base + i;
        if (at >= count) break;
        float f[kPack];
        unpack(v[i], f);
#pragma unroll
        for (int c = 0; c < kPack; ++c) sum[c] += f[c];
        const bool last = at + 1 == count;
        if (!last && token[at + 1] == token[at]) continue;
        const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * a.width + p * kPack;
        if (entered)
          store_floats(partials.entering + place, sum);
        else if (last && leaves)
          store_floats(partials.leaving + place, sum);
        else
          add_to_cell(a.d_table + token[at] * a.width + p * kPack, sum);
        entered = false;
#pragma unroll
        for (int c = 0; c < kPack; ++c) sum[c] = 0;
      }
    }
  }
}

// The piece where a run begins that leaves it adds the whole run.
template <class T>
__global__ void __launch_bounds__(kRunThreads) embedding_join_kernel(EmbeddingBackward<T> a, Partials partials) {
  if (!partials.opens[blockIdx.x]) return;
  const int pieces = gridDim.x, packs = a.width / kPack;
  const std::int64_t token = a.token[a.order[(static_cast<std::int64_t>(blockIdx.x) + 1) * kPiece - 1]];
  for (int p = threadIdx.x; p < packs; p += kRunThreads) {
    float sum[kPack];
    unpack(load_pack(partials.leaving + static_cast<std::int64_t>(blockIdx.x) * a.width + p * kPack), sum);
    bool more = true;
    for (int base = blockIdx.x + 1; more; base += kRunBatch) {
      Pack<float> v[kRunBatch];
      bool in_run[kRunBatch];
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i) {
        in_run[i] = more;
        more = more && base + i < pieces && partials.passes[base + i];
      }
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i)
        v[i] = load_pack_if(in_run[i], partials.entering + static_cast<std::int64_t>(base + i) * a.width + p * kPack);
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i) {
        float f[kPack];
        unpack(v[i], f);
#pragma unroll
        for (int c = 0; c < kPack; ++c) sum[c] += f[c];  // zeros behind the run's end
      }
    }
    add_to_cell(a.d_table + token * a.width + p * kPack, sum);
  }
}

}  // namespace

std::int64_t embedding_scratch(std::int64_t tokens, int width) {
  return ceil_div<std::int64_t>(tokens, kPiece) * (2 * static_cast<std::int64_t>(width) + 2);
}

template <class T>
void embedding(const Embedding<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "embedding needs a width that is a multiple of 8");
  if (a.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kRows));
  embedding_kernel<T><<<blocks, kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void embedding_backward(const EmbeddingBackward<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "embedding needs a width that is a multiple of 8");
  if (a.tokens == 0) return;
  const std::int64_t pieces = ceil_div<std::int64_t>(a.tokens, kPiece);
  const Partials partials(a.scratch, pieces, a.width);
  embedding_pieces_kernel<T><<<static_cast<unsigned>(pieces), kRunThreads, 0, stream>>>(a, partials);
  SWITCHYARD_CUDA_LAUNCHED();
  embedding_join_kernel<T><<<static_cast<unsigned>(pieces), kRunThreads, 0, stream>>>(a, partials);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void embedding(const Embedding<bf16>&, Stream);
template void embedding(const Embedding<float>&, Stream);
template void embedding_backward(const EmbeddingBackward<bf16>&, Stream);
template void embedding_backward(const EmbeddingBackward<float>&, Stream);

}  // namespace switchyard::kernels
