// One warp a row, several packs in flight a lane; backward's <d_out, activation> stays inside the warp.
#include "kernels/activation.h"
#include "kernels/cuda_check.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // a block: one a warp
constexpr int kThreads = kRows * kWarp;
template <ActivationKind kKind>
constexpr bool kGated = is_gated(kKind);
// Packs in flight a lane and tensor: 3 covers a width of 768 in one batch, 1536 in two.
template <ActivationKind kKind>
constexpr int kBatch = kGated<kKind> ? 2 : 3;

struct ValueAndSlope {
  float value, slope;
};

__device__ __forceinline__ ValueAndSlope relu2(float x) {
  const float r = fmaxf(x, 0.0f);
  return {r * r, 2.0f * r};
}

// gelu(x) = x Phi(x); slope = Phi + x phi. For bf16 outputs erf comes from Abramowitz & Stegun 7.1.26 (absolute error
// 1.5e-7), whose exponential is the density that the slope needs as well; for float it is the library's.
template <class T>
__device__ __forceinline__ ValueAndSlope gelu(float x) {
  constexpr float kInverseSqrt2 = 0.70710678f, kDensity0 = 0.39894228f;
  const float bell = __expf(-0.5f * x * x);
  float below;
  if constexpr (sizeof(T) == 4) {
    below = 0.5f * erfcf(-x * kInverseSqrt2);
  } else {
    const float u = __fdividef(1.0f, fmaf(0.3275911f * kInverseSqrt2, fabsf(x), 1.0f));
    float p = fmaf(1.061405429f, u, -1.453152027f);
    p = fmaf(p, u, 1.421413741f);
    p = fmaf(p, u, -0.284496736f);
    p = fmaf(p, u, 0.254829592f);
    const float tail = 0.5f * p * u * bell;
    below = x < 0.0f ? tail : 1.0f - tail;
  }
  return {x * below, fmaf(x * kDensity0, bell, below)};
}

__device__ __forceinline__ ValueAndSlope silu(float x) {
  const float s = __fdividef(1.0f, 1.0f + __expf(-x));
  return {x * s, s * fmaf(x, 1.0f - s, 1.0f)};
}

template <class T, ActivationKind kKind>
__device__ __forceinline__ ValueAndSlope act(float x) {
  if constexpr (kKind == ActivationKind::kRelu2) return relu2(x);
  if constexpr (kKind == ActivationKind::kSwiglu) return silu(x);
  return gelu<T>(x);
}

// The row this warp works on, if there is one; and whether it is padding.
template <class Description>
__device__ __forceinline__ bool row_of_warp(const Description& a, std::int64_t& row, bool& padding) {
  row = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  const std::int64_t rows = a.row_count ? min(a.rows, static_cast<std::int64_t>(*a.row_count)) : a.rows;
  if (row >= rows) return false;
  padding = a.row_token && a.row_token[row] < 0;
  return true;
}

template <class T>
__device__ __forceinline__ void zero_row(T* p, int packs) {
  Pack<T> zero;
  set_zero(zero);
  for (int i = threadIdx.x % kWarp; i < packs; i += kWarp) store_pack(p + i * kPack, zero);
}

template <class T, ActivationKind kKind>
__global__ void __launch_bounds__(kThreads) activation_kernel(Activation<T> a) {
  constexpr bool kTwo = kGated<kKind>;
  constexpr int kN = kBatch<kKind>;
  std::int64_t row;
  bool padding;
  if (!row_of_warp(a, row, padding)) return;
  const int packs = a.width / kPack, lane = threadIdx.x % kWarp;
  const T* pre = a.pre + row * a.width * (kTwo ? 2 : 1);
  T* out = a.out + row * a.width;
  if (padding) return zero_row(out, packs);
  const float weight = a.weight ? a.weight[row] : 1.0f;

  for (int base = lane; base < packs; base += kN * kWarp) {
    Pack<T> x[kN], value[kTwo ? kN : 1];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const int p = base + i * kWarp;
      x[i] = load_pack_if(p < packs, pre + p * kPack);
      if constexpr (kTwo) value[i] = load_pack_if(p < packs, pre + a.width + p * kPack);
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const int p = base + i * kWarp;
      if (p >= packs) break;
      float f[kPack], v[kPack];
      unpack(x[i], f);
      if constexpr (kTwo) unpack(value[i], v);
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        f[c] = weight * act<T, kKind>(f[c]).value;
        if constexpr (kTwo) f[c] *= v[c];
      }
      store_floats(out + p * kPack, f);
    }
  }
}

template <class T, ActivationKind kKind>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(ActivationBackward<T> a) {
  constexpr bool kTwo = kGated<kKind>;
  constexpr int kN = kBatch<kKind>;
  std::int64_t row;
  bool padding;
  if (!row_of_warp(a, row, padding)) return;
  const int packs = a.width / kPack, lane = threadIdx.x % kWarp;
  const std::int64_t pre_at = row * a.width * (kTwo ? 2 : 1), at = row * a.width;
  if (padding) {
    zero_row(a.d_pre + pre_at, packs * (kTwo ? 2 : 1));
    if (a.again) zero_row(a.again + at, packs);
    if (a.d_weight && lane == 0) a.d_weight[row] = 0;
    return;
  }
  const float weight = a.weight ? a.weight[row] : 1.0f;
  float dot = 0;

  for (int base = lane; base < packs; base += kN * kWarp) {
    Pack<T> x[kN], value[kTwo ? kN : 1], d_out[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const int p = base + i * kWarp;
      x[i] = load_pack_if(p < packs, a.pre + pre_at + p * kPack);
      if constexpr (kTwo) value[i] = load_pack_if(p < packs, a.pre + pre_at + a.width + p * kPack);
      d_out[i] = load_pack_if(p < packs, a.d_out + at + p * kPack);
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const int p = base + i * kWarp;
      if (p >= packs) break;
      float f[kPack], g[kPack], v[kPack], d_value[kPack];
      unpack(x[i], f);
      unpack(d_out[i], g);
      if constexpr (kTwo) unpack(value[i], v);
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const ValueAndSlope y = act<T, kKind>(f[c]);
        const float result = kTwo ? y.value * v[c] : y.value;
        dot = fmaf(g[c], result, dot);
        const float d = weight * g[c];
        if constexpr (kTwo) d_value[c] = d * y.value;
        f[c] = weight * result;
        g[c] = d * y.slope * (kTwo ? v[c] : 1.0f);
      }
      store_floats(a.d_pre + pre_at + p * kPack, g);
      if constexpr (kTwo) store_floats(a.d_pre + pre_at + a.width + p * kPack, d_value);
      if (a.again) store_floats(a.again + at + p * kPack, f);
    }
  }
  if (!a.d_weight) return;
  dot = lane_sum(dot);
  if (lane == 0) a.d_weight[row] = dot;
}

// Calls run(kind) with a compile-time constant.
template <class Run>
void with_kind(ActivationKind kind, int width, Run run) {
  using K = ActivationKind;
  SWITCHYARD_ASSERT(width % kPack == 0, "the activation needs a width that is a multiple of 8");
  switch (kind) {
    case K::kRelu2:
      return run(std::integral_constant<K, K::kRelu2>());
    case K::kGelu:
      return run(std::integral_constant<K, K::kGelu>());
    case K::kSwiglu:
      return run(std::integral_constant<K, K::kSwiglu>());
    case K::kGeglu:
      return run(std::integral_constant<K, K::kGeglu>());
  }
}

}  // namespace

template <class T>
void activation(const Activation<T>& a, Stream stream) {
  if (a.rows == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.rows, kRows));
  with_kind(a.kind, a.width,
            [&](auto kind) { activation_kernel<T, decltype(kind)::value><<<blocks, kThreads, 0, stream>>>(a); });
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void activation_backward(const ActivationBackward<T>& a, Stream stream) {
  if (a.rows == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.rows, kRows));
  with_kind(a.kind, a.width, [&](auto kind) {
    activation_backward_kernel<T, decltype(kind)::value><<<blocks, kThreads, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
}

template void activation(const Activation<bf16>&, Stream);
template void activation(const Activation<float>&, Stream);
template void activation_backward(const ActivationBackward<bf16>&, Stream);
template void activation_backward(const ActivationBackward<float>&, Stream);

}  // namespace switchyard::kernels
