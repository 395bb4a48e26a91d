// kernels/router_wide_gradient.cuh: the weight gradient of a router with many experts, bf16. A block takes 384 channels
// and up to 64 experts. Tiles of 48 tokens come into shared memory ahead of use: x as it is, d_logits split into terms
// once for all warps, in the order in which lanes take them. Bound by reading x.
#pragma once

#include <algorithm>

#include "kernels/ampere.cuh"
#include "kernels/router_logits.h"
#include "kernels/split_mma.cuh"

namespace switchyard::kernels::wide_gradient {

constexpr int kChannelGroups = 6, kExpertGroups = 2;  // a warp takes 64 channels and half of the experts
constexpr int kGroupChannels = 64, kBlockChannels = kChannelGroups * kGroupChannels;
constexpr int kThreads = kChannelGroups * kExpertGroups * kWarp;
constexpr int kSteps = 3, kTokens = kSteps * 16;  // a tile: as many steps of an mma's summed dimension
constexpr int kStages = 3;
constexpr int kExperts = 64;                        // of a block, at most
constexpr int kRowBytes = kBlockChannels * 2 + 16;  // of a token: neighbouring rows start in other banks
constexpr int kStageBytes = kTokens * kRowBytes;
constexpr int kGrid = 132;  // blocks that fill an H100

// With `tiles` of 8 experts.
constexpr int shared_bytes(int tiles) {
  return kStages * kStageBytes + 2 * kSteps * tiles * kWarp * static_cast<int>(sizeof(uint4));
}

// {partial sums, blocks over channels, passes over experts}, a function of the problem only.
struct Grid {
  int partials, over_channels, passes;
  Grid(std::int64_t tokens, int width, int experts)
      : over_channels(ceil_div(width, kBlockChannels)), passes(ceil_div(experts, kExperts)) {
    const std::int64_t tiles = ceil_div<std::int64_t>(tokens, kTokens);
    partials = static_cast<int>(std::clamp<std::int64_t>(kGrid / (over_channels * passes), 1, tiles));
  }
};

// Starts copying x[token.., channel..] of one tile; zeros beyond the matrix.
__device__ __forceinline__ void copy_tile(const RouterLogitsBackward<bf16>& a, unsigned token, int channel,
                                          std::uint32_t to) {
  constexpr int kPacks = kBlockChannels / kPack;
  static_assert(kTokens * kPacks % kThreads == 0, "every thread copies as many packs");
#pragma unroll
  for (int j = 0; j < kTokens * kPacks / kThreads; ++j) {
    const int i = threadIdx.x + j * kThreads, row = i / kPacks, pack = i % kPacks;
    const bool there = token + row < static_cast<unsigned>(a.tokens) && channel + pack * kPack < a.width;
    const std::int64_t from = static_cast<std::int64_t>(token + row) * a.width + channel + pack * kPack;
    ampere::copy_16(to + row * kRowBytes + pack * 16, a.x + (there ? from : 0), there);
  }
}

// This thread's d_logits of one tile: element j of (step, tile of 8 experts, lane) item threadIdx.x + j kThreads.
template <int kTiles>
struct Given {
  static constexpr int kItems = kSteps * kTiles * kWarp / kThreads;
  static_assert(kSteps * kTiles * kWarp % kThreads == 0, "every thread has as many items");
  float value[kItems][4];

  __device__ __forceinline__ void load(const RouterLogitsBackward<bf16>& a, unsigned token, int expert0) {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int i = threadIdx.x + j * kThreads, lane = i % kWarp, e = expert0 + i / kWarp % kTiles * 8 + lane / 4;
      const unsigned first = token + i / (kWarp * kTiles) * 16 + lane % 4 * 2;
      const float* from = a.d_logits + static_cast<std::int64_t>(first) * a.experts + e;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = r % 2 + r / 2 * 8;
        const bool there = first + row < static_cast<unsigned>(a.tokens) && e < a.experts;
        value[j][r] = there ? from[row * a.experts] : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void store(uint4* to) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      unsigned low[2], high[2];
      split(value[j][0], value[j][1], low);
      split(value[j][2], value[j][3], high);
      to[threadIdx.x + j * kThreads] = make_uint4(low[0], high[0], low[1], high[1]);
    }
  }
};

// d += x' d_logits of one tile, for 64 channels and kOwn tiles of 8 experts. Short sums, added up with rounding: the
// tensor cores cut off what they add.
template <int kTiles, int kOwn>
__device__ __forceinline__ void add_tile(std::uint32_t rows, const uint4* given, float (&d)[kOwn][4][4]) {
  const int lane = threadIdx.x % kWarp;
  const std::uint32_t at = rows + (lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16;
  unsigned x[kSteps][4][4];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
#pragma unroll
    for (int m = 0; m < 4; ++m) ampere::load_matrices<true>(at + s * 16 * kRowBytes + m * 32, x[s][m]);
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    float part[4][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const uint4 w = given[(s * kTiles + n) * kWarp + lane];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        mma(part[m], x[s][m], w.x, w.y);
        mma(part[m], x[s][m], w.z, w.w);
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) d[n][m][i] += part[m][i];
  }
}

// Partial sums of d_w over tiles blockIdx.x + i gridDim.x, into a.scratch [partial][expert][channel].
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 1) kernel(RouterLogitsBackward<bf16> a) {
  extern __shared__ uint4 shared[];
  constexpr int kOwn = kTiles / kExpertGroups, kGiven = kSteps * kTiles * kWarp;
  const int warp = threadIdx.x / kWarp, group = warp % kChannelGroups, tile0 = warp / kChannelGroups * kOwn;
  const int channel0 = blockIdx.y * kBlockChannels, expert0 = blockIdx.z * kExperts;
  const unsigned tokens = static_cast<unsigned>(a.tokens), stride = gridDim.x * kTokens, first = blockIdx.x * kTokens;
  uint4* given = shared;  // two tiles' [step][tile of 8 experts][lane]
  const std::uint32_t rows = ampere::smem_address(shared + 2 * kGiven);
  float d[kOwn][4][4] = {};

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (first + s * stride < tokens) copy_tile(a, first + s * stride, channel0, rows + s * kStageBytes);
    ampere::copies_commit();
  }
  Given<kTiles> next;
  next.load(a, first, expert0);
  int turn = 0;
  for (unsigned token = first; token < tokens; token += stride, ++turn) {
    uint4* now = given + turn % 2 * kGiven;
    next.store(now);
    ampere::copies_wait<kStages - 2>();
    // Behind it this tile is there for all, and the one before has been read.
    __syncthreads();
    const unsigned ahead = token + (kStages - 1) * stride;
    if (ahead < tokens) copy_tile(a, ahead, channel0, rows + (turn + kStages - 1) % kStages * kStageBytes);
    ampere::copies_commit();
    next.load(a, token + stride, expert0);
    add_tile<kTiles>(rows + turn % kStages * kStageBytes + group * kGroupChannels * 2, now + tile0 * kWarp, d);
  }

  const int lane = threadIdx.x % kWarp, channel = channel0 + group * kGroupChannels + lane / 4;
#pragma unroll
  for (int n = 0; n < kOwn; ++n)
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = expert0 + (tile0 + n) * 8 + lane % 4 * 2 + i % 2, c = channel + m * 16 + i / 2 * 8;
        if (e < a.experts && c < a.width)
          a.scratch[(static_cast<std::int64_t>(blockIdx.x) * a.experts + e) * a.width + c] = d[n][m][i];
      }
}

template <int kTiles>
void launch(const RouterLogitsBackward<bf16>& a, const Grid& grid, Stream stream) {
  const auto run = kernel<kTiles>;
  SWITCHYARD_CUDA(cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(kTiles)));
  run<<<dim3(grid.partials, grid.over_channels, grid.passes), kThreads, shared_bytes(kTiles), stream>>>(a);
  SWITCHYARD_CUDA_LAUNCHED();
}

}  // namespace switchyard::kernels::wide_gradient
