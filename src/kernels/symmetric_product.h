// kernels/symmetric_product.h: batched products of fp16 matrices, most of whose results are symmetric: what Polar
// Express consists of. CUDA only, Hopper.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

// out = scale * A B + add * C + identity * I     for each of `count` matrices A [m, k] and B [k, n]; summed in fp32
// All matrices are dense, one after the other, 16-byte aligned.
struct SymmetricProduct {
  const fp16* a;  // [count, m, k], or [count, k, m] with a_turned
  const fp16* b;  // [count, k, n], or [count, n, k] with b_turned
  const fp16* c;  // [count, m, n], or null
  fp16* out;      // [count, m, n] overwritten; none of the above
  int count;
  int m, n, k;              // multiples of 8
  bool a_turned, b_turned;  // a_turned needs b not turned
  // m == n, and A B is known to be symmetric: squares of kProductSquare rows and columns on and below the diagonal are
  // computed, those above are mirrored from them. Fastest where b is a, turned the other way.
  bool symmetric;
  float scale, add, identity;
  int* scheduler;  // [2] device memory, zeros before and after; no two products may use it at a time
  // The last matrices first: what the product before left in the cache is then read before it is overwritten.
  bool backward = false;
};

inline constexpr int kProductSquare = 64;

void symmetric_product(const SymmetricProduct&, Stream);

}  // namespace switchyard::kernels
