// One warp a token; a lane's loads are all in flight while it draws. Bound by the bytes: two draws a pack of eight
// channels stay below them.
#include "kernels/cuda_check.h"
#include "kernels/jitter.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;
constexpr int kBatch = 3;  // packs in flight a lane: a width of 768 in one go

template <class T>
__global__ void __launch_bounds__(kThreads) jitter_kernel(Jitter<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const std::uint64_t key = dropout_key(a.noise.seed, *a.noise.step, a.noise.site), place = noise_place(a.noise, t);
  const int packs = a.width / kPack;
  for (int base = threadIdx.x % kWarp; base < packs; base += kBatch * kWarp) {
    Pack<T> x[kBatch], add[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int p = base + j * kWarp;
      x[j] = load_pack_if(p < packs, a.x + t * a.width + p * kPack);
      add[j] = load_pack_if(a.add && p < packs, a.add + t * a.width + p * kPack);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int p = base + j * kWarp;
      if (p >= packs) break;
      float f[kPack], sum[kPack];
      unpack(x[j], f);
      unpack(add[j], sum);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Draw4 u = draw_noise(Noise::kUniform, philox(key, place, 2 * p + half));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = 4 * half + i;
          sum[c] = fmaf(f[c], jitter_factor(u.value[i], a.amount), sum[c]);
        }
      }
      store_floats(a.out + t * a.width + p * kPack, sum);
    }
  }
}

}  // namespace

template <class T>
void jitter(const Jitter<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "jitter needs a width that is a multiple of 8");
  if (a.tokens == 0) return;
  jitter_kernel<T><<<static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kRows)), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void jitter(const Jitter<bf16>&, Stream);
template void jitter(const Jitter<float>&, Stream);

}  // namespace switchyard::kernels
