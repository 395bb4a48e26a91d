// One warp a token. A head is C/16 lanes wide (rounded up to a power of two): each lane holds eight channels of the
// first half and the eight it rotates them with, so cos and sin are read once a token and serve every head. Several
// heads are loaded before the first is used.
#include "kernels/cuda_check.h"
#include "kernels/qkv_rope.h"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kTokens = 8;  // a block: one a warp
constexpr int kThreads = kTokens * kWarp;
constexpr int kHeadBatch = 3;  // heads in flight a lane group, forward
constexpr int kPairBatch = 2;  // where each head brings a second tensor

// Eight channels of both halves of a head.
template <class T>
struct Halves {
  Pack<T> low, high;

  __device__ __forceinline__ void load(bool there, const T* p, int half) {
    low = load_pack_if(there, p);
    high = load_pack_if(there, p + half);
  }
  __device__ __forceinline__ void to_floats(float (&a)[kPack], float (&b)[kPack]) const {
    unpack(low, a);
    unpack(high, b);
  }
};
template <class T>
__device__ __forceinline__ void store_halves(T* p, int half, const float (&a)[kPack], const float (&b)[kPack]) {
  store_floats(p, a);
  store_floats(p + half, b);
}

// Which token, head and channels this lane works on; `there` is false for lanes beyond a head's channels.
template <int kLanes>
struct Place {
  static constexpr int kHeads = kWarp / kLanes;  // heads a warp handles at once
  std::int64_t token;
  int slot, channel;
  bool there;

  __device__ __forceinline__ explicit Place(int head_dim) {
    const int lane = threadIdx.x % kWarp;
    token = static_cast<std::int64_t>(blockIdx.x) * kTokens + threadIdx.x / kWarp;
    slot = lane / kLanes;
    channel = lane % kLanes * kPack;
    there = channel < head_dim / 2;
  }
};

struct Rotation {
  float cos[kPack], sin[kPack];

  __device__ __forceinline__ Rotation(const float* cos_table, const float* sin_table, std::int64_t token, int seq_len,
                                      int half, int channel, bool there) {
    const auto position = static_cast<unsigned>(token) % static_cast<unsigned>(seq_len);
    const std::int64_t at = static_cast<std::int64_t>(position) * half + channel;
    unpack(load_pack_if(there, cos_table + at), cos);
    unpack(load_pack_if(there, sin_table + at), sin);
  }
  __device__ __forceinline__ void turn(float (&a)[kPack], float (&b)[kPack]) const {
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      const float low = a[c];
      a[c] = fmaf(low, cos[c], b[c] * sin[c]);
      b[c] = fmaf(b[c], cos[c], -low * sin[c]);
    }
  }
  __device__ __forceinline__ void turn_back(float (&a)[kPack], float (&b)[kPack]) const {
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      const float low = a[c];
      a[c] = fmaf(low, cos[c], -b[c] * sin[c]);
      b[c] = fmaf(b[c], cos[c], low * sin[c]);
    }
  }
};

template <int kLanes>
__device__ __forceinline__ float head_dot(const float (&a)[kPack], const float (&b)[kPack], const float (&x)[kPack],
                                          const float (&y)[kPack]) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kPack; ++c) sum = fmaf(a[c], x[c], fmaf(b[c], y[c], sum));
  return lane_sum<kLanes>(sum);
}

__device__ __forceinline__ void scale_halves(float (&a)[kPack], float (&b)[kPack], float factor) {
#pragma unroll
  for (int c = 0; c < kPack; ++c) a[c] *= factor, b[c] *= factor;
}

// 2 sigmoid(gate); its derivative is gate * (1 - gate / 2).
template <class T>
__device__ __forceinline__ float open_gate(const T& logit) {
  return 2.0f / (1.0f + expf(-to_float(logit)));
}

// Head h of the H query heads and KV key heads, in their two tensors.
template <class T>
__device__ __forceinline__ T* head_of(T* q, T* k, std::int64_t token, int h, int heads, int kv_heads, int head_dim) {
  return h < heads ? q + (token * heads + h) * head_dim : k + (token * kv_heads + h - heads) * head_dim;
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 3 : 2) qkv_rope_kernel(QkvRope<T> a) {
  const Place<kLanes> at(a.head_dim);
  if (at.token >= a.tokens) return;
  const int half = a.head_dim / 2, rotated = a.heads + a.kv_heads;
  const T* row = a.qkv + at.token * (rotated + a.kv_heads) * a.head_dim + at.channel;
  const Rotation rotation(a.cos, a.sin, at.token, a.seq_len, half, at.channel, at.there);

  for (int base = 0; base < rotated; base += kHeadBatch * at.kHeads) {
    Halves<T> in[kHeadBatch];
#pragma unroll
    for (int i = 0; i < kHeadBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      in[i].load(at.there && h < rotated, row + h * a.head_dim, half);
    }
#pragma unroll
    for (int i = 0; i < kHeadBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      float low[kPack], high[kPack];
      in[i].to_floats(low, high);
      if (a.norm) {
        const float squares = head_dot<kLanes>(low, high, low, high);
        scale_halves(low, high, rsqrtf(squares / static_cast<float>(a.head_dim) + a.eps));
      }
      rotation.turn(low, high);
      if (!at.there || h >= rotated) continue;
      store_halves(head_of(a.q, a.k, at.token, h, a.heads, a.kv_heads, a.head_dim) + at.channel, half, low, high);
    }
  }

  for (int base = 0; a.v && base < a.kv_heads; base += kPairBatch * at.kHeads) {
    Halves<T> in[kPairBatch], value[kPairBatch];
    float gate[kPairBatch];
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      const bool there = at.there && j < a.kv_heads;
      const std::int64_t head = at.token * a.kv_heads + j;
      in[i].load(there, row + (rotated + j) * a.head_dim, half);
      value[i].load(there && a.value, a.value + head * a.head_dim + at.channel, half);
      gate[i] = there && a.value ? open_gate(a.gate[head]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      if (!at.there || j >= a.kv_heads) continue;
      float low[kPack], high[kPack], value_low[kPack], value_high[kPack];
      in[i].to_floats(low, high);
      value[i].to_floats(value_low, value_high);
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        low[c] = fmaf(gate[i], value_low[c], low[c]);
        high[c] = fmaf(gate[i], value_high[c], high[c]);
      }
      store_halves(a.v + (at.token * a.kv_heads + j) * a.head_dim + at.channel, half, low, high);
    }
  }
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) qkv_rope_backward_kernel(QkvRopeBackward<T> a) {
  const Place<kLanes> at(a.head_dim);
  if (at.token >= a.tokens) return;
  const int half = a.head_dim / 2, rotated = a.heads + a.kv_heads;
  const std::int64_t row = at.token * (rotated + a.kv_heads) * a.head_dim + at.channel;
  const Rotation rotation(a.cos, a.sin, at.token, a.seq_len, half, at.channel, at.there);

  for (int base = 0; base < rotated; base += kPairBatch * at.kHeads) {
    Halves<T> in[kPairBatch], d_out[kPairBatch];
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      const bool there = at.there && h < rotated;
      in[i].load(there && a.norm, a.qkv + row + h * a.head_dim, half);
      d_out[i].load(there, head_of(a.d_q, a.d_k, at.token, h, a.heads, a.kv_heads, a.head_dim) + at.channel, half);
    }
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      float d_low[kPack], d_high[kPack];
      d_out[i].to_floats(d_low, d_high);
      rotation.turn_back(d_low, d_high);
      if (a.norm) {
        float low[kPack], high[kPack];
        in[i].to_floats(low, high);
        const float inverse = rsqrtf(head_dot<kLanes>(low, high, low, high) / static_cast<float>(a.head_dim) + a.eps);
        scale_halves(low, high, inverse);
        const float along = head_dot<kLanes>(low, high, d_low, d_high) / static_cast<float>(a.head_dim);
#pragma unroll
        for (int c = 0; c < kPack; ++c) {
          d_low[c] = inverse * fmaf(-along, low[c], d_low[c]);
          d_high[c] = inverse * fmaf(-along, high[c], d_high[c]);
        }
      }
      if (at.there && h < rotated) store_halves(a.d_qkv + row + h * a.head_dim, half, d_low, d_high);
    }
  }

  for (int base = 0; base < a.kv_heads; base += kPairBatch * at.kHeads) {
    Halves<T> d_out[kPairBatch], value[kPairBatch];
    float gate[kPairBatch];
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      const bool there = at.there && j < a.kv_heads;
      const std::int64_t head = at.token * a.kv_heads + j;
      d_out[i].load(there, a.d_v + head * a.head_dim + at.channel, half);
      value[i].load(there && a.value, a.value + head * a.head_dim + at.channel, half);
      gate[i] = there && a.value ? open_gate(a.gate[head]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      const bool there = at.there && j < a.kv_heads;
      float low[kPack], high[kPack], value_low[kPack], value_high[kPack];
      d_out[i].to_floats(low, high);
      if (there) store_halves(a.d_qkv + row + (rotated + j) * a.head_dim, half, low, high);
      if (!a.value) continue;
      value[i].to_floats(value_low, value_high);
      const float dot = head_dot<kLanes>(low, high, value_low, value_high);
      if (!there) continue;
      const std::int64_t head = at.token * a.kv_heads + j;
      scale_halves(low, high, gate[i]);
      store_halves(a.d_value + head * a.head_dim + at.channel, half, low, high);
      if (at.channel == 0) from_float(gate[i] * (1.0f - 0.5f * gate[i]) * dot, a.d_gate[head]);
    }
  }
}

// Calls run(lanes a head) with a compile-time constant.
template <class Run>
void with_lanes(int head_dim, Run run) {
  SWITCHYARD_ASSERT(head_dim % 16 == 0 && head_dim > 0 && head_dim <= 256,
                    "qkv_rope needs a head_dim that is a multiple of 16, up to 256");
  if (head_dim <= 16) return run(std::integral_constant<int, 1>());
  if (head_dim <= 32) return run(std::integral_constant<int, 2>());
  if (head_dim <= 64) return run(std::integral_constant<int, 4>());
  if (head_dim <= 128) return run(std::integral_constant<int, 8>());
  run(std::integral_constant<int, 16>());
}

}  // namespace

template <class T>
void qkv_rope(const QkvRope<T>& a, Stream stream) {
  if (a.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kTokens));
  with_lanes(a.head_dim,
             [&](auto lanes) { qkv_rope_kernel<T, decltype(lanes)::value><<<blocks, kThreads, 0, stream>>>(a); });
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void qkv_rope_backward(const QkvRopeBackward<T>& a, Stream stream) {
  if (a.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kTokens));
  with_lanes(a.head_dim, [&](auto lanes) {
    qkv_rope_backward_kernel<T, decltype(lanes)::value><<<blocks, kThreads, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
}

template void qkv_rope(const QkvRope<bf16>&, Stream);
template void qkv_rope(const QkvRope<float>&, Stream);
template void qkv_rope_backward(const QkvRopeBackward<bf16>&, Stream);
template void qkv_rope_backward(const QkvRopeBackward<float>&, Stream);

}  // namespace switchyard::kernels
