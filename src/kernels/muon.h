// kernels/muon.h: the elementwise parts of Muon (Jordan 2024) over a batch of matrices of one shape; the
// orthogonalisation between them is matrix products. CUDA only: on CPU the batch is plain ATen.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

struct MuonMatrix {
  float* weight;      // [rows, cols] fp32 master
  const float* grad;  // [rows, cols]
  float* momentum;    // [rows, cols]
  bf16* copy;         // [rows, cols] compute copy, or null
};

// Pointers need only the alignment of their type; 16 bytes are faster.
struct MuonBatch {
  const MuonMatrix* matrices;  // [count], device memory
  int count;                   // at most 65535
  std::int64_t rows, cols;
};

// g = *grad_factor * grad
// momentum = mu momentum + (1 - mu) g
// update = nesterov ? (1 - mu) g + mu momentum : momentum        rounded to bf16
// direction = update / (norm * safety + eps)                      norm: of the matrix's update
//
// A matrix of zeros stays zero. Polar Express wants safety 1.02, eps 1e-6. The norm is then below 1, where fp16 holds a
// matrix eight times finer than bf16. While *apply is 0 no momentum is stored; direction is written all the same.
struct MuonPrepare {
  MuonBatch batch;
  fp16* direction;           // [count, rows, cols] overwritten, 16-byte aligned
  float* norm_parts;         // [count, muon_norm_parts(rows, cols)] scratch
  int* progress;             // [count + 1] zeros before and after
  const float* mu;           // one device value
  const float* grad_factor;  // one device value: factor on every gradient (clipping)
  const int* apply;          // one device value
  bool nesterov;
  float safety, eps;
};

// weight -= *schedule * (lr * direction + shrink * *shrink_schedule * weight), with `cautious` the second term only
// where direction * weight >= 0. Nothing is stored while *apply is 0: a select, not a product, because 0 * NaN is NaN.
struct MuonApply {
  MuonBatch batch;
  const fp16* direction;         // [count, rows, cols] the orthogonalised update, 16-byte aligned
  const float* schedule;         // one device value: factor on both rates
  const float* shrink_schedule;  // one device value: factor on shrink
  const int* apply;              // one device value
  float lr;                      // with the matrix's shape factor, such as sqrt(max(1, rows / cols))
  float shrink;                  // learning rate times weight decay
  bool cautious;
};

std::int64_t muon_norm_parts(std::int64_t rows, std::int64_t cols);
void muon_prepare(const MuonPrepare&, Stream);
void muon_apply(const MuonApply&, Stream);

}  // namespace switchyard::kernels
