// kernels/router_weight.cuh: the router's weight in shared memory, as the tensor cores take it. A block of the staging
// is 32 channels: what the four lanes of a row cover with one pack of eight each.
#pragma once

#include "kernels/split_mma.cuh"

namespace switchyard::kernels {

inline constexpr int kBlock = 32;

__host__ __device__ constexpr int blocks_of(int width) { return (width + kBlock - 1) / kBlock; }

// W[expert0.., 32 block0..] as terms, in the order in which lanes take it as the second operand:
// [block][tile of 8 experts][term][lane], a lane's eight channels being those that it loads of x.
template <int kTiles, int kTerms>
__device__ __forceinline__ void stage_rows(const float* w, int width, int experts, int expert0, int block0, int blocks,
                                           uint4* staged) {
  for (int i = threadIdx.x; i < blocks * kTiles * kWarp; i += blockDim.x) {
    const int lane = i % kWarp, tile = i / kWarp % kTiles, block = i / (kWarp * kTiles);
    const int e = expert0 + tile * 8 + lane / 4, channel = (block0 + block) * kBlock + lane % 4 * kPack;
    float f[kPack];
    unpack(load_pack_if(e < experts && channel < width, w + static_cast<std::int64_t>(e) * width + channel), f);
    unsigned pair[4][kTerms];
#pragma unroll
    for (int p = 0; p < 4; ++p) split(f[2 * p], f[2 * p + 1], pair[p]);
#pragma unroll
    for (int t = 0; t < kTerms; ++t)
      staged[((block * kTiles + tile) * kTerms + t) * kWarp + lane] =
          make_uint4(pair[0][t], pair[1][t], pair[2][t], pair[3][t]);
  }
}

// W as the second operand of d_logits W: [block][step of 16 experts][term][half of the step][lane], the four words
// being the mma's four columns of this lane's channels; kHalves 1 where there are no more than 8 experts. Column n of
// mma j is channel 8 (n / 2) + 2 j + n mod 2 of the block, so that a lane's results are the eight channels of a pack.
template <int kSteps, int kHalves, int kTerms>
__device__ __forceinline__ void stage_columns(const float* w, int width, int experts, int expert0, int block0,
                                              int blocks, uint4* staged) {
  for (int i = threadIdx.x; i < blocks * kSteps * kHalves * kWarp; i += blockDim.x) {
    const int lane = i % kWarp, half = i / kWarp % kHalves, step = i / (kHalves * kWarp) % kSteps,
              block = i / (kHalves * kWarp * kSteps);
    const int e = expert0 + step * 16 + half * 8 + lane % 4 * 2, column = lane / 4;
    unsigned pair[4][kTerms];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = (block0 + block) * kBlock + column / 2 * kPack + 2 * j + column % 2;
      const float* from = w + static_cast<std::int64_t>(e) * width + channel;
      split(e < experts && channel < width ? from[0] : 0.0f, e + 1 < experts && channel < width ? from[width] : 0.0f,
            pair[j]);
    }
#pragma unroll
    for (int t = 0; t < kTerms; ++t)
      staged[(((block * kSteps + step) * kTerms + t) * kHalves + half) * kWarp + lane] =
          make_uint4(pair[0][t], pair[1][t], pair[2][t], pair[3][t]);
  }
}

}  // namespace switchyard::kernels
