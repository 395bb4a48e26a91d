// One warp a token. Most tokens have no such assignment and are left at once, so the cost follows the tokens that do: x
// and out of those alone cross memory. Rows are read again from the caches rather than kept: constants need a second
// look at x. Sums over tokens go through partial sums, in a fixed order.
#include <algorithm>

#include "kernels/column_sums.cuh"
#include "kernels/cuda_check.h"
#include "kernels/vector.cuh"
#include "kernels/zero_experts.h"

namespace switchyard::kernels {
namespace {

constexpr int kRows = 8;  // warps a block
constexpr int kThreads = kRows * kWarp;
constexpr int kPartials = 128;            // blocks over tokens of the sums, at most
constexpr int kChannels = kWarp * kPack;  // of a block of the sums

// A token's assignments, lane k holding the k-th.
struct Assignments {
  int kind = kNoZeroExpert;
  float weight = 0;

  template <class Work>
  __device__ __forceinline__ Assignments(const Work& a, std::int64_t t, int lane) {
    if (lane >= a.top_k) return;
    kind = zero_expert(a.choice, t * a.top_k + lane);
    if (kind != kNoZeroExpert) weight = a.weight[t * a.top_k + lane];
  }
  __device__ __forceinline__ bool none() const { return !__any_sync(kAllLanes, kind != kNoZeroExpert); }
  __device__ __forceinline__ float weight_of_copies() const { return lane_sum(kind == kCopy ? weight : 0.0f); }

  // Calls run(j, weight, lanes that chose it) once for each constant that the token chose, in the order of its slots.
  template <class Run>
  __device__ __forceinline__ void each_constant(Run run) const {
    unsigned left = __ballot_sync(kAllLanes, kind >= kConstant);
    while (left) {
      const int now = __shfl_sync(kAllLanes, kind, __ffs(left) - 1);
      const unsigned chose = __ballot_sync(kAllLanes, kind == now);
      run(now - kConstant, lane_sum(kind == now ? weight : 0.0f), chose);
      left &= ~chose;
    }
  }
};

// sum over the channels of what `term` makes of those at `channel`, the same in each lane.
template <class Term>
__device__ __forceinline__ float channel_sum(int width, int lane, Term term) {
  float sum = 0;
  for (int channel = lane * kPack; channel < width; channel += kChannels) sum += term(channel);
  return lane_sum(sum);
}

template <class T>
__device__ __forceinline__ void read(const T* from, float (&f)[kPack]) {
  unpack(load_pack(from), f);
}

__device__ __forceinline__ float dot(const float (&a)[kPack], const float (&b)[kPack]) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kPack; ++c) sum = fmaf(a[c], b[c], sum);
  return sum;
}

// a1 of softmax(W x): of the difference of the two logits alone.
template <class T>
__device__ __forceinline__ float share_of_x(const float* map, const T* x, int width, int lane) {
  return 1.0f / (1.0f + expf(channel_sum(width, lane, [&](int channel) {
                   float f[kPack], first[kPack], second[kPack];
                   read(x + channel, f), read(map + channel, first), read(map + width + channel, second);
#pragma unroll
                   for (int c = 0; c < kPack; ++c) second[c] -= first[c];
                   return dot(second, f);
                 })));
}

// to[t] += of_row row[t] + sum_j coefficient_j vector_j, lane i holding the i-th of `count` pairs of those.
template <class T, class Vector>
__device__ __forceinline__ void add_row(T* to, const T* row, float of_row, int width, int lane, int count,
                                        float coefficient, int constant, Vector vector) {
  for (int base = 0; base < width; base += kChannels) {
    const int channel = base + lane * kPack;
    const bool there = channel < width;
    float sum[kPack], f[kPack];
    unpack(load_pack_if(there, to + channel), sum);
    unpack(load_pack_if(there, row + channel), f);
#pragma unroll
    for (int c = 0; c < kPack; ++c) sum[c] = fmaf(of_row, f[c], sum[c]);
    for (int i = 0; i < count; ++i) {
      const float factor = __shfl_sync(kAllLanes, coefficient, i);
      const int j = __shfl_sync(kAllLanes, constant, i);
      if (!there) continue;
      vector(j, channel, f);
#pragma unroll
      for (int c = 0; c < kPack; ++c) sum[c] = fmaf(factor, f[c], sum[c]);
    }
    if (there) store_floats(to + channel, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) zero_experts_kernel(ZeroExperts<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, width = a.width;
  if (t >= a.tokens) return;
  const Assignments own(a, t, lane);
  if (own.none()) return;
  const T* x = a.x + t * width;
  float of_x = own.weight_of_copies(), of_vector = 0;
  int count = 0, constant = 0;
  own.each_constant([&](int j, float weight, unsigned) {
    const float share = share_of_x(a.map + static_cast<std::int64_t>(j) * 2 * width, x, width, lane);
    of_x = fmaf(weight, share, of_x);
    if (lane == count) of_vector = weight * (1.0f - share), constant = j;
    ++count;
  });
  add_row(a.out + t * width, x, of_x, width, lane, count, of_vector, constant,
          [&](int j, int channel, float(&f)[kPack]) {
            read(a.vector + static_cast<std::int64_t>(j) * width + channel, f);
          });
}

template <class T>
__global__ void __launch_bounds__(kThreads) zero_experts_backward_kernel(ZeroExpertsBackward<T> a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, width = a.width;
  if (t >= a.tokens) return;
  auto* coefficient = reinterpret_cast<float2*>(a.coefficient) + t;
  for (int j = lane; j < a.constants; j += kWarp) coefficient[j * a.tokens] = make_float2(0, 0);
  __syncwarp();  // one lane writes over another's zeros
  const Assignments own(a, t, lane);
  if (own.none()) return;
  const T *x = a.x + t * width, *dy = a.d_out + t * width;
  const float along_x = channel_sum(width, lane, [&](int channel) {
    float f[kPack], g[kPack];
    read(x + channel, f), read(dy + channel, g);
    return dot(f, g);
  });
  float of_dy = own.weight_of_copies(), d_weight = along_x, of_map = 0;
  int count = 0, constant = 0;
  own.each_constant([&](int j, float weight, unsigned chose) {
    const float share = share_of_x(a.map + static_cast<std::int64_t>(j) * 2 * width, x, width, lane);
    const float along_v = channel_sum(width, lane, [&](int channel) {
      float f[kPack], g[kPack];
      read(a.vector + static_cast<std::int64_t>(j) * width + channel, f), read(dy + channel, g);
      return dot(f, g);
    });
    const float d_logit = weight * share * (1.0f - share) * (along_x - along_v);
    of_dy = fmaf(weight, share, of_dy);
    if (chose >> lane & 1) d_weight = share * along_x + (1.0f - share) * along_v;
    if (lane == count) of_map = d_logit, constant = j;
    if (lane == 0) coefficient[j * a.tokens] = make_float2(d_logit, weight * (1.0f - share));
    ++count;
  });
  if (own.kind != kNoZeroExpert) a.d_weight[t * a.top_k + lane] = d_weight;
  add_row(a.d_x + t * width, dy, of_dy, width, lane, count, of_map, constant,
          [&](int j, int channel, float(&f)[kPack]) {
            const float* map = a.map + static_cast<std::int64_t>(j) * 2 * width + channel;
            float second[kPack];
            read(map, f), read(map + width, second);
#pragma unroll
            for (int c = 0; c < kPack; ++c) f[c] -= second[c];
          });
}

int partials_of(std::int64_t tokens) {
  return static_cast<int>(std::clamp<std::int64_t>(ceil_div<std::int64_t>(tokens, kThreads), 1, kPartials));
}

// Block (b, channels, j): a warp looks at 32 tokens at once and stops at those that chose j; a lane owns a pack.
template <class T>
__global__ void __launch_bounds__(kThreads) zero_expert_sums_kernel(ZeroExpertSums<T> a) {
  __shared__ float shared[kRows][2][kChannels];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, j = blockIdx.z;
  const int first_channel = blockIdx.y * kChannels, channel = first_channel + lane * kPack;
  const bool there = channel < a.width;
  const auto* coefficient = reinterpret_cast<const float2*>(a.coefficient) + static_cast<std::int64_t>(j) * a.tokens;
  float of_x[kPack] = {}, of_dy[kPack] = {};
  for (std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * kRows + warp) * kWarp; base < a.tokens;
       base += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const float2 own = base + lane < a.tokens ? coefficient[base + lane] : make_float2(0, 0);
    for (unsigned left = __ballot_sync(kAllLanes, own.x != 0 || own.y != 0); left; left &= left - 1) {
      const int at = __ffs(left) - 1;
      const float for_x = __shfl_sync(kAllLanes, own.x, at), for_dy = __shfl_sync(kAllLanes, own.y, at);
      const std::int64_t from = (base + at) * a.width + channel;
      float f[kPack], g[kPack];
      unpack(load_pack_if(there, a.x + from), f);
      unpack(load_pack_if(there, a.d_out + from), g);
#pragma unroll
      for (int c = 0; c < kPack; ++c) of_x[c] = fmaf(for_x, f[c], of_x[c]), of_dy[c] = fmaf(for_dy, g[c], of_dy[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < kPack; ++c)
    shared[warp][0][lane * kPack + c] = of_x[c], shared[warp][1][lane * kPack + c] = of_dy[c];
  __syncthreads();
  float* partial = a.scratch + (static_cast<std::int64_t>(blockIdx.x) * a.constants + j) * 2 * a.width;
  for (int i = threadIdx.x; i < 2 * kChannels; i += kThreads) {
    const int which = i / kChannels, c = i % kChannels;
    if (first_channel + c >= a.width) continue;
    float sum = 0;
    for (int w = 0; w < kRows; ++w) sum += shared[w][which][c];
    partial[which * a.width + first_channel + c] = sum;
  }
}

template <class T>
void check(const T& a) {
  SWITCHYARD_ASSERT(a.width % kPack == 0 && a.top_k <= kWarp,
                    "zero experts need a width that is a multiple of 8, and at most 32 experts a token");
}

unsigned blocks_for(std::int64_t tokens) { return static_cast<unsigned>(ceil_div<std::int64_t>(tokens, kRows)); }

}  // namespace

template <class T>
void zero_experts(const ZeroExperts<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  zero_experts_kernel<T><<<blocks_for(a.tokens), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void zero_experts_backward(const ZeroExpertsBackward<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  zero_experts_backward_kernel<T><<<blocks_for(a.tokens), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

std::int64_t zero_expert_scratch(std::int64_t tokens, int width, int constants) {
  return static_cast<std::int64_t>(partials_of(tokens)) * constants * 2 * width;
}

template <class T>
void zero_expert_sums(const ZeroExpertSums<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(a.width % kPack == 0, "zero experts need a width that is a multiple of 8");
  if (a.tokens == 0 || a.constants == 0) return;
  const int partials = partials_of(a.tokens);
  zero_expert_sums_kernel<T><<<dim3(partials, ceil_div(a.width, kChannels), a.constants), kThreads, 0, stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
  add_columns(a.scratch, partials, a.constants * 2 * a.width, a.sums, stream);
}

template void zero_experts(const ZeroExperts<bf16>&, Stream);
template void zero_experts(const ZeroExperts<float>&, Stream);
template void zero_experts_backward(const ZeroExpertsBackward<bf16>&, Stream);
template void zero_experts_backward(const ZeroExpertsBackward<float>&, Stream);
template void zero_expert_sums(const ZeroExpertSums<bf16>&, Stream);
template void zero_expert_sums(const ZeroExpertSums<float>&, Stream);

}  // namespace switchyard::kernels
