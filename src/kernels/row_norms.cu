// One warp a token, its loads in flight together; bound by reading x.
#include "kernels/cuda_check.h"
#include "kernels/row_norms.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;
constexpr int kBatch = 4;  // packs in flight a lane

template <class T>
__global__ void __launch_bounds__(kThreads) row_norms_kernel(RowNorms<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (t >= a.tokens) return;
  const int packs = a.width / kPack, lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int base = lane; base < packs; base += kBatch * kWarp) {
    Pack<T> x[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int p = base + j * kWarp;
      x[j] = load_pack_if(p < packs, a.x + t * a.width + p * kPack);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float f[kPack];
      unpack(x[j], f);
#pragma unroll
      for (int c = 0; c < kPack; ++c) sum = fmaf(f[c], f[c], sum);
    }
  }
  sum = lane_sum(sum);
  if (lane == 0) a.norm[t] = sqrtf(sum);
}

}  // namespace

template <class T>
void row_norms(const RowNorms<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "row_norms needs a width that is a multiple of 8");
  if (a.tokens == 0) return;
  row_norms_kernel<T><<<static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kRows)), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void row_norms(const RowNorms<bf16>&, Stream);
template void row_norms(const RowNorms<float>&, Stream);

}  // namespace switchyard::kernels
