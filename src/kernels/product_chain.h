// kernels/product_chain.h: chains of products of fp16 matrices, most of whose results are symmetric: what Polar Express
// consists of. CUDA only, Hopper.
#pragma once

#include "kernels/muon.h"

namespace switchyard::kernels {

inline constexpr int kProductTile = 256;

enum class ProductOperand {
  kStraight,
  kTurned,     // its transpose lies in memory
  kSymmetric,  // as a symmetric result: tiles above the diagonal are not read
};

// out = scale * A B + add * C + identity * I     of A [m, k] and B [k, n], summed in fp32, for each matrix of a batch
// A batch's matrices are dense, one after the other, 16-byte aligned.
struct Product {
  const fp16* a;                  // [count, m, k], or [count, k, m] turned
  const fp16* b;                  // [count, k, n], or [count, n, k] turned
  const fp16* c;                  // [count, m, n], or null
  fp16* out;                      // [count, m, n] overwritten; none of the above
  int m, n, k;                    // multiples of 8
  ProductOperand a_lies, b_lies;  // one straight, or both symmetric and the result too
  // m == n, and A B is known to be symmetric: of C and out only tiles of kProductTile rows and columns on and below the
  // diagonal are read and written. Fastest where A is B, turned.
  bool symmetric;
  float scale = 1, add = 0, identity = 0;
};

inline constexpr int kLongestChain = 16;

// As if the products were computed one after the other, in one launch: a matrix goes on as soon as the product before
// has finished it, so that the batch is worked through a few matrices at a time, which the cache holds in part.
struct ProductChain {
  const Product* products;  // host
  int length;               // at most kLongestChain
  int count;                // matrices
  int* progress;            // [count + 1] device memory, overwritten
  // Or null. The last product, a plain one of nothing but A B, is not stored: weights are updated by it, as
  // muon_apply() does by its `direction`. Of those [count, m, n] weights and copies are 16-byte aligned.
  const MuonApply* update = nullptr;
};
void product_chain(const ProductChain&, Stream);

}  // namespace switchyard::kernels
