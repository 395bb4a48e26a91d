// The grid is (chunks of the largest tensor, tensors); a block takes every gridDim.x-th chunk of its tensor, so that
// small tensors beside large ones cost no more than blocks that leave at once.
#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/cuda_check.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kFour = 4;
constexpr int kBatch = 2;  // float4 a thread and tensor in flight: eight loads
constexpr int kChunk = kThreads * kFour * kBatch;
constexpr std::int64_t kMaxChunks = 1056;

struct Factors {
  float grad, beta1, beta2, first_correction, second_correction, lr, decay, eps;
};

__device__ __forceinline__ void update(const Factors& f, float g, float& w, float& m, float& v) {
  g *= f.grad;
  m = fmaf(f.beta1, m, (1.0f - f.beta1) * g);
  v = fmaf(f.beta2, v, (1.0f - f.beta2) * g * g);
  w -= f.lr * (m * f.first_correction / (sqrtf(v * f.second_correction) + f.eps) + f.decay * w);
}

__device__ __forceinline__ bool aligned(const void* p, unsigned bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

__device__ __forceinline__ void update_fours(const AdamwTensor& a, const Factors& f, std::int64_t begin,
                                             std::int64_t end) {
  float4 g[kBatch], w[kBatch], m[kBatch], v[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t at = begin + (i * kThreads + threadIdx.x) * kFour;
    if (at >= end) break;
    g[i] = *reinterpret_cast<const float4*>(a.grad + at);
    w[i] = *reinterpret_cast<const float4*>(a.weight + at);
    m[i] = *reinterpret_cast<const float4*>(a.first + at);
    v[i] = *reinterpret_cast<const float4*>(a.second + at);
  }
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const std::int64_t at = begin + (i * kThreads + threadIdx.x) * kFour;
    if (at >= end) break;
    update(f, g[i].x, w[i].x, m[i].x, v[i].x);
    update(f, g[i].y, w[i].y, m[i].y, v[i].y);
    update(f, g[i].z, w[i].z, m[i].z, v[i].z);
    update(f, g[i].w, w[i].w, m[i].w, v[i].w);
    *reinterpret_cast<float4*>(a.weight + at) = w[i];
    *reinterpret_cast<float4*>(a.first + at) = m[i];
    *reinterpret_cast<float4*>(a.second + at) = v[i];
    if (a.copy) *reinterpret_cast<uint2*>(a.copy + at) = make_uint2(pack_two(w[i].x, w[i].y), pack_two(w[i].z, w[i].w));
  }
}

__device__ __forceinline__ void update_one(const AdamwTensor& a, const Factors& f, std::int64_t at) {
  float w = a.weight[at], m = a.first[at], v = a.second[at];
  update(f, a.grad[at], w, m, v);
  a.weight[at] = w, a.first[at] = m, a.second[at] = v;
  if (a.copy) from_float(w, a.copy[at]);
}

__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamwStep a) {
  if (*a.apply == 0) return;
  const AdamwTensor tensor = a.tensors[blockIdx.y];
  if (static_cast<std::int64_t>(blockIdx.x) * kChunk >= tensor.count) return;
  const float n = static_cast<float>(*a.applied);
  // 1 - b^n without cancellation; b = 0 gives 1.
  const Factors f{*a.grad_factor,
                  tensor.beta1,
                  a.beta2,
                  -1.0f / expm1f(n * logf(tensor.beta1)),
                  -1.0f / expm1f(n * logf(a.beta2)),
                  tensor.lr * *a.schedule,
                  tensor.weight_decay,
                  a.eps};
  const bool vectors = aligned(tensor.weight, 16) && aligned(tensor.grad, 16) && aligned(tensor.first, 16) &&
                       aligned(tensor.second, 16) && aligned(tensor.copy, 8);
  const std::int64_t fours = vectors ? tensor.count / kFour * kFour : 0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kChunk;
  for (std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kChunk; begin < tensor.count; begin += stride) {
    const std::int64_t end = min(begin + kChunk, tensor.count);
    update_fours(tensor, f, begin, min(end, fours));
    for (std::int64_t at = max(begin, fours) + threadIdx.x; at < end; at += kThreads) update_one(tensor, f, at);
  }
}

}  // namespace

void adamw(const AdamwStep& a, Stream stream) {
  if (a.tensor_count == 0 || a.largest == 0) return;
  SWITCHYARD_ASSERT(a.tensor_count <= 65535, "adamw takes up to 65535 tensors a launch");
  const auto chunks = static_cast<unsigned>(std::min(ceil_div<std::int64_t>(a.largest, kChunk), kMaxChunks));
  adamw_kernel<<<dim3(chunks, a.tensor_count), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
