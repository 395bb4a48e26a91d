// Bound by reading x once (forward), by reading and writing d_x and reading x (backward), also with many experts: the
// products run on the tensor cores. Fragments are laid out so that every lane moves whole packs of eight channels;
// which channel stands where in the summed dimension is free as long as both operands agree.
#include <algorithm>

#include "kernels/column_sums.cuh"
#include "kernels/cuda_check.h"
#include "kernels/device_limits.h"
#include "kernels/router_logits.h"
#include "kernels/router_weight.cuh"
#include "kernels/router_wide_gradient.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kShared = 48 << 10;     // bytes of weights at once: what a block may have without asking
constexpr int kGrid = 528;            // blocks that fill the GPU; results do not depend on it
constexpr int kTokensAStep = 16;      // the summed dimension of one mma, in the weight gradient
constexpr int kGroup = 8 * kPack;     // channels a warp of the weight gradient owns
constexpr int kExpertsAPass = 8 * 8;  // of the weight gradient

// How a product takes its weight. With few experts small blocks share a multiprocessor. Many experts' weight as terms
// fills its shared memory: one large block stages it once, then its warps run through the tokens without a barrier.
template <class T>
struct Shape {
  int threads, resident;
  bool whole;  // shared memory as large as there is
};
template <class T, int kTiles>
constexpr Shape<T> logits_shape() {
  if (sizeof(T) == 4) return {256, 1, false};
  return kTiles <= 2 ? Shape<T>{256, 4, false} : Shape<T>{512, 1, true};
}
template <class T, int kSteps>
constexpr Shape<T> gradient_shape() {
  if (sizeof(T) == 4) return {256, 1, false};
  return kSteps == 1 ? Shape<T>{256, 2, false} : kSteps == 8 ? Shape<T>{384, 1, true} : Shape<T>{512, 1, true};
}

// A warp takes kRows times 16 tokens; x goes from memory straight into the first operand's registers.
template <class T, int kTiles, int kRows>
__global__ void __launch_bounds__(logits_shape<T, kTiles>().threads, logits_shape<T, kTiles>().resident)
    router_logits_kernel(RouterLogits<T> a, int chunk) {
  constexpr int kOwn = kOwnTerms<T>, kOf = kTerms<T>, kUnroll = (sizeof(T) == 2 ? 4 : 2) / kRows;
  constexpr int kTokens = kRows * 16;
  extern __shared__ uint4 staged[];
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  const int all = blocks_of(a.width), expert0 = blockIdx.y * kTiles * 8;
  if (chunk == all) {
    stage_rows<kTiles, kOf, sizeof(T) == 2 && kTiles >= 4 ? 4 : 1>(a.w, a.width, a.experts, expert0, 0, all, staged);
    __syncthreads();
  }

  const unsigned tokens = static_cast<unsigned>(a.tokens);
  for (unsigned first = blockIdx.x; first * kTokens < tokens; first += gridDim.x * (blockDim.x / kWarp)) {
    const unsigned token = (first + threadIdx.x / kWarp * gridDim.x) * kTokens + g;
    const T* row = a.x + static_cast<std::int64_t>(token) * a.width + q * kPack;
    float d[kRows][kTiles][4] = {};
    for (int block0 = 0; block0 < all; block0 += chunk) {
      const int blocks = min(chunk, all - block0);
      if (chunk < all) {
        __syncthreads();  // the previous weights are no longer read
        stage_rows<kTiles, kOf>(a.w, a.width, a.experts, expert0, block0, blocks, staged);
        __syncthreads();
      }
      for (int b = 0; b < blocks; b += kUnroll) {
        Pack<T> x[kUnroll][2 * kRows];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
#pragma unroll
          for (int i = 0; i < 2 * kRows; ++i) {
            const int channel = (block0 + b + u) * kBlock;
            x[u][i] = load_pack_if(b + u < blocks && channel + q * kPack < a.width && token + 8 * i < tokens,
                                   row + 8 * i * a.width + channel);
          }
        unsigned pair[kUnroll][2 * kRows][4][kOwn];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
#pragma unroll
          for (int i = 0; i < 2 * kRows; ++i) channel_pairs(x[u][i], pair[u][i]);
            // The tensor cores cut off what they add; short sums, added up with rounding, keep that far below the
            // bound.
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          float part[kRows][4] = {};
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            if (b + u >= blocks) break;
#pragma unroll
            for (int j = 0; j < kOf; ++j) {
              const uint4 w = staged[(((b + u) * kTiles + n) * kOf + j) * kWarp + lane];
#pragma unroll
              for (int r = 0; r < kRows; ++r)
#pragma unroll
                for (int i = 0; i < kOwn && i + j < kOf; ++i) {
                  const auto& low = pair[u][2 * r];
                  const auto& high = pair[u][2 * r + 1];
                  const unsigned front[4] = {low[0][i], high[0][i], low[1][i], high[1][i]};
                  const unsigned back[4] = {low[2][i], high[2][i], low[3][i], high[3][i]};
                  mma(part[r], front, w.x, w.y);
                  mma(part[r], back, w.z, w.w);
                }
            }
          }
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) d[r][n][i] += part[r][i];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned t = token + 16 * r + 8 * (i / 2);
          const int e = expert0 + 8 * n + 2 * q + i % 2;
          if (t < tokens && e < a.experts) a.logits[static_cast<std::int64_t>(t) * a.experts + e] = d[r][n][i];
        }
  }
}

// d_x += d_logits W for the channels of chunk blockIdx.y; a warp takes 16 tokens, whose d_logits stay in registers.
template <class T, int kSteps>
__global__ void __launch_bounds__(gradient_shape<T, kSteps>().threads, gradient_shape<T, kSteps>().resident)
    input_gradient_kernel(RouterLogitsBackward<T> a, int expert0, int chunk) {
  constexpr int kOf = kTerms<T>, kUnroll = sizeof(T) == 2 ? 4 : 2, kTokens = 16;
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
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t t = token + 8 * (i % 2);
        const int e = expert0 + step * 16 + 8 * (i / 2) + 2 * q;
        const float* from = a.d_logits + t * a.experts + e;
        unsigned term[kOf];
        split(t < a.tokens && e < a.experts ? from[0] : 0.0f, t < a.tokens && e + 1 < a.experts ? from[1] : 0.0f, term);
#pragma unroll
        for (int j = 0; j < kOf; ++j) given[step][j][i] = term[j];
      }

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
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int j = 0; j < kOf; ++j) {
            const uint4* at = staged + (((b + u) * kSteps + step) * kOf + j) * 2 * kWarp + lane;
            const uint4 front = at[0], back = at[kWarp];
#pragma unroll
            for (int i = 0; i + j < kOf; ++i) {
              mma(d[0], given[step][i], front.x, back.x);
              mma(d[1], given[step][i], front.y, back.y);
              mma(d[2], given[step][i], front.z, back.z);
              mma(d[3], given[step][i], front.w, back.w);
            }
          }
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

// Partial sums of d_w over the tokens 32 (blockIdx.x + i gridDim.x)...: a warp owns 64 channels and up to 64 experts.
// The summed dimension is the tokens: lane q's four places of an mma are four neighbouring tokens.
template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && kTiles <= 2 ? 2 : 1)
    weight_gradient_kernel(RouterLogitsBackward<T> a) {
  constexpr int kOwn = kOwnTerms<T>, kOf = kTerms<T>, kUnroll = 2, kTokens = kUnroll * kTokensAStep;
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4, warps = blockDim.x / kWarp;
  const int channel = (blockIdx.y * warps + threadIdx.x / kWarp) * kGroup + g * kPack;
  const int expert0 = blockIdx.z * kExpertsAPass;
  float d[4][kTiles][4] = {};

  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTokens; first < a.tokens;
       first += static_cast<std::int64_t>(gridDim.x) * kTokens) {
    Pack<T> x[kUnroll][4];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const std::int64_t t = first + u * kTokensAStep + 4 * q + r;
        x[u][r] = load_pack_if(t < a.tokens && channel < a.width, a.x + t * a.width + channel);
      }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t token = first + u * kTokensAStep + 4 * q;
      unsigned front[kPack][kOwn], back[kPack][kOwn];
      row_pairs(x[u][0], x[u][1], front);
      row_pairs(x[u][2], x[u][3], back);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int e = expert0 + 8 * n + g;
        float v[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          v[r] = token + r < a.tokens && e < a.experts ? a.d_logits[(token + r) * a.experts + e] : 0.0f;
        unsigned low[kOf], high[kOf];
        split(v[0], v[1], low);
        split(v[2], v[3], high);
#pragma unroll
        for (int j = 0; j < kOf; ++j)
#pragma unroll
          for (int i = 0; i < kOwn && i + j < kOf; ++i)
#pragma unroll
            for (int m = 0; m < 4; ++m) {
              const unsigned rows[4] = {front[2 * m][i], front[2 * m + 1][i], back[2 * m][i], back[2 * m + 1][i]};
              mma(d[m][n], rows, low[j], high[j]);
            }
      }
    }
  }

  if (channel >= a.width) return;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = expert0 + 8 * n + 2 * q + i;
      if (e >= a.experts) continue;
      float f[kPack];
#pragma unroll
      for (int c = 0; c < kPack; ++c) f[c] = d[c / 2][n][2 * (c % 2) + i];
      store_floats(a.scratch + (static_cast<std::int64_t>(blockIdx.x) * a.experts + e) * a.width + channel, f);
    }
}

// The weight gradient's grid: {partial sums, blocks over channels, passes over experts}, a function of the problem
// only.
struct WeightGrid {
  int partials, over_channels, passes, warps;
  WeightGrid(std::int64_t tokens, int width, int experts) {
    const int groups = ceil_div(width, kGroup);
    over_channels = ceil_div(groups, kWarps);
    warps = ceil_div(groups, over_channels);
    passes = ceil_div(experts, kExpertsAPass);
    const std::int64_t wanted = (experts <= 16 ? kGrid : kGrid / 2) / (over_channels * passes);
    partials =
        static_cast<int>(std::max<std::int64_t>(1, std::min(wanted, ceil_div<std::int64_t>(tokens, 2 * kTokensAStep))));
  }
};

// Calls run(pieces) with the smallest power of two that covers `experts` in pieces of `size`, at most kMost.
template <int kMost, class Run>
void with_pieces(int experts, int size, Run run) {
  using std::integral_constant;
  if (experts <= size) return run(integral_constant<int, 1>());
  if (experts <= 2 * size) return run(integral_constant<int, 2>());
  if (experts <= 4 * size) return run(integral_constant<int, 4>());
  if constexpr (kMost == 8) {
    run(integral_constant<int, 8>());
  } else {
    if (experts <= 8 * size) return run(integral_constant<int, 8>());
    run(integral_constant<int, 16>());
  }
}

// How many pieces of a weight a block stages at once: as many as fit, in chunks as equal as they can be.
template <class T>
int pieces_at_once(const Shape<T>& shape, int all, int bytes) {
  const int room = shape.whole ? most_shared_memory() : kShared;
  return ceil_div(all, ceil_div(all, room / bytes));
}

// Launches over `tiles` of tokens (a warp takes one at a time) and `others` in y.
template <class Kernel, class T, class... Args>
void launch(Kernel kernel, const Shape<T>& shape, std::int64_t tiles, int others, int bytes, Stream stream,
            const Args&... args) {
  std::int64_t blocks = std::min<std::int64_t>(ceil_div<std::int64_t>(tiles, shape.threads / kWarp), kGrid);
  if (shape.whole) {
    SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    blocks = std::min<std::int64_t>(tiles, std::max(1, multiprocessors() / others));
  }
  kernel<<<dim3(static_cast<unsigned>(blocks), others), shape.threads, bytes, stream>>>(args...);
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void check(const T& a) {
  SWITCHYARD_ASSERT(a.width % kPack == 0 && a.width > 0 && a.experts > 0,
                    "the router needs a width that is a multiple of 8");
}

// Partial sums of d_w into scratch; how many there are.
template <class T>
int partial_sums(const RouterLogitsBackward<T>& a, Stream stream) {
  if constexpr (sizeof(T) == 2) {
    if (a.experts > 16 && most_shared_memory() >= wide_gradient::shared_bytes(8)) {
      const wide_gradient::Grid grid(a.tokens, a.width, a.experts);
      a.experts <= 32 ? wide_gradient::launch<4>(a, grid, stream) : wide_gradient::launch<8>(a, grid, stream);
      return grid.partials;
    }
  }
  const WeightGrid grid(a.tokens, a.width, a.experts);
  with_pieces<8>(a.experts, 8, [&](auto tiles) {
    weight_gradient_kernel<T, decltype(tiles)::value>
        <<<dim3(grid.partials, grid.over_channels, grid.passes), grid.warps * kWarp, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
  return grid.partials;
}

template <class T>
void input_gradient(const RouterLogitsBackward<T>& a, Stream stream) {
  constexpr int kMost = 128;  // experts whose gradients fit in registers; more of them take more passes
  const int all = blocks_of(a.width);
  for (int expert0 = 0; expert0 < a.experts; expert0 += kMost) {
    with_pieces<8>(a.experts - expert0, 16, [&](auto steps) {
      constexpr int kSteps = decltype(steps)::value, kBytes = kSteps * kTerms<T> * 2 * kWarp * sizeof(uint4);
      constexpr Shape<T> kShape = gradient_shape<T, kSteps>();
      const int chunk = pieces_at_once(kShape, all, kBytes);
      launch(input_gradient_kernel<T, kSteps>, kShape, ceil_div<std::int64_t>(a.tokens, 16), ceil_div(all, chunk),
             chunk * kBytes, stream, a, expert0, chunk);
    });
  }
}

}  // namespace

template <class T>
void router_logits(const RouterLogits<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  const int all = blocks_of(a.width);
  with_pieces<16>(a.experts, 8, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value, kRows = sizeof(T) == 2 && (kTiles == 4 || kTiles == 8) ? 2 : 1;
    constexpr int kBytes = kTiles * kTerms<T> * kWarp * sizeof(uint4);
    constexpr Shape<T> kShape = logits_shape<T, kTiles>();
    const int chunk = pieces_at_once(kShape, all, kBytes);
    launch(router_logits_kernel<T, kTiles, kRows>, kShape, ceil_div<std::int64_t>(a.tokens, kRows * 16),
           ceil_div(a.experts, kTiles * 8), chunk * kBytes, stream, a, chunk);
  });
}

std::int64_t router_logits_scratch(std::int64_t tokens, int width, int experts) {
  const std::int64_t partials =
      std::max(WeightGrid(tokens, width, experts).partials, wide_gradient::Grid(tokens, width, experts).partials);
  return partials * experts * width;
}

template <class T>
void router_logits_backward(const RouterLogitsBackward<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  router_weight_gradient(a, stream);
  input_gradient(a, stream);
}

template <class T>
void router_weight_gradient(const RouterLogitsBackward<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  add_columns(a.scratch, partial_sums(a, stream), a.experts * a.width, a.d_w, stream);
}

template void router_logits(const RouterLogits<bf16>&, Stream);
template void router_logits(const RouterLogits<float>&, Stream);
template void router_logits_backward(const RouterLogitsBackward<bf16>&, Stream);
template void router_logits_backward(const RouterLogitsBackward<float>&, Stream);
template void router_weight_gradient(const RouterLogitsBackward<bf16>&, Stream);
template void router_weight_gradient(const RouterLogitsBackward<float>&, Stream);

}  // namespace switchyard::kernels
