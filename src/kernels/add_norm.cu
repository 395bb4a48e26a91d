// One warp a row up to width 1024, one block a row beyond it: the row waits in registers between the sum of squares and
// its use, so every tensor crosses memory once. All loads of a row are issued before the first is used; of rows to be
// summed, up to four are in flight at once, behind the loads of their places.
#include <algorithm>

#include "kernels/add_norm.h"
#include "kernels/cuda_check.h"
#include "kernels/row_sum.cuh"
#include "kernels/vector.cuh"

namespace switchyard::kernels {
namespace {

constexpr int kRowWarps = 8;               // rows a block, when a warp has a row of its own
constexpr std::int64_t kMaxBlocks = 1056;  // backward: a function of the problem only, so that sums repeat bit for bit

template <int kThreads>
constexpr int kBlockThreads = kThreads == kWarp ? kWarp* kRowWarps : kThreads;
template <int kThreads>
constexpr int kBlockRows = kBlockThreads<kThreads> / kThreads;

// The sum of token t's rows, kTogether in flight at once; 2 says that there are no more.
template <class T, int kThreads, int kPacks, int kTogether>
__device__ __forceinline__ void sum_rows(const AddNorm<T>& a, std::int64_t t, int lane, Pack<T> (&delta)[kPacks]) {
  float sum[kPacks][kPack] = {};
  int k = 0;
  do {
    add_rows<kTogether, kThreads>(a.rows, a.width, t, k, lane, sum);
    k += kTogether;
  } while (kTogether > 2 && k < a.rows.top_k);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) pack(sum[i], delta[i]);
}

// kTogether: of the rows whose sum is delta (sum_rows); 0: there are none.
template <class T, int kThreads, int kPacks, int kTogether>
__global__ void __launch_bounds__(kBlockThreads<kThreads>) add_norm_kernel(AddNorm<T> a) {
  constexpr bool kRows = kTogether > 0;
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kBlockRows<kThreads> + threadIdx.x / kThreads;
  if (t >= a.tokens) return;
  const int lane = threadIdx.x % kThreads, packs = a.width / kPack;
  const std::int64_t row = t * a.width;

  Pack<T> x[kPacks], delta[kPacks], x0[kPacks];
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int p = lane + i * kThreads;
    const bool there = p < packs;
    x[i] = load_pack_if(there, a.x + row + p * kPack);
    if constexpr (!kRows) delta[i] = load_pack_if(there && a.delta, a.delta + row + p * kPack);
    x0[i] = load_pack_if(there && a.x0, a.x0 + row + p * kPack);
  }
  const float keep = a.keep ? *a.keep : 1.0f, again = a.x0 ? *a.again : 0.0f;
  if constexpr (kRows) sum_rows<T, kThreads, kPacks, kTogether>(a, t, lane, delta);

  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    float r[kPack], d[kPack], z[kPack];
    unpack(x[i], r);
    unpack(delta[i], d);
    unpack(x0[i], z);
#pragma unroll
    for (int c = 0; c < kPack; ++c) r[c] = fmaf(again, z[c], keep * (r[c] + d[c]));
    pack(r, x[i]);
    unpack(x[i], r);  // the rounded value is what backward will see
#pragma unroll
    for (int c = 0; c < kPack; ++c) squares = fmaf(r[c], r[c], squares);
    const int p = lane + i * kThreads;
    if (a.residual && p < packs) store_pack(a.residual + row + p * kPack, x[i]);
  }
  const float inverse = rsqrtf(row_sum<kThreads>(squares) / static_cast<float>(a.width) + a.eps);
  if (lane == 0) a.inverse_rms[t] = inverse;

#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int p = lane + i * kThreads;
    if (p >= packs) break;
    float n[kPack];
    unpack(x[i], n);
#pragma unroll
    for (int c = 0; c < kPack; ++c) n[c] *= inverse;
    if (a.gain) {
      float gain[kPack];
      unpack(load_pack(a.gain + p * kPack), gain);
#pragma unroll
      for (int c = 0; c < kPack; ++c) n[c] *= gain[c];
    }
    store_floats(a.normed + row + p * kPack, n);
  }
}

// The tensors that only the second half of backward reads.
template <class T, int kPacks>
struct Late {
  Pack<T> d_residual[kPacks], x0[kPacks], d_x0[kPacks];

  __device__ __forceinline__ void load(const AddNormBackward<T>& a, int i, std::int64_t at, bool there) {
    d_residual[i] = load_pack_if(there && a.d_residual, a.d_residual + at);
    x0[i] = load_pack_if(there && a.x0, a.x0 + at);
    d_x0[i] = load_pack_if(there && a.add_d_x0, a.d_x0 + at);
  }
};

// bf16 rows of all five tensors fit in registers; float rows do not, and wait until the row's sum is known.
template <class T, int kThreads, int kPacks, bool kGain>
__global__ void __launch_bounds__(kBlockThreads<kThreads>, kThreads == kWarp && kPacks <= 3 && !kGain ? 2 : 1)
    add_norm_backward_kernel(AddNormBackward<T> a) {
  constexpr bool kEarly = sizeof(T) == 2;
  constexpr int kRows = kBlockRows<kThreads>;
  const int lane = threadIdx.x % kThreads, group = threadIdx.x / kThreads, packs = a.width / kPack;
  const float keep = a.keep ? *a.keep : 1.0f, again = a.d_x0 && a.again ? *a.again : 0.0f;
  const float share_of_x0 = a.d_x ? again : keep + again;
  float along_residual = 0, along_x0 = 0;  // sums of total * residual and total * x0
  float gain_sum[kGain ? kPacks : 1][kPack] = {};

  for (std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kRows + group; t < a.tokens;
       t += static_cast<std::int64_t>(gridDim.x) * kRows) {
    const std::int64_t row = t * a.width;
    Pack<T> r[kPacks], dn[kPacks];
    Late<T, kPacks> late;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int p = lane + i * kThreads;
      const bool there = p < packs;
      r[i] = load_pack_if(there && (a.d_normed || a.d_keep), a.residual + row + p * kPack);
      dn[i] = load_pack_if(there && a.d_normed, a.d_normed + row + p * kPack);
      if constexpr (kEarly) late.load(a, i, row + p * kPack, there);
    }
    const float inverse = a.d_normed ? a.inverse_rms[t] : 0.0f;

    float dot = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int p = lane + i * kThreads;
      float f[kPack], g[kPack], gain[kPack];
      unpack(r[i], f);
      unpack(dn[i], g);
      if (a.gain) {
        unpack(load_pack_if(p < packs, a.gain + p * kPack), gain);
#pragma unroll
        for (int c = 0; c < kPack; ++c) g[c] *= gain[c];
      }
#pragma unroll
      for (int c = 0; c < kPack; ++c) dot = fmaf(f[c], g[c], dot);
    }
    const float along = inverse * inverse * inverse * row_sum<kThreads>(dot) / static_cast<float>(a.width);

#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int p = lane + i * kThreads;
      if (p >= packs) break;
      const std::int64_t at = row + p * kPack;
      if constexpr (!kEarly) late.load(a, i, at, true);
      float total[kPack], f[kPack], g[kPack];
      unpack(late.d_residual[i], total);
      unpack(r[i], f);
      unpack(dn[i], g);
      if constexpr (kGain) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) gain_sum[i][c] = fmaf(g[c], f[c] * inverse, gain_sum[i][c]);
      }
      if (a.gain) {
        float gain[kPack];
        unpack(load_pack(a.gain + p * kPack), gain);
#pragma unroll
        for (int c = 0; c < kPack; ++c) g[c] *= gain[c];
      }
#pragma unroll
      for (int c = 0; c < kPack; ++c) total[c] += fmaf(inverse, g[c], -along * f[c]);
      if (a.d_keep) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) along_residual = fmaf(total[c], f[c], along_residual);
      }
      if (a.x0) {
        float x0[kPack];
        unpack(late.x0[i], x0);
#pragma unroll
        for (int c = 0; c < kPack; ++c) along_x0 = fmaf(total[c], x0[c], along_x0);
      }
      float out[kPack];
      if (a.d_x) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) out[c] = keep * total[c];
        store_floats(a.d_x + at, out);
      }
      if (a.d_x0) {
        unpack(late.d_x0[i], out);
#pragma unroll
        for (int c = 0; c < kPack; ++c) out[c] = fmaf(share_of_x0, total[c], out[c]);
        store_floats(a.d_x0 + at, out);
      }
    }
  }

  if (!a.scratch) return;
  float* partial = a.scratch + static_cast<std::int64_t>(blockIdx.x) * (kGain ? a.width + 2 : 2);
  along_residual = row_sum<kBlockThreads<kThreads>>(along_residual);
  along_x0 = row_sum<kBlockThreads<kThreads>>(along_x0);
  if (threadIdx.x == 0) partial[0] = along_residual, partial[1] = along_x0;
  if constexpr (kGain) {
    __shared__ float shared[kThreads * kPacks * kPack];
    for (int turn = 0; turn < kRows; ++turn) {  // warps add one after another: a fixed order
      if (group == turn) {
#pragma unroll
        for (int i = 0; i < kPacks; ++i)
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            float& cell = shared[(lane + i * kThreads) * kPack + c];
            cell = turn == 0 ? gain_sum[i][c] : cell + gain_sum[i][c];
          }
      }
      __syncthreads();
    }
    for (int c = threadIdx.x; c < a.width; c += blockDim.x) partial[2 + c] = shared[c];
  }
}

// The columns of `partial` are sum total * residual, sum total * x0, d_gain...; 32 columns a block, 32 rows at a time.
template <class T>
__global__ void add_partials_kernel(AddNormBackward<T> a, int rows, int columns) {
  __shared__ float shared[kWarp][kWarp + 1];
  const int column = blockIdx.x * kWarp + threadIdx.x;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int row = threadIdx.y; row < rows; row += kWarp)
      sum += a.scratch[static_cast<std::int64_t>(row) * columns + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  sum = 0;
#pragma unroll
  for (int row = 0; row < kWarp; ++row) sum += shared[row][threadIdx.x];
  const float along_x0 = __shfl_down_sync(kAllLanes, sum, 1);  // of column 0: the next column's sum
  if (column == 0 && a.d_keep)
    *a.d_keep += (sum - (a.x0 ? *a.again * along_x0 : 0.0f)) / divisor_of_keep(a.keep ? *a.keep : 1.0f);
  if (column == 1 && a.d_again) *a.d_again += sum;
  if (column >= 2 && column < columns && a.d_gain) a.d_gain[column - 2] += sum;
}

std::int64_t backward_blocks(std::int64_t tokens, int width) {
  const std::int64_t rows = width <= 1024 ? kRowWarps : 1;
  return std::max<std::int64_t>(1, std::min(ceil_div(tokens, rows), kMaxBlocks * (rows == 1 ? 2 : 1)));
}

// Calls run(threads a row, packs a thread) with both as compile-time constants.
template <class Run>
void with_row_shape(int width, Run run) {
  using std::integral_constant;
  SWITCHYARD_ASSERT(width % kPack == 0 && width > 0 && width <= 8192,
                    "add_norm needs a width that is a multiple of 8, up to 8192");
  const auto warp = integral_constant<int, kWarp>();
  if (width <= 256) return run(warp, integral_constant<int, 1>());
  if (width <= 512) return run(warp, integral_constant<int, 2>());
  if (width <= 768) return run(warp, integral_constant<int, 3>());
  if (width <= 1024) return run(warp, integral_constant<int, 4>());
  if (width <= 2048) return run(integral_constant<int, 128>(), integral_constant<int, 2>());
  if (width <= 4096) return run(integral_constant<int, 256>(), integral_constant<int, 2>());
  run(integral_constant<int, 256>(), integral_constant<int, 4>());
}

}  // namespace

std::int64_t add_norm_scratch(std::int64_t tokens, int width) { return backward_blocks(tokens, width) * (width + 2); }

template <class T>
void add_norm(const AddNorm<T>& a, Stream stream) {
  if (a.tokens == 0) return;
  SWITCHYARD_ASSERT(!(a.delta && a.rows.rows), "rows are summed instead of delta");
  with_row_shape(a.width, [&](auto threads, auto packs) {
    constexpr int kThreads = decltype(threads)::value, kPacks = decltype(packs)::value;
    const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(a.tokens, kBlockRows<kThreads>));
    if (!a.rows.rows)
      add_norm_kernel<T, kThreads, kPacks, 0><<<blocks, kBlockThreads<kThreads>, 0, stream>>>(a);
    else if (a.rows.top_k <= 2)
      add_norm_kernel<T, kThreads, kPacks, 2><<<blocks, kBlockThreads<kThreads>, 0, stream>>>(a);
    else
      add_norm_kernel<T, kThreads, kPacks, 4><<<blocks, kBlockThreads<kThreads>, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
}

template <class T>
void add_norm_backward(const AddNormBackward<T>& given, Stream stream) {
  if (given.tokens == 0) return;
  SWITCHYARD_ASSERT(given.d_x0 || (given.d_x && !given.add_d_x0), "the gradient of x0 has no buffer");
  AddNormBackward<T> a = given;
  const bool scalars = a.d_keep || a.d_again, sums = scalars || a.d_gain;
  if (!sums) a.scratch = nullptr;
  if (!scalars) a.x0 = nullptr;
  const auto blocks = static_cast<unsigned>(backward_blocks(a.tokens, a.width));
  with_row_shape(a.width, [&](auto threads, auto packs) {
    constexpr int kThreads = decltype(threads)::value, kPacks = decltype(packs)::value;
    if (a.d_gain)
      add_norm_backward_kernel<T, kThreads, kPacks, true><<<blocks, kBlockThreads<kThreads>, 0, stream>>>(a);
    else
      add_norm_backward_kernel<T, kThreads, kPacks, false><<<blocks, kBlockThreads<kThreads>, 0, stream>>>(a);
  });
  SWITCHYARD_CUDA_LAUNCHED();
  if (!sums) return;
  const int columns = a.d_gain ? a.width + 2 : 2;
  add_partials_kernel<<<ceil_div(columns, kWarp), dim3(kWarp, kWarp), 0, stream>>>(a, static_cast<int>(blocks),
                                                                                   columns);
  SWITCHYARD_CUDA_LAUNCHED();
}

template void add_norm(const AddNorm<bf16>&, Stream);
template void add_norm(const AddNorm<float>&, Stream);
template void add_norm_backward(const AddNormBackward<bf16>&, Stream);
template void add_norm_backward(const AddNormBackward<float>&, Stream);

}  // namespace switchyard::kernels
