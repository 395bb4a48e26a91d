// One warp a token; a draw of the generator serves four channels. The generator's integer work, not memory, sets the
// pace.
#include "kernels/cuda_check.h"
#include "kernels/dropout.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;

__device__ __forceinline__ float4 load_four(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 load_four(const bf16* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  float4 v;
  unpack_two(raw.x, v.x, v.y);
  unpack_two(raw.y, v.z, v.w);
  return v;
}
__device__ __forceinline__ void store_four(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
__device__ __forceinline__ void store_four(bf16* p, float4 v) {
  *reinterpret_cast<uint2*>(p) = make_uint2(pack_two(v.x, v.y), pack_two(v.z, v.w));
}

// A warp's row: x to out, which may be x.
template <class T>
__device__ __forceinline__ void drop_row(const T* x, T* out, int width, float p, std::uint64_t key, std::uint64_t id) {
  const float scale = 1.0f / (1.0f - p);
#pragma unroll 2
  for (int four = threadIdx.x % kWarp; four < width / 4; four += kWarp) {
    float4 v = load_four(x + four * 4);
    const Words4 words = philox(key, id, four);
    v.x = to_uniform(words.x) >= p ? v.x * scale : 0.0f;
    v.y = to_uniform(words.y) >= p ? v.y * scale : 0.0f;
    v.z = to_uniform(words.z) >= p ? v.z * scale : 0.0f;
    v.w = to_uniform(words.w) >= p ? v.w * scale : 0.0f;
    store_four(out + four * 4, v);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) dropout_kernel(Dropout<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const std::uint64_t key = dropout_key(a.seed, *a.step, a.site);
  const unsigned sequence = static_cast<unsigned>(t) / a.seq_len, position = static_cast<unsigned>(t) % a.seq_len;
  const auto place = static_cast<std::uint64_t>(a.window[sequence] * a.seq_len + position);
  drop_row(a.x + t * a.width, a.out + t * a.width, a.width, a.p, key, place);
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_dropout_kernel(RowDropout<T> a) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (r >= a.rows || r >= *a.row_count) return;
  const std::int64_t id = a.id[r];
  if (id < 0) return;
  T* x = a.x + r * a.width;
  drop_row(x, x, a.width, a.p, dropout_key(a.seed, *a.step, a.site), static_cast<std::uint64_t>(id));
}

}  // namespace

template <class T>
void dropout(const Dropout<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % 4 == 0, "dropout needs a width that is a multiple of 4");
  if (a.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kRows));
  dropout_kernel<T><<<blocks, kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void row_dropout(const RowDropout<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % 4 == 0, "dropout needs a width that is a multiple of 4");
  if (a.rows == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.rows, kRows));
  row_dropout_kernel<T><<<blocks, kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void dropout(const Dropout<bf16>&, Stream);
template void dropout(const Dropout<float>&, Stream);
template void row_dropout(const RowDropout<bf16>&, Stream);
template void row_dropout(const RowDropout<float>&, Stream);

}  // namespace switchyard::kernels
