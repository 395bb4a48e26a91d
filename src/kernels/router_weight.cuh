// kernels/router_weight.cuh: the router's weight in shared memory, as the tensor cores take it. A block of the staging
// is 32 channels: what the four lanes of a row cover with one pack of eight each.
#pragma once

#include "kernels/split_mma.cuh"

namespace switchyard::kernels {

inline constexpr int kBlock = 32;

__host__ __device__ constexpr int blocks_of(int width) { return (width + kBlock - 1) / kBlock; }

// W[expert0.., 32 block0..] as terms, in the order in which lanes take it as the second operand:
// [block][tile of 8 experts][term][lane], a lane's eight channels being those that it loads of x. kAtOnce of its
// loads are under way before the first is used.
template <int kTiles, int kTerms, int kAtOnce = 1>
__device__ __forceinline__ void stage_rows(const float* w, int width, int experts, int expert0, int block0, int blocks,
                                           uint4* staged) {
  const int count = blocks * kTiles * kWarp;
  for (int first = threadIdx.x; first < count; first += kAtOnce * blockDim.x) {
    Pack<float> pack[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * blockDim.x, lane = i % kWarp, tile = i / kWarp % kTiles, block = i / (kWarp * kTiles);
      const int e = expert0 + tile * 8 + lane / 4, channel = (block0 + block) * kBlock + lane % 4 * kPack;
      pack[j] =
          load_pack_if(i < count && e < experts && channel < width, w + static_cast<std::int64_t>(e) * width + channel);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * blockDim.x;
      if (i >= count) break;
      float f[kPack];
      unpack(pack[j], f);
      unsigned pair[4][kTerms];
#pragma unroll
      for (int p = 0; p < 4; ++p) split(f[2 * p], f[2 * p + 1], pair[p]);
#pragma unroll
      for (int t = 0; t < kTerms; ++t)
        staged[(i / kWarp * kTerms + t) * kWarp + i % kWarp] =
            make_uint4(pair[0][t], pair[1][t], pair[2][t], pair[3][t]);
    }
  }
}

// W as the second operand of d_logits W: [block][step of 16 experts][term][half of the step][lane], the four words
// being the mma's four columns of this lane's channels; kHalves 1 where there are no more than 8 experts. Column n of
// mma j is channel 8 (n / 2) + 2 j + n mod 2 of the block, so that a lane's results are the eight channels of a pack.
template <int kSteps, int kHalves, int kTerms, int kAtOnce = 1>
__device__ __forceinline__ void stage_columns(const float* w, int width, int experts, int expert0, int block0,
                                              int blocks, uint4* staged) {
  const int count = blocks * kSteps * kHalves * kWarp;
  for (int first = threadIdx.x; first < count; first += kAtOnce * blockDim.x) {
    float f[kAtOnce][4][2];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * blockDim.x, lane = i % kWarp, half = i / kWarp % kHalves,
                step = i / (kHalves * kWarp) % kSteps, block = i / (kHalves * kWarp * kSteps);
      const int e = expert0 + step * 16 + half * 8 + lane % 4 * 2, column = lane / 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int channel = (block0 + block) * kBlock + column / 2 * kPack + 2 * j + column % 2;
        const float* from = w + static_cast<std::int64_t>(e) * width + channel;
        const bool there = i < count && channel < width;
        f[k][j][0] = there && e < experts ? from[0] : 0.0f;
        f[k][j][1] = there && e + 1 < experts ? from[width] : 0.0f;
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * blockDim.x, half = i / kWarp % kHalves, step = i / (kHalves * kWarp);
      if (i >= count) break;
      unsigned pair[4][kTerms];
#pragma unroll
      for (int j = 0; j < 4; ++j) split(f[k][j][0], f[k][j][1], pair[j]);
#pragma unroll
      for (int t = 0; t < kTerms; ++t)
        staged[((step * kTerms + t) * kHalves + half) * kWarp + i % kWarp] =
            make_uint4(pair[0][t], pair[1][t], pair[2][t], pair[3][t]);
    }
  }
}

}  // namespace switchyard::kernels
