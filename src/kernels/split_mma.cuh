// kernels/split_mma.cuh: fp32 operands on the bf16 tensor cores. A float is the sum of two bf16 terms to 2^-17 of its
// size, of three to its last bit; a product is the sum over pairs of terms, summed in fp32.
#pragma once

#include "kernels/vector.cuh"

namespace switchyard::kernels {

// d += a b, a [16, 16], b [16, 8]. Lane 4 g + q holds, as pairs along the summed dimension (lower half first),
//   of a (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8);  of b (2q, g), (2q + 8, g)
// and of d the floats (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A pair of floats as kTerms pairs of bf16, largest first.
template <int kTerms>
__device__ __forceinline__ void split(float low, float high, unsigned (&term)[kTerms]) {
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    term[i] = pack_two(low, high);
    float taken_low, taken_high;
    unpack_two(term[i], taken_low, taken_high);
    low -= taken_low, high -= taken_high;
  }
}

// Terms of an activation: bf16 is its own only one.
template <class T>
inline constexpr int kOwnTerms = sizeof(T) == 2 ? 1 : 3;
// Terms of an fp32 operand beside an activation of type T. Products of terms i and j with i + j < kTerms count, the
// others are below the error of the split itself.
template <class T>
inline constexpr int kTerms = sizeof(T) == 2 ? 2 : 3;

// The four pairs of neighbouring channels of a pack, as terms.
__device__ __forceinline__ void channel_pairs(const Pack<bf16>& v, unsigned (&pair)[4][1]) {
  pair[0][0] = v.raw.x, pair[1][0] = v.raw.y, pair[2][0] = v.raw.z, pair[3][0] = v.raw.w;
}
__device__ __forceinline__ void channel_pairs(const Pack<float>& v, unsigned (&pair)[4][3]) {
  float f[kPack];
  unpack(v, f);
#pragma unroll
  for (int i = 0; i < 4; ++i) split(f[2 * i], f[2 * i + 1], pair[i]);
}

// Channel c of one row (lower half) beside channel c of another, for the eight channels of a pack.
__device__ __forceinline__ void row_pairs(const Pack<bf16>& a, const Pack<bf16>& b, unsigned (&pair)[kPack][1]) {
  const unsigned first[4] = {a.raw.x, a.raw.y, a.raw.z, a.raw.w}, second[4] = {b.raw.x, b.raw.y, b.raw.z, b.raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pair[2 * i][0] = __byte_perm(first[i], second[i], 0x5410);
    pair[2 * i + 1][0] = __byte_perm(first[i], second[i], 0x7632);
  }
}
__device__ __forceinline__ void row_pairs(const Pack<float>& a, const Pack<float>& b, unsigned (&pair)[kPack][3]) {
  float first[kPack], second[kPack];
  unpack(a, first);
  unpack(b, second);
#pragma unroll
  for (int c = 0; c < kPack; ++c) split(first[c], second[c], pair[c]);
}

}  // namespace switchyard::kernels
