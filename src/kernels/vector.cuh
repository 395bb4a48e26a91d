// kernels/vector.cuh: eight channels at a time, in memory as T and in registers as float; sums over warps and rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/types.h"

namespace switchyard::kernels {

inline constexpr int kPack = 8;  // channels a pack: 16 bytes of bf16
inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Kept as loaded: a row that waits in registers costs half as many of them in bf16.
template <class T>
struct Pack;
template <>
struct Pack<bf16> {
  uint4 raw;
};
template <>
struct Pack<fp16> {
  uint4 raw;
};
template <>
struct Pack<float> {
  float4 low, high;
};

// Plain loads, not the read-only path: several kernels may be given the same buffer for input and output.
__device__ __forceinline__ Pack<bf16> load_pack(const bf16* p) { return {*reinterpret_cast<const uint4*>(p)}; }
__device__ __forceinline__ Pack<fp16> load_pack(const fp16* p) { return {*reinterpret_cast<const uint4*>(p)}; }
__device__ __forceinline__ Pack<float> load_pack(const float* p) {
  return {reinterpret_cast<const float4*>(p)[0], reinterpret_cast<const float4*>(p)[1]};
}
__device__ __forceinline__ void store_pack(bf16* p, const Pack<bf16>& v) { *reinterpret_cast<uint4*>(p) = v.raw; }
__device__ __forceinline__ void store_pack(fp16* p, const Pack<fp16>& v) { *reinterpret_cast<uint4*>(p) = v.raw; }
__device__ __forceinline__ void store_pack(float* p, const Pack<float>& v) {
  reinterpret_cast<float4*>(p)[0] = v.low;
  reinterpret_cast<float4*>(p)[1] = v.high;
}

__device__ __forceinline__ void set_zero(Pack<bf16>& v) { v.raw = make_uint4(0, 0, 0, 0); }
__device__ __forceinline__ void set_zero(Pack<fp16>& v) { v.raw = make_uint4(0, 0, 0, 0); }
__device__ __forceinline__ void set_zero(Pack<float>& v) { v.low = v.high = make_float4(0, 0, 0, 0); }

// The pack at p where `there`, else zeros.
template <class T>
__device__ __forceinline__ Pack<T> load_pack_if(bool there, const T* p) {
  Pack<T> v;
  set_zero(v);
  if (there) v = load_pack(p);
  return v;
}

__device__ __forceinline__ void unpack_two(unsigned raw, float& low, float& high) {
  low = __uint_as_float(raw << 16);
  high = __uint_as_float(raw & 0xffff0000u);
}
__device__ __forceinline__ unsigned pack_two(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&both);
}

__device__ __forceinline__ unsigned pack_halves(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&both);
}
__device__ __forceinline__ float2 unpack_halves(unsigned raw) {
  return __half22float2(*reinterpret_cast<const __half2*>(&raw));
}

__device__ __forceinline__ void unpack(const Pack<bf16>& v, float (&f)[kPack]) {
  unpack_two(v.raw.x, f[0], f[1]);
  unpack_two(v.raw.y, f[2], f[3]);
  unpack_two(v.raw.z, f[4], f[5]);
  unpack_two(v.raw.w, f[6], f[7]);
}
__device__ __forceinline__ void unpack(const Pack<fp16>& v, float (&f)[kPack]) {
  const unsigned raw[4] = {v.raw.x, v.raw.y, v.raw.z, v.raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack_halves(raw[i]);
    f[2 * i] = two.x, f[2 * i + 1] = two.y;
  }
}
__device__ __forceinline__ void unpack(const Pack<float>& v, float (&f)[kPack]) {
  f[0] = v.low.x, f[1] = v.low.y, f[2] = v.low.z, f[3] = v.low.w;
  f[4] = v.high.x, f[5] = v.high.y, f[6] = v.high.z, f[7] = v.high.w;
}
__device__ __forceinline__ void pack(const float (&f)[kPack], Pack<bf16>& v) {
  v.raw = make_uint4(pack_two(f[0], f[1]), pack_two(f[2], f[3]), pack_two(f[4], f[5]), pack_two(f[6], f[7]));
}
__device__ __forceinline__ void pack(const float (&f)[kPack], Pack<fp16>& v) {
  v.raw =
      make_uint4(pack_halves(f[0], f[1]), pack_halves(f[2], f[3]), pack_halves(f[4], f[5]), pack_halves(f[6], f[7]));
}
__device__ __forceinline__ void pack(const float (&f)[kPack], Pack<float>& v) {
  v.low = make_float4(f[0], f[1], f[2], f[3]);
  v.high = make_float4(f[4], f[5], f[6], f[7]);
}
template <class T>
__device__ __forceinline__ void store_floats(T* p, const float (&f)[kPack]) {
  Pack<T> v;
  pack(f, v);
  store_pack(p, v);
}

__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
__device__ __forceinline__ float to_float(fp16 v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ void from_float(float f, bf16& v) { v.bits = __bfloat16_as_ushort(__float2bfloat16_rn(f)); }
__device__ __forceinline__ void from_float(float f, fp16& v) { v.bits = __half_as_ushort(__float2half_rn(f)); }
__device__ __forceinline__ void from_float(float f, float& v) { v = f; }

// By the special function unit alone, within 2 ulp; denormals count as zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sqrt_fast(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Sum over groups of kLanes neighbouring lanes (a power of two), the same in each of them; all 32 lanes call it.
template <int kLanes = kWarp>
__device__ __forceinline__ float lane_sum(float v) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// Sum over the kThreads threads that share a row: one warp, or the whole block.
template <int kThreads>
__device__ __forceinline__ float row_sum(float v) {
  v = lane_sum(v);
  if constexpr (kThreads > kWarp) {
    __shared__ float warp_total[kThreads / kWarp];
    __syncthreads();  // the previous call's readers are done
    if (threadIdx.x % kWarp == 0) warp_total[threadIdx.x / kWarp] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int warp = 0; warp < kThreads / kWarp; ++warp) v += warp_total[warp];
  }
  return v;
}

template <class Int>
constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

}  // namespace switchyard::kernels
