// A token is spread over L lanes, the power of two at or above columns / 4 (at most 32); a draw serves four columns.
#include "kernels/cuda_check.h"
#include "kernels/noise.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) noise_kernel(NoiseDraw a, int lanes) {
  const std::int64_t t = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  if (t >= a.tokens) return;
  const std::uint64_t key = dropout_key(a.seed, *a.step, a.site);
  const std::uint64_t place = noise_place(a, t);
  float* out = a.out + t * a.columns;
  for (int c = static_cast<int>(threadIdx.x % lanes) * 4; c < a.columns; c += lanes * 4) {
    const Draw4 draw = draw_noise(a.kind, philox(key, place, c / 4));
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (c + j < a.columns) out[c + j] = draw.value[j];
  }
}

}  // namespace

void noise(const NoiseDraw& a, Stream stream) {
  if (a.tokens == 0) return;
  int lanes = 1;
  while (lanes * 4 < a.columns && lanes < kWarp) lanes *= 2;
  noise_kernel<<<static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens * lanes, kThreads)), kThreads, 0, stream>>>(
      a, lanes);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
