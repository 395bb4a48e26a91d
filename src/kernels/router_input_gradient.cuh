// kernels/router_input_gradient.cuh: the gradient of what a router read, d_x += d_logits W, where d_x holds that of its
// other readers; or, of one of them, the rows whose sum it is. Bound by reading and writing d_x, and by the rows.
#pragma once

#include "kernels/quad_rows.cuh"
#include "kernels/router_logits.h"
#include "kernels/router_weight.cuh"

namespace switchyard::kernels {

// How a product takes its weight. With few experts small blocks share a multiprocessor. Many experts' weight as terms
// fills its shared memory: one large block stages it once, then its warps run through the tokens without a barrier.
template <class T>
struct Shape {
  int threads, resident;
  bool whole;  // shared memory as large as there is
};

namespace input_gradient {

constexpr int kTokens = 16;  // of a warp, whose d_logits stay in registers

template <class T, int kSteps>
constexpr Shape<T> shape() {
  if (sizeof(T) == 4) return {256, 1, false};
  return kSteps == 1 ? Shape<T>{256, 2, false} : kSteps == 8 ? Shape<T>{384, 1, true} : Shape<T>{512, 1, true};
}

// d_logits of tokens `token` and `token` + 8 as the first operand, in terms.
template <class T, int kSteps>
__device__ __forceinline__ void load_given(const RouterLogitsBackward<T>& a, std::int64_t token, int expert0,
                                           unsigned (&given)[kSteps][kTerms<T>][4]) {
  const int q = threadIdx.x % kQuad;
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t t = token + 8 * (i % 2);
      const int e = expert0 + step * 16 + 8 * (i / 2) + 2 * q;
      const float* from = a.d_logits + t * a.experts + e;
      unsigned term[kTerms<T>];
      split(t < a.tokens && e < a.experts ? from[0] : 0.0f, t < a.tokens && e + 1 < a.experts ? from[1] : 0.0f, term);
#pragma unroll
      for (int j = 0; j < kTerms<T>; ++j) given[step][j][i] = term[j];
    }
}

// d_logits W in a block of 32 channels, of which `staged` is the weight: channel c of this lane's pack for token
// 8 i + its own at d[c / 2][2 i + c % 2].
template <class T, int kSteps>
__device__ __forceinline__ void multiply(const unsigned (&given)[kSteps][kTerms<T>][4], const uint4* staged,
                                         float (&d)[4][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int j = 0; j < kTerms<T>; ++j) {
      const uint4* at = staged + (step * kTerms<T> + j) * 2 * kWarp + threadIdx.x % kWarp;
      const uint4 front = at[0], back = at[kWarp];
#pragma unroll
      for (int i = 0; i + j < kTerms<T>; ++i) {
        mma(d[0], given[step][i], front.x, back.x);
        mma(d[1], given[step][i], front.y, back.y);
        mma(d[2], given[step][i], front.z, back.z);
        mma(d[3], given[step][i], front.w, back.w);
      }
    }
}

// For the channels of chunk blockIdx.y.
template <class T, int kSteps>
__global__ void __launch_bounds__(shape<T, kSteps>().threads, shape<T, kSteps>().resident)
    input_gradient_kernel(RouterLogitsBackward<T> a, int expert0, int chunk) {
  constexpr int kOf = kTerms<T>, kUnroll = sizeof(T) == 2 ? 4 : 2;
  extern __shared__ uint4 staged[];
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  const int block0 = blockIdx.y * chunk, blocks = min(chunk, blocks_of(a.width) - block0);
  stage_columns<kSteps, 2, kOf, sizeof(T) == 2 ? 4 : 1>(a.w, a.width, a.experts, expert0, block0, blocks, staged);
  __syncthreads();

  // Neighbouring tokens are other blocks': few tokens keep all blocks busy.
  for (std::int64_t tile = blockIdx.x + threadIdx.x / kWarp * gridDim.x; tile * kTokens < a.tokens;
       tile += gridDim.x * (blockDim.x / kWarp)) {
    const std::int64_t token = tile * kTokens + g;
    unsigned given[kSteps][kOf][4];
    load_given(a, token, expert0, given);

    for (int b = 0; b < blocks; b += kUnroll) {
      Pack<T> x[kUnroll][2];
      bool there[kUnroll][2];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int channel = (block0 + b + u) * kBlock + q * kPack;
          const std::int64_t t = token + 8 * i;
          there[u][i] = b + u < blocks && channel < a.width && t < a.tokens;
          x[u][i] = load_pack_if(there[u][i], a.d_x + t * a.width + channel);
        }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (b + u >= blocks) break;
        float d[4][4] = {};
        multiply<T>(given, staged + (b + u) * kSteps * kOf * 2 * kWarp, d);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (!there[u][i]) continue;
          float f[kPack];
          unpack(x[u][i], f);
#pragma unroll
          for (int c = 0; c < kPack; ++c) f[c] += d[c / 2][2 * i + c % 2];
          store_floats(a.d_x + (token + 8 * i) * a.width + (block0 + b + u) * kBlock + q * kPack, f);
        }
      }
    }
  }
}

// Rows k to k + 3 of two tokens at once, those of k in this lane's `index`, from a channel on.
template <class T>
__device__ __forceinline__ void load_rows(const T* from, int width, const int (&index)[2], const bool (&there)[2],
                                          Pack<T> (&v)[2][kQuad]) {
  int row[2][kQuad];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kQuad; ++j) row[i][j] = index_of_quad(index[i], j);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      v[i][j] = load_pack_if(row[i][j] >= 0 && there[i], from + static_cast<std::int64_t>(row[i][j]) * width);
}

// With rows, four of two tokens in flight in each lane; the products run while the first are on their way. The indices
// of eight rows stay in registers.
template <class T, int kSteps>
__global__ void __launch_bounds__(shape<T, kSteps>().threads, shape<T, kSteps>().resident)
    input_gradient_from_rows_kernel(RouterLogitsBackward<T> a, int expert0, int chunk, RowSum<T> of, bool overwrite) {
  constexpr int kOf = kTerms<T>;
  extern __shared__ uint4 staged[];
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  const int block0 = blockIdx.y * chunk, blocks = min(chunk, blocks_of(a.width) - block0);
  stage_columns<kSteps, 2, kOf, sizeof(T) == 2 ? 4 : 1>(a.w, a.width, a.experts, expert0, block0, blocks, staged);
  __syncthreads();

  for (std::int64_t tile = blockIdx.x + threadIdx.x / kWarp * gridDim.x; tile * kTokens < a.tokens;
       tile += gridDim.x * (blockDim.x / kWarp)) {
    const std::int64_t token = tile * kTokens + g;
    const bool real[2] = {token < a.tokens, token + 8 < a.tokens};
    const int first[2] = {quad_index(of, real[0], token), quad_index(of, real[1], token + 8)};
    const int second[2] = {quad_index(of, real[0], token, kQuad), quad_index(of, real[1], token + 8, kQuad)};
    unsigned given[kSteps][kOf][4];
    load_given(a, token, expert0, given);

    for (int b = 0; b < blocks; ++b) {
      const int channel = (block0 + b) * kBlock + q * kPack;
      const bool there[2] = {real[0] && channel < a.width, real[1] && channel < a.width};
      Pack<T> v[2][kQuad];
      load_rows(of.rows + channel, a.width, first, there, v);
      float d[4][4] = {}, sum[2][kPack] = {};
      multiply<T>(given, staged + b * kSteps * kOf * 2 * kWarp, d);
      for (int k = 0;;) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < kQuad; ++j) add_pack(v[i][j], sum[i]);
        k += kQuad;
        if (k >= of.top_k) break;
        const bool kept = k == kQuad;
        const int index[2] = {kept ? second[0] : quad_index(of, real[0], token, k),
                              kept ? second[1] : quad_index(of, real[1], token + 8, k)};
        load_rows(of.rows + channel, a.width, index, there, v);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!there[i]) continue;
        T* to = a.d_x + (token + 8 * i) * a.width + channel;
        if (!overwrite) add_pack(load_pack(to), sum[i]);
#pragma unroll
        for (int c = 0; c < kPack; ++c) sum[i][c] += d[c / 2][2 * i + c % 2];
        store_floats(to, sum[i]);
      }
    }
  }
}

}  // namespace input_gradient
}  // namespace switchyard::kernels
