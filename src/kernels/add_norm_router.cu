// A block takes eight rows at a time, a warp 96 channels of all eight: four lanes share a row, as in the tensor cores'
// operands, so that a row goes from memory into the product, and a row's gradient out of it, without leaving its lanes.
// Eight rows share each reading of W: 3 KB of shared memory a row at E = 8 and D = 768, which for 65,536 rows is 7 us
// of an H100, while the four passes over memory take 134. CUDA cores would need twice as many rows in registers for
// that, and 12 us of issue slots for the products of one direction.
#include <algorithm>

#include "kernels/add_norm_router.h"
#include "kernels/add_norm_router_parts.cuh"
#include "kernels/column_sums.cuh"
#include "kernels/cuda_check.h"
#include "kernels/device_limits.h"
#include "kernels/router_logits.h"

namespace switchyard::kernels {
namespace {

using namespace norm_router;

constexpr int kMostExperts = 32, kMostWarps = 16, kMostWidth = kMostWarps * kShare;
constexpr int kMostResident = 4;  // blocks a multiprocessor in backward, where each leaves a partial sum
constexpr int kNoLimit = 32;
// More than 16: d_w is a product of its own (kFusedWeightExperts), and W leaves room for two blocks a multiprocessor,
// too few to hide each other's waiting for memory, so that a turn fetches the next one's rows into L2. With fewer
// experts that takes longer.
template <int kTiles>
constexpr bool kManyExperts = 8 * kTiles > kFusedWeightExperts;
constexpr int kLogitsPad = 4;  // behind a row of logits in shared memory: the next one starts in another bank

template <class T, int kTiles, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarp, sizeof(T) == 2 && kWarps <= 8 ? (kManyExperts<kTiles> ? 2 : 3) : 1)
    add_norm_router_kernel(AddNormRouter<T> a) {
  constexpr int kOwn = kOwnTerms<T>, kOf = kTerms<T>, kColumns = kTiles * 8;
  extern __shared__ uint4 staged[];
  __shared__ float squares_of[kWarps][kRows];
  __shared__ float logits_of[kWarps][kRows][kColumns + kLogitsPad];
  const Place at;
  const int all = blocks_of(a.width);
  // A row's first sum is the barrier behind it.
  stage_rows<kTiles, kOf, kManyExperts<kTiles> ? 4 : 1>(a.w, a.width, a.experts, 0, 0, all, staged);

  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kRows;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kRows; first < a.tokens; first += stride) {
    const std::int64_t t = first + at.g, row = t * a.width;
    Pack<T> x[kBlocks], delta[kBlocks];
    bool there[kBlocks];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      there[i] = t < a.tokens && at.channel(i) < a.width;
      x[i] = load_pack_if(there[i], a.x + row + at.channel(i));
      delta[i] = load_pack_if(there[i], a.delta + row + at.channel(i));
    }
    if (kManyExperts<kTiles> && first + stride + kRows <= a.tokens && at.warp == 0 && at.lane < 2)
      fetch_turn(at.lane ? a.delta : a.x, first + stride, a.width);

    float squares = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      float r[kPack], d[kPack];
      unpack(x[i], r);
      unpack(delta[i], d);
#pragma unroll
      for (int c = 0; c < kPack; ++c) r[c] += d[c];
      pack(r, x[i]);
      unpack(x[i], r);  // the rounded value is what backward will see
#pragma unroll
      for (int c = 0; c < kPack; ++c) squares = fmaf(r[c], r[c], squares);
      if (there[i]) store_pack(a.residual + row + at.channel(i), x[i]);
    }
    squares = sum_of_row(squares, at, squares_of);
    const float inverse = rsqrtf(squares / static_cast<float>(a.width) + a.eps);
    if (at.warp == 0 && at.q == 0 && t < a.tokens) a.inverse_rms[t] = inverse;

    float logit[kTiles][2] = {};  // of experts 8 tile + g and rows 2 q, 2 q + 1
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int block = at.warp * kBlocks + i;
      if (block >= all) break;
      float n[kPack];
      unpack(x[i], n);
#pragma unroll
      for (int c = 0; c < kPack; ++c) n[c] *= inverse;
      if (a.gain) {
        float gain[kPack];
        unpack(load_pack_if(there[i], a.gain + at.channel(i)), gain);
#pragma unroll
        for (int c = 0; c < kPack; ++c) n[c] *= gain[c];
      }
      pack(n, x[i]);
      if (there[i]) store_pack(a.normed + row + at.channel(i), x[i]);

      unsigned pair[4][kOwn];
      channel_pairs(x[i], pair);
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += 2) {
        // The tensor cores cut off what they add: short sums, added up with rounding.
        float part[kTiles > 1 ? 4 : 2] = {};
#pragma unroll
        for (int j = 0; j < kOf; ++j) {
          const uint4* w = staged + ((block * kTiles + tile) * kOf + j) * kWarp + at.lane;
          const uint4 low = w[0], high = kTiles > 1 ? w[kOf * kWarp] : make_uint4(0, 0, 0, 0);
          const unsigned front[4] = {low.x, high.x, low.y, high.y}, back[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
          for (int own = 0; own < kOwn && own + j < kOf; ++own) {
            mma_rows(part, front, pair[0][own], pair[1][own]);
            mma_rows(part, back, pair[2][own], pair[3][own]);
          }
        }
#pragma unroll
        for (int k = 0; k < 2 && tile + k < kTiles; ++k)
#pragma unroll
          for (int c = 0; c < 2; ++c) logit[tile + k][c] += part[2 * k + c];
      }
    }

#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int c = 0; c < 2; ++c) logits_of[at.warp][at.q * 2 + c][tile * 8 + at.g] = logit[tile][c];
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kColumns; i += blockDim.x) {
      const int token = i / kColumns, e = i % kColumns;
      if (first + token >= a.tokens || e >= a.experts) continue;
      float sum = 0;
      for (int warp = 0; warp < blockDim.x / kWarp; ++warp) sum += logits_of[warp][token][e];
      a.logits[(first + token) * a.experts + e] = sum;
    }
  }
}

// Two terms of d_logits fill the operand's sixteen rows as (row g, row g + 8) where it is multiplied with W, and its
// sixteen columns where it is multiplied with n; its third term, beside float rows, comes with zeros.
// The norm's backward needs <residual, gain * (d_logits W)>, which is sum_e d_logits logits * rms: known before W.
// of: nothing, or the RowSum<T> that joins d_normed.
template <class T, int kTiles, int kWarps, bool kGain, class... Rows>
__global__ void __launch_bounds__(kWarps* kWarp, sizeof(T) == 2 && kWarps <= 8 && !kGain ? 2 : 1)
    add_norm_router_backward_kernel(AddNormRouterBackward<T> a, Rows... of) {
  constexpr bool kWeight = !kManyExperts<kTiles>;  // takes d_w too
  // d_w of more than eight experts leaves no registers for a sum that is not rounded to T.
  constexpr bool kFromRows = sizeof...(Rows) == 1, kExact = kFromRows && (kTiles == 1 || !kWeight);
  constexpr int kOwn = kOwnTerms<T>, kOf = kTerms<T>, kGiven = (kOf + 1) / 2 * 2;
  constexpr int kHalves = kTiles == 1 ? 1 : 2, kSteps = kTiles / kHalves;  // of sixteen experts
  extern __shared__ uint4 staged[];
  __shared__ float dots[2][kWarps][kRows];
  const Place at;
  const int all = blocks_of(a.width);
  // A row's first sum is its barrier too.
  stage_columns<kSteps, kHalves, kOf, kManyExperts<kTiles> ? 4 : 1>(a.w, a.width, a.experts, 0, 0, all, staged);
  // experts g (and g + 8), channels 2 m and 2 m + 1 of the pack
  [[maybe_unused]] float d_w[kWeight ? kBlocks : 1][4][kWeight ? 2 * kTiles : 2] = {};
  float d_gain[kGain ? kBlocks : 1][kPack] = {};

  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kRows;
  int turn = 0;
  int ahead = -1;  // the row indices of the next turn's token
  if constexpr (kFromRows) {
    const std::int64_t t = std::int64_t{blockIdx.x} * kRows + at.g;
    ahead = quad_index(of..., t < a.tokens, t);
  }
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kRows; first < a.tokens;
       first += stride, turn ^= 1) {
    const std::int64_t t = first + at.g, row = t * a.width;
    Pack<T> r[kBlocks], dn[kBlocks], late[kBlocks];
    bool there[kBlocks];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      there[i] = t < a.tokens && at.channel(i) < a.width;
      r[i] = load_pack_if(there[i], a.residual + row + at.channel(i));
      if constexpr (!kFromRows) dn[i] = load_pack_if(there[i] && a.d_normed, a.d_normed + row + at.channel(i));
      if constexpr (!kFromRows || kExact)
        late[i] = load_pack_if(there[i] && a.d_residual, a.d_residual + row + at.channel(i));
    }
    const float inverse = t < a.tokens ? a.inverse_rms[t] : 1.0f;
    Pack<T> rows[2][kBlocks];
    if constexpr (kFromRows) load_rows(of..., a.width, ahead, 0, at, there, rows);

    // d_logits of row g, experts 8 h + 2 q, + 1; transposed
    unsigned given[kGiven][2 * kSteps] = {};
    [[maybe_unused]] unsigned turned[kGiven][2] = {};
    float share = 0;
#pragma unroll
    for (int h = 0; h < kTiles; ++h) {
      float d[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int e = h * 8 + at.q * 2 + k;
        const bool real = t < a.tokens && e < a.experts;
        d[k] = real ? a.d_logits[t * a.experts + e] : 0.0f;
        if (real) share = fmaf(d[k], a.logits[t * a.experts + e], share);
      }
      unsigned term[kOf];
      split(d[0], d[1], term);
#pragma unroll
      for (int j = 0; j < kOf; ++j) {
        given[j][h] = term[j];
        if constexpr (kWeight) turned[j][h] = transposed(term[j]);
      }
    }

    [[maybe_unused]] float sum[kBlocks][kPack];
    if constexpr (kFromRows) {
      sum_rows(of..., a.width, t, t < a.tokens, ahead, at, there, rows, sum);
      ahead = quad_index(of..., t + stride < a.tokens, t + stride);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        if (a.d_normed) add_pack(load_pack_if(there[i], a.d_normed + row + at.channel(i)), sum[i]);
        if constexpr (!kExact) {
          pack(sum[i], dn[i]);
          late[i] = load_pack_if(there[i] && a.d_residual, a.d_residual + row + at.channel(i));
        }
      }
    }

    float dot = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      float f[kPack], g[kPack];
      unpack(r[i], f);
      if constexpr (kExact)
        copy(sum[i], g);
      else
        unpack(dn[i], g);
      if (a.gain) {
        float gain[kPack];
        unpack(load_pack_if(there[i], a.gain + at.channel(i)), gain);
#pragma unroll
        for (int c = 0; c < kPack; ++c) g[c] *= gain[c];
      }
#pragma unroll
      for (int c = 0; c < kPack; ++c) dot = fmaf(f[c], g[c], dot);
    }
    dot = sum_of_row(dot, at, dots[turn]) + lane_sum<4>(share) / inverse;
    const float along = inverse * inverse * inverse * dot / static_cast<float>(a.width);

    if constexpr (kManyExperts<kTiles>) {
      const std::int64_t next = first + stride;
      if constexpr (kFromRows) fetch_summands(of..., a.width, t + stride, t + stride < a.tokens, ahead, at);
      if (next + kRows <= a.tokens && at.warp == blockDim.x / kWarp - 1) {
        if (at.lane == 0) fetch_turn(a.residual, next, a.width);
        if (at.lane == 1) fetch_turn(a.d_residual, next, a.width);
        if (at.lane == 2) fetch_turn(a.d_normed, next, a.width);
        if (at.lane == 3) fetch_turn(a.d_logits, next, a.experts);
        if (at.lane == 4) fetch_turn(a.logits, next, a.experts);
      }
    }

#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int block = at.warp * kBlocks + i;
      if (block >= all) break;
      float from_logits[4][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int j = 0; j < kOf; ++j) {
          const uint4* w = staged + ((block * kSteps + step) * kOf + j) * kHalves * kWarp + at.lane;
          const uint4 front = w[0], back = kHalves == 2 ? w[kWarp] : make_uint4(0, 0, 0, 0);
#pragma unroll
          for (int own = 0; own + j < kOf; own += 2) {
            const unsigned rows[4] = {given[own][2 * step], given[own + 1][2 * step], given[own][2 * step + 1],
                                      given[own + 1][2 * step + 1]};
            mma(from_logits[0], rows, front.x, back.x);
            mma(from_logits[1], rows, front.y, back.y);
            mma(from_logits[2], rows, front.z, back.z);
            mma(from_logits[3], rows, front.w, back.w);
          }
        }

      float f[kPack], n[kPack], g[kPack], total[kPack];
      unpack(r[i], f);
      if constexpr (kExact)
        copy(sum[i], g);
      else
        unpack(dn[i], g);
      unpack(late[i], total);
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        n[c] = f[c] * inverse;
        g[c] += from_logits[c / 2][c % 2] + from_logits[c / 2][c % 2 + 2];
        if constexpr (kGain) d_gain[i][c] = fmaf(g[c], n[c], d_gain[i][c]);
      }
      if (a.gain) {
        float gain[kPack];
        unpack(load_pack_if(there[i], a.gain + at.channel(i)), gain);
#pragma unroll
        for (int c = 0; c < kPack; ++c) g[c] *= gain[c], n[c] *= gain[c];
      }
#pragma unroll
      for (int c = 0; c < kPack; ++c) total[c] += fmaf(inverse, g[c], -along * f[c]);
      if (there[i]) store_floats(a.d_x + row + at.channel(i), total);

      if constexpr (kWeight) {
        Pack<T> normed;  // as forward stored it
        pack(n, normed);
        unsigned pair[4][kOwn];
        channel_pairs(normed, pair);
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
          for (int j = 0; j < kOwn; ++j) {
            const unsigned columns = transposed(pair[m][j]);
#pragma unroll
            for (int own = 0; own + j < kOf; own += 2) {
              const unsigned rows[4] = {turned[own][0], turned[own][1], turned[own + 1][0], turned[own + 1][1]};
              mma_rows(d_w[i][m], rows, columns, columns);
            }
          }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const int channel = at.channel(i);
    if constexpr (kWeight) {
#pragma unroll
      for (int h = 0; h < kTiles; ++h) {
        const int e = h * 8 + at.g;
        float f[kPack];
#pragma unroll
        for (int c = 0; c < kPack; ++c) f[c] = d_w[i][c / 2][2 * h + c % 2];
        if (e < a.experts && channel < a.width)
          store_floats(a.scratch + (static_cast<std::int64_t>(blockIdx.x) * a.experts + e) * a.width + channel, f);
      }
    }
    if constexpr (kGain) {
#pragma unroll
      for (int c = 0; c < kPack; ++c)
#pragma unroll
        for (int step = 4; step < kWarp; step *= 2) d_gain[i][c] += __shfl_xor_sync(kAllLanes, d_gain[i][c], step);
      const std::int64_t behind = kWeight ? static_cast<std::int64_t>(gridDim.x) * a.experts : 0;
      float* partial = a.scratch + (behind + blockIdx.x) * a.width;
      if (at.g == 0 && channel < a.width) store_floats(partial + channel, d_gain[i]);
    }
  }
}

std::int64_t turns(std::int64_t tokens) { return ceil_div<std::int64_t>(tokens, kRows); }

int tiles_of(int experts) { return experts <= 8 ? 1 : experts <= 16 ? 2 : 4; }

int shared_bytes(int width, int tiles, int terms) {
  return blocks_of(width) * tiles * terms * kWarp * static_cast<int>(sizeof(uint4));
}

// As many blocks as stay resident, at most `most` a multiprocessor: W is staged once for all rows of a block.
template <class Kernel, class A, class... Rows>
int launch(Kernel kernel, const A& a, int tiles, int terms, int most, Stream stream, const Rows&... rows) {
  const int threads = ceil_div(a.width, kShare) * kWarp, bytes = shared_bytes(a.width, tiles, terms);
  SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  int resident = 0;
  SWITCHYARD_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, bytes));
  SWITCHYARD_ASSERT(resident > 0, "the router's weight does not fit in shared memory");
  const int blocks =
      static_cast<int>(std::min<std::int64_t>(turns(a.tokens), std::min(resident, most) * multiprocessors()));
  kernel<<<blocks, threads, bytes, stream>>>(a, rows...);
  SWITCHYARD_CUDA_LAUNCHED();
  return blocks;
}

// Calls run(tiles of eight experts, most warps a block) with both as compile-time constants.
template <class T, class A, class Run>
void with_shape(const A& a, Run run) {
  using std::integral_constant;
  SWITCHYARD_ASSERT(add_norm_takes_router<T>(a.width, a.experts), "add_norm does not take a router of this shape");
  const auto with_tiles = [&](auto tiles) {
    if (a.width <= 8 * kShare) return run(tiles, integral_constant<int, 8>());
    run(tiles, integral_constant<int, kMostWarps>());
  };
  switch (tiles_of(a.experts)) {
    case 1:
      return with_tiles(integral_constant<int, 1>());
    case 2:
      return with_tiles(integral_constant<int, 2>());
    default:
      with_tiles(integral_constant<int, 4>());
  }
}

}  // namespace

template <class T>
bool add_norm_takes_router(int width, int experts) {
  if (width <= 0 || width % kPack != 0 || width > kMostWidth || experts <= 0 || experts > kMostExperts) return false;
  // Forward's logits and sums of squares; backward has less beside W.
  const int tiles = tiles_of(experts), warps = width <= 8 * kShare ? 8 : kMostWarps,
            fixed = warps * kRows * (8 * tiles + kLogitsPad + 1) * static_cast<int>(sizeof(float));
  return shared_bytes(width, tiles, kTerms<T>) + fixed <= most_shared_memory();
}

std::int64_t add_norm_router_scratch(std::int64_t tokens, int width, int experts) {
  const std::int64_t blocks = std::min<std::int64_t>(turns(tokens), kMostResident * multiprocessors());
  if (experts <= kFusedWeightExperts) return blocks * (experts + 1) * width;
  return std::max(blocks * width, router_logits_scratch(tokens, width, experts));
}

template <class T>
void add_norm_router(const AddNormRouter<T>& a, Stream stream) {
  if (a.tokens == 0) return;
  with_shape<T>(a, [&](auto tiles, auto warps) {
    constexpr int kTiles = decltype(tiles)::value;
    launch(add_norm_router_kernel<T, kTiles, decltype(warps)::value>, a, kTiles, kTerms<T>, kNoLimit, stream);
  });
}

template <class T>
void add_norm_router_backward(const AddNormRouterBackward<T>& a, Stream stream, const RowSum<T>& rows) {
  if (a.tokens == 0) return;
  with_shape<T>(a, [&](auto tiles, auto warps) {
    constexpr int kTiles = decltype(tiles)::value, kWarps = decltype(warps)::value;
    const auto run = [&](auto gain, const auto&... of) {
      const auto kernel =
          add_norm_router_backward_kernel<T, kTiles, kWarps, decltype(gain)::value, std::decay_t<decltype(of)>...>;
      return launch(kernel, a, kTiles, kTerms<T>, kMostResident, stream, of...);
    };
    const auto with_gain = [&](const auto&... of) {
      return a.d_gain ? run(std::true_type(), of...) : run(std::false_type(), of...);
    };
    const int blocks = rows.rows ? with_gain(rows) : with_gain();
    const int columns = a.experts <= kFusedWeightExperts ? a.experts * a.width : 0;
    if (columns) add_columns(a.scratch, blocks, columns, a.d_w, stream);
    if (a.d_gain) add_columns(a.scratch + std::int64_t{blocks} * columns, blocks, a.width, a.d_gain, stream);
  });
  if (a.experts > kFusedWeightExperts)
    router_weight_gradient(
        RouterLogitsBackward<T>{a.normed, a.w, a.d_logits, nullptr, a.d_w, a.scratch, a.tokens, a.width, a.experts},
        stream);
}

template bool add_norm_takes_router<bf16>(int, int);
template bool add_norm_takes_router<float>(int, int);
template void add_norm_router(const AddNormRouter<bf16>&, Stream);
template void add_norm_router(const AddNormRouter<float>&, Stream);
template void add_norm_router_backward(const AddNormRouterBackward<bf16>&, Stream, const RowSum<bf16>&);
template void add_norm_router_backward(const AddNormRouterBackward<float>&, Stream, const RowSum<float>&);

}  // namespace switchyard::kernels
