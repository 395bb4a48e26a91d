// Bound by reading x once (forward), by reading and writing d_x and reading x (backward), also with many experts: the
// products run on the tensor cores. Fragments are laid out so that every lane moves whole packs of eight channels;
// which channel stands where in the summed dimension is free as long as both operands agree.
#include <algorithm>

#include "kernels/column_sums.cuh"
#include "kernels/cuda_check.h"
#include "kernels/router_logits.h"
#include "kernels/router_weight.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kShared = 48 << 10;     // bytes of weights at once: what a block may have without asking
constexpr int kGrid = 528;            // blocks that fill the GPU; results do not depend on it
constexpr int kTokensAStep = 16;      // the summed dimension of one mma, in the weight gradient
constexpr int kGroup = 8 * kPack;     // channels a warp of the weight gradient owns
constexpr int kExpertsAPass = 8 * 8;  // of the weight gradient

// A warp takes kRows times 16 tokens; x goes from memory straight into the first operand's registers.
// W's terms lie in shared memory where all of them fit (kStaged). Otherwise each warp reads them from the scratch, as
// weight_terms_kernel left them: the warps of a block go through the same ones at about the same time, so the first
// level cache serves all but one, and none waits for another at a barrier.
template <class T, int kTiles, int kRows, bool kStaged>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 1
                                            : kTiles <= 2  ? (kStaged ? 4 : 2)
                                                          : (kStaged ? 2 : 1)) router_logits_kernel(RouterLogits<T> a) {
  constexpr int kOwn = kOwnTerms<T>, kOf = kTerms<T>;
  constexpr int kUnroll = kTiles == 16 ? 1 : (sizeof(T) == 2 ? 4 : 2) / kRows;
  constexpr int kTokens = kWarps * kRows * 16;
  extern __shared__ uint4 shared[];
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  const int blocks = blocks_of(a.width), expert0 = blockIdx.y * kTiles * 8;
  const uint4* terms =
      reinterpret_cast<const uint4*>(a.scratch) + static_cast<std::int64_t>(blockIdx.y) * blocks * kTiles * kOf * kWarp;
  if constexpr (kStaged) {
    stage_rows<kTiles, kOf>(a.w, a.width, a.experts, expert0, 0, blocks, shared);
    __syncthreads();
    terms = shared;
  }

  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTokens; first < a.tokens;
       first += static_cast<std::int64_t>(gridDim.x) * kTokens) {
    const std::int64_t token = first + threadIdx.x / kWarp * kRows * 16 + g;
    float d[kRows][kTiles][4] = {};
    Pack<T> x[kUnroll][2 * kRows];
    const auto load = [&](int b) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
#pragma unroll
        for (int i = 0; i < 2 * kRows; ++i) {
          const int channel = (b + u) * kBlock + q * kPack;
          const std::int64_t t = token + 8 * i;
          x[u][i] = load_pack_if(channel < a.width && t < a.tokens, a.x + t * a.width + channel);
        }
    };
    if (!kStaged) load(0);
    for (int b = 0; b < blocks; b += kUnroll) {
      if (kStaged) load(b);
      unsigned pair[kUnroll][2 * kRows][4][kOwn];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
#pragma unroll
        for (int i = 0; i < 2 * kRows; ++i) channel_pairs(x[u][i], pair[u][i]);
      // With few blocks on a multiprocessor the next loads fly during the products; zeros past the last.
      if (!kStaged) load(b + kUnroll);
        // The tensor cores cut off what they add; short sums, added up with rounding, keep that far below the bound.
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        float part[kRows][4] = {};
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (b + u >= blocks) break;
#pragma unroll
          for (int j = 0; j < kOf; ++j) {
            const uint4 w = terms[(((b + u) * kTiles + n) * kOf + j) * kWarp + lane];
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
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const std::int64_t t = token + 16 * r + 8 * (i / 2);
          const int e = expert0 + 8 * n + 2 * q + i % 2;
          if (t < a.tokens && e < a.experts) a.logits[t * a.experts + e] = d[r][n][i];
        }
  }
}

// W as terms in the order in which the kernel above reads them, a block of 32 channels and a pass of experts a block.
template <int kTiles, int kOf>
__global__ void __launch_bounds__(kThreads) weight_terms_kernel(const float* w, int width, int experts, uint4* terms) {
  const int block = blockIdx.x;
  uint4* own = terms + (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + block) * kTiles * kOf * kWarp;
  stage_rows<kTiles, kOf>(w, width, experts, blockIdx.y * kTiles * 8, block, 1, own);
}

// d_x += d_logits W for the channels of chunk blockIdx.y; a warp takes 16 tokens, whose d_logits stay in registers.
template <class T, int kSteps>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 || kSteps == 8 ? 1 : 2)
    input_gradient_kernel(RouterLogitsBackward<T> a, int expert0, int chunk) {
  constexpr int kOf = kTerms<T>, kUnroll = sizeof(T) == 2 ? 4 : 2, kTokens = kWarps * 16;
  extern __shared__ uint4 staged[];
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  const int block0 = blockIdx.y * chunk, blocks = min(chunk, blocks_of(a.width) - block0);
  const bool adds = !a.overwrites || expert0 > 0;
  stage_columns<kSteps, 2, kOf>(a.w, a.width, a.experts, expert0, block0, blocks, staged);
  __syncthreads();

  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTokens; first < a.tokens;
       first += static_cast<std::int64_t>(gridDim.x) * kTokens) {
    const std::int64_t token = first + threadIdx.x / kWarp * 16 + g;
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
          x[u][i] = load_pack_if(there[u][i] && adds, a.d_x + t * a.width + channel);
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

// The gradients of expert e's logits of four neighbouring tokens, as terms of two tokens each.
template <int kOf>
__device__ __forceinline__ void gradient_terms(const float* d_logits, std::int64_t tokens, int experts,
                                               std::int64_t token, int e, unsigned (&low)[kOf], unsigned (&high)[kOf]) {
  float v[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) v[r] = token + r < tokens && e < experts ? d_logits[(token + r) * experts + e] : 0.0f;
  split(v[0], v[1], low);
  split(v[2], v[3], high);
}

// Those of 8 kTiles experts and kUnroll times 16 tokens in the order in which lanes take them as the second operand:
// [step of 16][tile][term][lane].
template <int kTiles, int kUnroll, int kOf>
__device__ __forceinline__ void stage_gradients(const float* d_logits, std::int64_t tokens, int experts,
                                                std::int64_t first, int expert0, uint2* staged) {
  for (int i = threadIdx.x; i < kUnroll * kTiles * kWarp; i += blockDim.x) {
    const int lane = i % kWarp, tile = i / kWarp % kTiles, step = i / (kWarp * kTiles);
    const int e = expert0 + 8 * tile + lane / 4;
    const std::int64_t token = first + step * kTokensAStep + lane % 4 * 4;
    unsigned low[kOf], high[kOf];
    gradient_terms(d_logits, tokens, experts, token, e, low, high);
#pragma unroll
    for (int j = 0; j < kOf; ++j)
      staged[((step * kTiles + tile) * kOf + j) * kWarp + lane] = make_uint2(low[j], high[j]);
  }
}

// Partial sums of d_w over the tokens 32 (blockIdx.x + i gridDim.x)...: a warp owns 64 channels and up to 64 experts.
// The summed dimension is the tokens: lane q's four places of an mma are four neighbouring tokens. All warps of a block
// take the same d_logits: many experts' are split once a step, into the buffer that the step before last has left; few
// cost less than the barrier.
template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && kTiles <= 4 ? 2 : 1)
    weight_gradient_kernel(RouterLogitsBackward<T> a) {
  constexpr int kOwn = kOwnTerms<T>, kOf = kTerms<T>, kUnroll = 2, kTokens = kUnroll * kTokensAStep;
  constexpr bool kShares = kTiles >= 4;
  __shared__ uint2 staged[2][kShares ? kUnroll * kTiles * kOf * kWarp : 1];
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4, warps = blockDim.x / kWarp;
  const int channel = (blockIdx.y * warps + threadIdx.x / kWarp) * kGroup + g * kPack;
  const int expert0 = blockIdx.z * kExpertsAPass;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kTokens,
                     stride = static_cast<std::int64_t>(gridDim.x) * kTokens;
  float d[4][kTiles][4] = {};

  if constexpr (kShares)
    stage_gradients<kTiles, kUnroll, kOf>(a.d_logits, a.tokens, a.experts, begin, expert0, staged[0]);
  int now = 0;
  for (std::int64_t first = begin; first < a.tokens; first += stride, now ^= 1) {
    if constexpr (kShares) __syncthreads();  // this step's gradients are there, and nobody reads the last one's
    Pack<T> x[kUnroll][4];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const std::int64_t t = first + u * kTokensAStep + 4 * q + r;
        x[u][r] = load_pack_if(t < a.tokens && channel < a.width, a.x + t * a.width + channel);
      }
    if (kShares && first + stride < a.tokens)
      stage_gradients<kTiles, kUnroll, kOf>(a.d_logits, a.tokens, a.experts, first + stride, expert0, staged[now ^ 1]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      unsigned front[kPack][kOwn], back[kPack][kOwn];
      row_pairs(x[u][0], x[u][1], front);
      row_pairs(x[u][2], x[u][3], back);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        unsigned low[kOf], high[kOf];
        if constexpr (kShares) {
#pragma unroll
          for (int j = 0; j < kOf; ++j) {
            const uint2 both = staged[now][((u * kTiles + n) * kOf + j) * kWarp + lane];
            low[j] = both.x, high[j] = both.y;
          }
        } else {
          gradient_terms(a.d_logits, a.tokens, a.experts, first + u * kTokensAStep + 4 * q, expert0 + 8 * n + g, low,
                         high);
        }
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

unsigned blocks_for(std::int64_t tokens, int a_block, int times) {
  return static_cast<unsigned>(
      std::max<std::int64_t>(1, std::min<std::int64_t>(ceil_div<std::int64_t>(tokens, a_block), kGrid / times)));
}

// Of the terms of 32 channels.
template <class T>
constexpr int block_bytes(int tiles) {
  return tiles * kTerms<T> * kWarp * static_cast<int>(sizeof(uint4));
}

template <class T>
void check(const T& a) {
  SWITCHYARD_ASSERT(a.width % kPack == 0 && a.width > 0 && a.experts > 0,
                    "the router needs a width that is a multiple of 8");
}

template <class T>
void input_gradient(const RouterLogitsBackward<T>& a, Stream stream) {
  constexpr int kMost = 128;  // experts whose gradients fit in registers; more of them take more passes
  const int all = blocks_of(a.width);
  for (int expert0 = 0; expert0 < a.experts; expert0 += kMost) {
    with_pieces<8>(a.experts - expert0, 16, [&](auto steps) {
      constexpr int kSteps = decltype(steps)::value, kBytes = kSteps * kTerms<T> * 2 * kWarp * sizeof(uint4);
      const int chunks = ceil_div(all, kShared / kBytes), chunk = ceil_div(all, chunks);
      // A block stages its weights once for all of its tokens, so there are no more blocks than fill the GPU.
      const dim3 grid(blocks_for(a.tokens, kWarps * 16, ceil_div(all, chunk)), ceil_div(all, chunk));
      input_gradient_kernel<T, kSteps><<<grid, kThreads, chunk * kBytes, stream>>>(a, expert0, chunk);
    });
    SWITCHYARD_CUDA_LAUNCHED();
  }
}

}  // namespace

template <class T>
void router_logits(const RouterLogits<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  const int blocks = blocks_of(a.width);
  const bool staged = router_logits_terms<T>(a.width, a.experts) == 0;
  SWITCHYARD_ASSERT(staged || a.scratch, "the router's product needs room for its weight's terms");
  with_pieces<16>(a.experts, 8, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value, kRows = sizeof(T) == 2 && kTiles >= 4 ? 2 : 1, kOf = kTerms<T>;
    const dim3 grid(blocks_for(a.tokens, kWarps * kRows * 16, 1), ceil_div(a.experts, kTiles * 8));
    if (staged) {
      // Of 16 tiles, 48 KiB hold so few channels that the terms would cost more than they save: never staged.
      if constexpr (kTiles < 16)
        router_logits_kernel<T, kTiles, kRows, true><<<grid, kThreads, blocks * block_bytes<T>(kTiles), stream>>>(a);
      return;
    }
    weight_terms_kernel<kTiles, kOf>
        <<<dim3(blocks, grid.y), kThreads, 0, stream>>>(a.w, a.width, a.experts, reinterpret_cast<uint4*>(a.scratch));
    SWITCHYARD_CUDA_LAUNCHED();
    router_logits_kernel<T, kTiles, kRows, false><<<grid, kThreads, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
std::int64_t router_logits_terms(int width, int experts) {
  std::int64_t floats = 0;
  with_pieces<16>(experts, 8, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const std::int64_t bytes = static_cast<std::int64_t>(blocks_of(width)) * block_bytes<T>(kTiles);
    if (kTiles == 16 || bytes > kShared) floats = bytes / 4 * ceil_div(experts, kTiles * 8);
  });
  return floats;
}

std::int64_t router_logits_scratch(std::int64_t tokens, int width, int experts) {
  return static_cast<std::int64_t>(WeightGrid(tokens, width, experts).partials) * experts * width;
}

template <class T>
void router_logits_backward(const RouterLogitsBackward<T>& a, Stream stream) {
  check(a);
  if (a.tokens == 0) return;
  const WeightGrid grid(a.tokens, a.width, a.experts);
  with_pieces<8>(a.experts, 8, [&](auto tiles) {
    weight_gradient_kernel<T, decltype(tiles)::value>
        <<<dim3(grid.partials, grid.over_channels, grid.passes), grid.warps * kWarp, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
  const int columns = a.experts * a.width;
  add_columns(a.scratch, grid.partials, columns, a.d_w, stream);
  input_gradient(a, stream);
}

template void router_logits(const RouterLogits<bf16>&, Stream);
template void router_logits(const RouterLogits<float>&, Stream);
template std::int64_t router_logits_terms<bf16>(int, int);
template std::int64_t router_logits_terms<float>(int, int);
template void router_logits_backward(const RouterLogitsBackward<bf16>&, Stream);
template void router_logits_backward(const RouterLogitsBackward<float>&, Stream);

}  // namespace switchyard::kernels
