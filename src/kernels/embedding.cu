#include "kernels/cuda_check.h"
#include "kernels/embedding.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;
constexpr int kBatch = 3;  // packs in flight a lane
constexpr int kOrderedThreads = 128;
constexpr int kRunBatch = 8;  // rows of a run in flight

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

template <class T>
__global__ void __launch_bounds__(kThreads) embedding_atomic_kernel(EmbeddingBackward<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const int packs = a.width / kPack;
  float* to = a.d_table + a.token[t] * a.width;
  for (int base = threadIdx.x % kWarp; base < packs; base += kBatch * kWarp) {
    Pack<T> v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int p = base + i * kWarp;
      v[i] = load_pack_if(p < packs, a.d_out + t * a.width + p * kPack);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int p = base + i * kWarp;
      if (p >= packs) break;
      float f[kPack];
      unpack(v[i], f);
      float4* cell = reinterpret_cast<float4*>(to + p * kPack);
      atomicAdd(cell, make_float4(f[0], f[1], f[2], f[3]));
      atomicAdd(cell + 1, make_float4(f[4], f[5], f[6], f[7]));
    }
  }
}

// The block whose position starts a run of equal tokens adds the whole run, in order; the others leave at once.
template <class T>
__global__ void __launch_bounds__(kOrderedThreads) embedding_ordered_kernel(EmbeddingBackward<T> a) {
  const std::int64_t begin = blockIdx.x, token = a.token[a.order[begin]];
  if (begin > 0 && a.token[a.order[begin - 1]] == token) return;
  const int packs = a.width / kPack;
  for (int p = threadIdx.x; p < packs; p += kOrderedThreads) {
    float* cell = a.d_table + token * a.width + p * kPack;
    float sum[kPack];
    unpack(load_pack(cell), sum);
    bool more = true;
    for (std::int64_t base = begin; more; base += kRunBatch) {
      Pack<T> v[kRunBatch];
      bool in_run[kRunBatch];
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i) {
        const std::int64_t t = base + i < a.tokens ? a.order[base + i] : -1;
        in_run[i] = t >= 0 && a.token[t] == token;
        v[i] = load_pack_if(in_run[i], a.d_out + t * a.width + p * kPack);
      }
#pragma unroll
      for (int i = 0; i < kRunBatch; ++i) {
        if (!in_run[i]) continue;
        float f[kPack];
        unpack(v[i], f);
#pragma unroll
        for (int c = 0; c < kPack; ++c) sum[c] += f[c];
      }
      more = in_run[kRunBatch - 1];
    }
    store_floats(cell, sum);
  }
}

}  // namespace

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
  if (a.order) {
    embedding_ordered_kernel<T><<<static_cast<unsigned>(a.tokens), kOrderedThreads, 0, stream>>>(a);
  } else {
    const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kRows));
    embedding_atomic_kernel<T><<<blocks, kThreads, 0, stream>>>(a);
  }
  SWITCHYARD_CUDA_LAUNCHED();
}

template void embedding(const Embedding<bf16>&, Stream);
template void embedding(const Embedding<float>&, Stream);
template void embedding_backward(const EmbeddingBackward<bf16>&, Stream);
template void embedding_backward(const EmbeddingBackward<float>&, Stream);

}  // namespace switchyard::kernels
