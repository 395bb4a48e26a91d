// Two forms. Rows of bf16 that fit in a block's registers (up to 32768 logits) are read once and written once: the bulk
// copy engine, which GPUs have from capability 9.0 on, brings the next rows into shared memory while a block works on
// one. Others are read twice.
//
// With u = 1 / (e^(2 logit / cap) + 1):   z = cap - 2 cap u,   dz/dlogit = 4 u (1 - u).
// exp and reciprocal are the hardware's approximations (2 ulp and 1 ulp), so z is off by at most 4e-7 cap. Three of
// them an element is what the special function units sustain at memory speed.
#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/cuda_check.h"
#include "kernels/device.h"
#include "kernels/device_limits.h"
#include "kernels/hopper.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kSafeCap = 40.0f;  // e^(-2 cap) is a normal float: z - cap needs no maximum

// What the exponent is linear in: u of the cap, or the logit itself. exponent() is log2 of e^(z - shift).
template <bool kCapped>
struct Curve {
  float inner, slope, offset = 0;  // exponent = slope * place - offset

  __device__ __forceinline__ explicit Curve(float cap)
      : inner(kCapped ? 2.0f * kLog2E / cap : 0.0f), slope(kCapped ? -2.0f * kLog2E * cap : kLog2E) {}
  __device__ __forceinline__ float place(float logit) const {
    return kCapped ? reciprocal_fast(exp2_fast(logit * inner) + 1.0f) : logit;
  }
  __device__ __forceinline__ void shift_to(float place_of_maximum) { offset = slope * place_of_maximum; }
  __device__ __forceinline__ float exponent(float place) const { return fmaf(slope, place, -offset); }
  static __device__ __forceinline__ float derivative(float place) {
    return kCapped ? 4.0f * fmaf(-place, place, place) : 1.0f;
  }
};

// ---- rows in registers ----

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPacks = 4;
constexpr int kMaxResident = kThreads * kPacks * kPack;
constexpr int kMinResident = 8192;  // shorter rows leave most of a block idle
constexpr int kMaxStages = 3;

// One barrier a call: the scratch of the call after next may be the same.
template <class Combine>
__device__ __forceinline__ float block_reduce(float v, float* scratch, Combine combine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(kAllLanes, v, step));
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = scratch[threadIdx.x % kWarp];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

__device__ __forceinline__ float row_maximum(const bf16* row, int packs, float* scratch) {
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int p = threadIdx.x + i * kThreads;
    if (p >= packs) break;
    float x[kPack];
    unpack(load_pack(row + p * kPack), x);
#pragma unroll
    for (int c = 0; c < kPack; ++c) most = fmaxf(most, x[c]);
  }
  return block_reduce(most, scratch, [](float a, float b) { return fmaxf(a, b); });
}

// A row whose gradient is e^(z - shift) dz/dlogit, which registers hold, times `factor`; but at its target.
struct Finished {
  int target;  // -1: zeros
  float factor, at_target;

  __device__ __forceinline__ void store(float (&weighted)[kPack], int p, bf16* out) const {
#pragma unroll
    for (int c = 0; c < kPack; ++c) weighted[c] = target >= 0 ? weighted[c] * factor : 0.0f;
    store_floats(out + p * kPack, weighted);
    if (target >= 0 && p == target / kPack) from_float(at_target, out[target]);  // after this thread's own pack
  }
};

// While a row is worked on, the one before leaves the same registers: special functions, of which three an element take
// three quarters of the time that memory does on an H200, never wait for stores.
template <bool kCapped>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(CrossEntropy<bf16> a, int stages) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char buffer[];
  __shared__ std::uint64_t full[kMaxStages];
  __shared__ float scratch[2][2][kWarps];
  const int packs = a.vocab / kPack;
  const unsigned bytes = a.vocab * sizeof(bf16);
  const bool needs_maximum = !kCapped || a.cap > kSafeCap;
  const auto load_row = [&](int stage, std::int64_t t) {
    const std::uint32_t barrier = hopper::smem_address(&full[stage]);
    hopper::barrier_expect(barrier, bytes);
    hopper::load_bytes(hopper::smem_address(buffer + stage * bytes), a.logits + t * a.vocab, bytes, barrier);
  };

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) hopper::barrier_init(hopper::smem_address(&full[stage]), 1);
    hopper::async_proxy_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      const std::int64_t t = blockIdx.x + static_cast<std::int64_t>(stage) * gridDim.x;
      if (t < a.tokens) load_row(stage, t);
    }
  }

  const int tokens = static_cast<int>(a.tokens);
  float weighted[kPacks][kPack];
  Finished before;
  for (int turn = 0;; ++turn) {
    const int t = blockIdx.x + turn * gridDim.x, stage = turn % stages;
    const bool there = t < tokens;
    const bool writes = turn > 0 && a.gradient;
    const bf16* row = reinterpret_cast<const bf16*>(buffer + stage * bytes);
    bf16* out = a.logits + static_cast<std::int64_t>(t - static_cast<int>(gridDim.x)) * a.vocab;  // of the row before
    const int target = there ? static_cast<int>(a.target[t]) : -1;  // first read when the row has been worked through
    Curve<kCapped> curve(a.cap);
    float sum = 0;
    if (there) {
      hopper::barrier_wait(hopper::smem_address(&full[stage]), turn / stages & 1);
      if (needs_maximum) curve.shift_to(curve.place(row_maximum(row, packs, scratch[turn & 1][0])));
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int p = threadIdx.x + i * kThreads;
      if (p >= packs) break;
      if (writes) before.store(weighted[i], p, out);
      if (!there) continue;
      float x[kPack], part = 0;
      unpack(load_pack(row + p * kPack), x);
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const float place = curve.place(x[c]);
        const float e = exp2_fast(curve.exponent(place));
        part += e;
        weighted[i][c] = e * curve.derivative(place);
      }
      sum += part;
    }
    if (!there) break;
    const float target_place = curve.place(target >= 0 ? to_float(row[target]) : 0.0f);
    sum = block_reduce(sum, scratch[turn & 1][1], [](float x, float y) { return x + y; });

    // Everybody has passed the barrier, so nobody reads this stage any more.
    const std::int64_t next = t + static_cast<std::int64_t>(stages) * gridDim.x;
    if (threadIdx.x == 0 && next < tokens) load_row(stage, next);

    const float target_exponent = curve.exponent(target_place);
    if (threadIdx.x == 0) a.nll[t] = target >= 0 ? logf(sum) - target_exponent / kLog2E : 0.0f;
    before = {target, a.grad_scale / sum,
              a.grad_scale * curve.derivative(target_place) * (exp2_fast(target_exponent) / sum - 1.0f)};
  }
#endif
}

// ---- any row ----

struct Online {
  float maximum = -INFINITY, sum = 0;  // of exponents (base 2); sum of 2^(exponent - maximum)

  __device__ __forceinline__ void add(float other_maximum, float other_sum) {
    const float most = fmaxf(maximum, other_maximum);
    if (most == -INFINITY) return;
    sum = sum * exp2_fast(maximum - most) + other_sum * exp2_fast(other_maximum - most);
    maximum = most;
  }
};

template <class T, bool kCapped, int kBlock>
__global__ void __launch_bounds__(kBlock) reread_kernel(CrossEntropy<T> a) {
  __shared__ Online warp_part[kBlock / kWarp];
  const std::int64_t t = blockIdx.x;
  const int packs = a.vocab / kPack, target = static_cast<int>(a.target[t]);
  T* row = a.logits + t * a.vocab;
  const Curve<kCapped> curve(a.cap);
  const float target_place = curve.place(target >= 0 ? to_float(row[target]) : 0.0f);

  Online part;
#pragma unroll 2
  for (int p = threadIdx.x; p < packs; p += kBlock) {
    float x[kPack], most = -INFINITY, sum = 0;
    unpack(load_pack(row + p * kPack), x);
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      x[c] = curve.exponent(curve.place(x[c]));
      most = fmaxf(most, x[c]);
    }
    if (most == -INFINITY) continue;
#pragma unroll
    for (int c = 0; c < kPack; ++c) sum += exp2_fast(x[c] - most);
    part.add(most, sum);
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    part.add(__shfl_xor_sync(kAllLanes, part.maximum, step), __shfl_xor_sync(kAllLanes, part.sum, step));
  if (threadIdx.x % kWarp == 0)
    warp_part[threadIdx.x / kWarp].maximum = part.maximum, warp_part[threadIdx.x / kWarp].sum = part.sum;
  __syncthreads();  // also: every thread has read the target's logit before any writes gradients
  Online all;
  for (int warp = 0; warp < kBlock / kWarp; ++warp) all.add(warp_part[warp].maximum, warp_part[warp].sum);

  const float target_exponent = curve.exponent(target_place) - all.maximum;
  if (threadIdx.x == 0) a.nll[t] = target >= 0 ? logf(all.sum) - target_exponent / kLog2E : 0.0f;
  if (!a.gradient) return;
  const float factor = a.grad_scale / all.sum;
#pragma unroll 2
  for (int p = threadIdx.x; p < packs; p += kBlock) {
    float x[kPack];
    unpack(load_pack(row + p * kPack), x);
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      const float place = curve.place(x[c]), probability = factor * exp2_fast(curve.exponent(place) - all.maximum);
      const float d = (p * kPack + c == target ? probability - a.grad_scale : probability) * curve.derivative(place);
      x[c] = target >= 0 ? d : 0.0f;
    }
    store_floats(row + p * kPack, x);
  }
}

template <class T, bool kCapped>
void launch_reread(const CrossEntropy<T>& a, Stream stream) {
  const auto blocks = static_cast<unsigned>(a.tokens);
  if (a.vocab <= 4096)
    reread_kernel<T, kCapped, 128><<<blocks, 128, 0, stream>>>(a);
  else
    reread_kernel<T, kCapped, 512><<<blocks, 512, 0, stream>>>(a);
}

// What counts is what the code that runs was compiled for: PTX of 8.0 runs on any later GPU, without bulk copies.
template <bool kCapped>
bool resident_runs() {
  if (portable_kernels_forced()) return false;
  cudaFuncAttributes attributes;
  SWITCHYARD_CUDA(cudaFuncGetAttributes(&attributes, resident_kernel<kCapped>));
  return attributes.ptxVersion >= 90;
}

template <bool kCapped>
void launch_resident(const CrossEntropy<bf16>& a, Stream stream) {
  const int row = a.vocab * static_cast<int>(sizeof(bf16));
  const int stages = std::min(kMaxStages, (most_shared_memory() - 2048) / row);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(a.tokens, multiprocessors()));
  SWITCHYARD_CUDA(
      cudaFuncSetAttribute(resident_kernel<kCapped>, cudaFuncAttributeMaxDynamicSharedMemorySize, stages * row));
  resident_kernel<kCapped><<<blocks, kThreads, stages * row, stream>>>(a, stages);
}

}  // namespace

template <class T>
void cross_entropy(const CrossEntropy<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.vocab % kPack == 0, "cross_entropy needs a vocabulary that is a multiple of 8");
  SWITCHYARD_ASSERT(a.tokens <= 1 << 30, "cross_entropy takes a chunk of logits at a time");
  if (a.tokens == 0) return;
  const bool capped = a.cap > 0;
  if constexpr (sizeof(T) == sizeof(bf16)) {
    if (a.vocab >= kMinResident && a.vocab <= kMaxResident &&
        (capped ? resident_runs<true>() : resident_runs<false>())) {
      capped ? launch_resident<true>(a, stream) : launch_resident<false>(a, stream);
      SWITCHYARD_CUDA_LAUNCHED();
      return;
    }
  }
  capped ? launch_reread<T, true>(a, stream) : launch_reread<T, false>(a, stream);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void cross_entropy(const CrossEntropy<bf16>&, Stream);
template void cross_entropy(const CrossEntropy<float>&, Stream);

}  // namespace switchyard::kernels
