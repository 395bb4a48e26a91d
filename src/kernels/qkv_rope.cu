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
// In one store: between loads of the same buffer the compiler makes four of it.
__device__ __forceinline__ void store_whole(bf16* p, const float (&f)[kPack]) {
  Pack<bf16> v;
  pack(f, v);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.raw.x), "r"(v.raw.y), "r"(v.raw.z),
               "r"(v.raw.w)
               : "memory");
}
__device__ __forceinline__ void store_whole(float* p, const float (&f)[kPack]) { store_floats(p, f); }
template <class T>
__device__ __forceinline__ void store_halves(T* p, int half, const float (&a)[kPack], const float (&b)[kPack]) {
  store_whole(p, a);
  store_whole(p + half, b);
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

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 3 : 2) qkv_rope_kernel(QkvRope<T> a) {
  const QkvHeads& size = a.size;
  const Place<kLanes> at(size.head_dim);
  if (at.token >= size.tokens) return;
  const int half = size.head_dim / 2, rotated = size.rotated();
  const float share = 1.0f / static_cast<float>(size.head_dim);
  T* row = a.qkv + at.token * size.width() + at.channel;
  const Rotation rotation(a.cos, a.sin, at.token, size.seq_len, half, at.channel, at.there);

  for (int base = 0; base < rotated; base += kHeadBatch * at.kHeads) {
    Halves<T> in[kHeadBatch];
#pragma unroll
    for (int i = 0; i < kHeadBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      in[i].load(at.there && h < rotated, row + h * size.head_dim, half);
    }
#pragma unroll
    for (int i = 0; i < kHeadBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      const bool there = at.there && h < rotated;
      float low[kPack], high[kPack];
      in[i].to_floats(low, high);
      if (a.inverse_rms) {
        const float squares = head_dot<kLanes>(low, high, low, high);
        const float inverse = rsqrtf(fmaf(squares, share, a.eps));
        scale_halves(low, high, inverse);
        if (there && at.channel == 0) a.inverse_rms[at.token * rotated + h] = inverse;
      }
      rotation.turn(low, high);
      if (there) store_halves(row + h * size.head_dim, half, low, high);
    }
  }
}

// With y the result, of norm 1 / inverse before: d_in = inverse R' (d_y - y <d_y, y> / C).
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) qkv_rope_backward_kernel(QkvRopeBackward<T> a) {
  const QkvHeads& size = a.size;
  const Place<kLanes> at(size.head_dim);
  if (at.token >= size.tokens) return;
  const int half = size.head_dim / 2, rotated = size.rotated();
  const float share = 1.0f / static_cast<float>(size.head_dim);
  const std::int64_t row = at.token * size.width() + at.channel;
  const Rotation rotation(a.cos, a.sin, at.token, size.seq_len, half, at.channel, at.there);

  for (int base = 0; base < rotated; base += kPairBatch * at.kHeads) {
    Halves<T> out[kPairBatch], d_out[kPairBatch];
    float inverse[kPairBatch];
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      const bool there = at.there && h < rotated;
      out[i].load(there && a.inverse_rms, a.qkv + row + h * size.head_dim, half);
      d_out[i].load(there, a.d_qkv + row + h * size.head_dim, half);
      inverse[i] = there && a.inverse_rms ? a.inverse_rms[at.token * rotated + h] : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int h = base + i * at.kHeads + at.slot;
      float d_low[kPack], d_high[kPack];
      d_out[i].to_floats(d_low, d_high);
      if (a.inverse_rms) {
        float low[kPack], high[kPack];
        out[i].to_floats(low, high);
        const float along = head_dot<kLanes>(low, high, d_low, d_high) * share;
#pragma unroll
        for (int c = 0; c < kPack; ++c) {
          d_low[c] = inverse[i] * fmaf(-along, low[c], d_low[c]);
          d_high[c] = inverse[i] * fmaf(-along, high[c], d_high[c]);
        }
      }
      rotation.turn_back(d_low, d_high);
      if (at.there && h < rotated) store_halves(a.d_qkv + row + h * size.head_dim, half, d_low, d_high);
    }
  }
}

// What both directions read of a batch of value heads.
template <class T, int kLanes>
struct ValueHeads {
  Halves<T> in[kPairBatch], value[kPairBatch];
  float gate[kPairBatch];

  // From head `base` on; row: the token's first value, or its gradient, at this lane's channels.
  __device__ __forceinline__ void load(const Place<kLanes>& at, const QkvHeads& size, int base, const T* row,
                                       const T* values, const T* gates) {
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      const bool there = at.there && j < size.kv_heads;
      const std::int64_t head = at.token * size.kv_heads + j;
      in[i].load(there, row + j * size.head_dim, size.head_dim / 2);
      value[i].load(there, values + head * size.head_dim + at.channel, size.head_dim / 2);
      gate[i] = there ? open_gate(gates[head]) : 0.0f;
    }
  }
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) value_embeddings_kernel(ValueEmbeddings<T> a) {
  const QkvHeads& size = a.size;
  const Place<kLanes> at(size.head_dim);
  if (at.token >= size.tokens) return;
  T* row = a.qkv + at.token * size.width() + size.rotated() * size.head_dim + at.channel;
  for (int base = 0; base < size.kv_heads; base += kPairBatch * at.kHeads) {
    ValueHeads<T, kLanes> heads;
    heads.load(at, size, base, row, a.value, a.gate);
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      if (!at.there || j >= size.kv_heads) continue;
      float low[kPack], high[kPack], value_low[kPack], value_high[kPack];
      heads.in[i].to_floats(low, high);
      heads.value[i].to_floats(value_low, value_high);
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        low[c] = fmaf(heads.gate[i], value_low[c], low[c]);
        high[c] = fmaf(heads.gate[i], value_high[c], high[c]);
      }
      store_halves(row + j * size.head_dim, size.head_dim / 2, low, high);
    }
  }
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) value_embeddings_backward_kernel(ValueEmbeddingsBackward<T> a) {
  const QkvHeads& size = a.size;
  const Place<kLanes> at(size.head_dim);
  if (at.token >= size.tokens) return;
  const T* row = a.d_qkv + at.token * size.width() + size.rotated() * size.head_dim + at.channel;
  for (int base = 0; base < size.kv_heads; base += kPairBatch * at.kHeads) {
    ValueHeads<T, kLanes> heads;
    heads.load(at, size, base, row, a.value, a.gate);
#pragma unroll
    for (int i = 0; i < kPairBatch; ++i) {
      const int j = base + i * at.kHeads + at.slot;
      float low[kPack], high[kPack], value_low[kPack], value_high[kPack];
      heads.in[i].to_floats(low, high);
      heads.value[i].to_floats(value_low, value_high);
      const float dot = head_dot<kLanes>(low, high, value_low, value_high), gate = heads.gate[i];
      if (!at.there || j >= size.kv_heads) continue;
      const std::int64_t head = at.token * size.kv_heads + j;
      scale_halves(low, high, gate);
      store_halves(a.d_value + head * size.head_dim + at.channel, size.head_dim / 2, low, high);
      if (at.channel == 0) from_float(gate * (1.0f - 0.5f * gate) * dot, a.d_gate[head]);
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

// launch(blocks, lanes a head): one warp a token.
template <class Launch>
void for_tokens(const QkvHeads& size, Launch launch) {
  if (size.tokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(size.tokens, kTokens));
  with_lanes(size.head_dim, [&](auto lanes) { launch(blocks, lanes); });
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void qkv_rope(const QkvRope<T>& a, Stream stream) {
  for_tokens(a.size, [&](auto blocks, auto lanes) { qkv_rope_kernel<T, lanes()><<<blocks, kThreads, 0, stream>>>(a); });
}
template <class T>
void qkv_rope_backward(const QkvRopeBackward<T>& a, Stream stream) {
  for_tokens(a.size, [&](auto blocks, auto lanes) {
    qkv_rope_backward_kernel<T, lanes()><<<blocks, kThreads, 0, stream>>>(a);
  });
}
template <class T>
void value_embeddings(const ValueEmbeddings<T>& a, Stream stream) {
  for_tokens(a.size,
             [&](auto blocks, auto lanes) { value_embeddings_kernel<T, lanes()><<<blocks, kThreads, 0, stream>>>(a); });
}
template <class T>
void value_embeddings_backward(const ValueEmbeddingsBackward<T>& a, Stream stream) {
  for_tokens(a.size, [&](auto blocks, auto lanes) {
    value_embeddings_backward_kernel<T, lanes()><<<blocks, kThreads, 0, stream>>>(a);
  });
}

template void qkv_rope(const QkvRope<bf16>&, Stream);
template void qkv_rope(const QkvRope<float>&, Stream);
template void qkv_rope_backward(const QkvRopeBackward<bf16>&, Stream);
template void qkv_rope_backward(const QkvRopeBackward<float>&, Stream);
template void value_embeddings(const ValueEmbeddings<bf16>&, Stream);
template void value_embeddings(const ValueEmbeddings<float>&, Stream);
template void value_embeddings_backward(const ValueEmbeddingsBackward<bf16>&, Stream);
template void value_embeddings_backward(const ValueEmbeddingsBackward<float>&, Stream);

}  // namespace switchyard::kernels
