// Polar Express (polar_express.h) on a GPU, over a batch of fp16 matrices of one shape. G and each Y are symmetric, so
// only squares on and below the diagonal are computed. fp16 has three bits more than bf16, and after the division by
// the norm its range suffices.
#pragma once

#include <ATen/ATen.h>

namespace switchyard {

class PolarBatch {
 public:
  // Scratch for up to `count` matrices, from torch's allocator. scheduler: int [2] on the device, zeros between runs.
  PolarBatch(std::int64_t count, std::int64_t rows, std::int64_t columns, const at::Tensor& scheduler);
  static std::int64_t bytes_of_one(std::int64_t rows, std::int64_t columns);

  // [count, rows, columns] fp16: fill them, each with a norm of at most 1. Ask anew after run(), which may move them.
  void* data() const { return x_.data_ptr(); }
  // The first `count` matrices become their polar factors. Same operations whatever the values; may be captured.
  void run(std::int64_t count, int iterations);

 private:
  struct Product;
  void multiply(std::int64_t count, const Product& product);

  const bool tall_;
  const bool own_products_;  // kernels/symmetric_product.h; else torch's products
  at::Tensor x_, next_;      // [count, rows, columns]; an iteration writes the other
  at::Tensor gram_, y_[2];   // [count, side, side]; a square of one Y is the other
  at::Tensor scheduler_;
  bool backward_ = true;  // the next product's order: each starts where the one before ended, in what the cache holds
};

}  // namespace switchyard
