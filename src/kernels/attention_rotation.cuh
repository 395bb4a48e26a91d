// Of kernels/attention_backward.cu: the gradient's way back through the norm and rotation of queries and keys.
#pragma once

#include "kernels/attention_tiles.cuh"

namespace switchyard::kernels::attention {

// d = inverse (d - y <d, y> / C) for this thread's two rows, y where they are in shared memory.
__device__ __forceinline__ void through_norm(Sums& d, const float (&inverse)[2], const Place& place, std::uint32_t at) {
  Operand y;
#pragma unroll
  for (int step = 0; step < 4; ++step) hopper::load_matrices(at + place.square(step), y[step]);
  float along[2] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float low, high;
    unpack_two(y[i / 4][i % 4], low, high);
    along[i % 2] = fmaf(d[2 * i], low, fmaf(d[2 * i + 1], high, along[i % 2]));
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) along[half] = lane_sum<4>(along[half]) / kChannels;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float low, high;
    unpack_two(y[i / 4][i % 4], low, high);
    d[2 * i] = inverse[i % 2] * fmaf(-along[i % 2], low, d[2 * i]);
    d[2 * i + 1] = inverse[i % 2] * fmaf(-along[i % 2], high, d[2 * i + 1]);
  }
}

__device__ __forceinline__ void turn_pair_back(float& low, float& high, float cos, float sin) {
  const float first = low;
  low = fmaf(first, cos, -high * sin);
  high = fmaf(high, cos, first * sin);
}

// The gradient of 64 rows of a head from `first` on becomes that of what qkv_rope() read, as by qkv_rope_backward();
// y: the rows in shared memory; head: of queries and keys.
__device__ __forceinline__ void turn_back(Sums& d, const Problem& p, const Place& place, std::uint32_t y, int sequence,
                                          int head, int first) {
  if (!p.cos) return;
  int token[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) token[half] = min(first + place.row(half), p.seq_len - 1);
  if (p.inverse_rms) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      inverse[half] =
          p.inverse_rms[(static_cast<std::int64_t>(sequence) * p.seq_len + token[half]) * (p.heads + p.kv_heads) +
                        head];
    through_norm(d, inverse, place, y);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = token[half] * (kChannels / 2) + 2 * place.q;
    float2 cos[4], sin[4];  // of channels 8 n + 2 q and the next, as of those 32 behind them
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      cos[n] = *reinterpret_cast<const float2*>(p.cos + at + 8 * n);
      sin[n] = *reinterpret_cast<const float2*>(p.sin + at + 8 * n);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int i = 4 * n + 2 * half;
      turn_pair_back(d[i], d[i + 16], cos[n].x, sin[n].x);
      turn_pair_back(d[i + 1], d[i + 17], cos[n].y, sin[n].y);
    }
  }
}

}  // namespace switchyard::kernels::attention
