// The grid is (blocks of the longest range, ranges): about as many blocks as fit on the device at once, each adding up
// every gridDim.x-th piece of its range.
#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/step_guard.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kFour = 4;
constexpr int kBatch = 8;  // float4 a thread has in flight
constexpr int kPiece = kThreads * kFour * kBatch;
constexpr std::int64_t kMaxBlocks = 1056;
constexpr int kTotalThreads = 1024;

std::int64_t blocks_for(std::int64_t largest) {
  return std::clamp<std::int64_t>(ceil_div<std::int64_t>(largest, kPiece), 1, kMaxBlocks);
}

__global__ void __launch_bounds__(kThreads) squares_kernel(SumOfSquares a) {
  const SquareRange range = a.ranges[blockIdx.y];
  const bool vectors = reinterpret_cast<std::uintptr_t>(range.values) % 16 == 0;
  const std::int64_t fours = vectors ? range.count / kFour : 0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads * kBatch;
  float sum[kBatch] = {};
  for (std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kThreads * kBatch; begin < fours; begin += stride) {
    float4 v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::int64_t at = begin + i * kThreads + threadIdx.x;
      v[i] = at < fours ? reinterpret_cast<const float4*>(range.values)[at] : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      sum[i] = fmaf(v[i].x, v[i].x, fmaf(v[i].y, v[i].y, fmaf(v[i].z, v[i].z, fmaf(v[i].w, v[i].w, sum[i]))));
  }
  for (std::int64_t at = fours * kFour + static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       at < range.count; at += static_cast<std::int64_t>(gridDim.x) * kThreads)
    sum[0] = fmaf(range.values[at], range.values[at], sum[0]);
#pragma unroll
  for (int i = 1; i < kBatch; ++i) sum[0] += sum[i];
  const float total = row_sum<kThreads>(sum[0]);
  if (threadIdx.x == 0) a.parts[static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = total;
}

__global__ void __launch_bounds__(kTotalThreads) total_kernel(const float* parts, std::int64_t count, float* sum) {
  float own = 0;
  for (std::int64_t at = threadIdx.x; at < count; at += kTotalThreads) own += parts[at];
  const float total = row_sum<kTotalThreads>(own);
  if (threadIdx.x == 0) *sum = total;
}

__global__ void guard_kernel(StepGuard a) {
  const float norm = sqrtf(*a.sum_of_squares);
  const bool finite = isfinite(norm) && isfinite(*a.loss);
  *a.grad_norm = norm;
  *a.apply = finite;
  *a.applied += finite;
  *a.skipped += !finite;
  *a.skipped_in_a_row = finite ? 0 : *a.skipped_in_a_row + 1;
  if (a.clip_norm > 0) *a.grad_factor = fminf(a.clip_norm / (norm + 1e-6f), 1.0f);
}

}  // namespace

std::int64_t sum_of_squares_parts(int range_count, std::int64_t largest) { return range_count * blocks_for(largest); }

void sum_of_squares(const SumOfSquares& a, Stream stream) {
  SWITCHYARD_ASSERT(a.range_count > 0 && a.range_count <= 65535, "sum_of_squares takes 1 to 65535 ranges");
  const auto blocks = static_cast<unsigned>(blocks_for(a.largest));
  squares_kernel<<<dim3(blocks, a.range_count), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
  total_kernel<<<1, kTotalThreads, 0, stream>>>(a.parts, sum_of_squares_parts(a.range_count, a.largest), a.sum);
  SWITCHYARD_CUDA_LAUNCHED();
}

void step_guard(const StepGuard& a, Stream stream) {
  guard_kernel<<<1, 1, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels
