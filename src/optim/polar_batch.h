// Polar Express (polar_express.h) on a GPU, over a batch of fp16 matrices of one shape. G and each Y are symmetric, so
// only squares on and below the diagonal are computed. fp16 has three bits more than bf16, and after the division by
// the norm its range suffices.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "kernels/muon.h"

namespace switchyard {

class PolarBatch {
 public:
  // Scratch for up to `count` matrices, from torch's allocator.
  PolarBatch(std::int64_t count, std::int64_t rows, std::int64_t columns, at::Device device);
  static std::int64_t bytes_of_one(std::int64_t rows, std::int64_t columns);

  // [count, rows, columns] fp16: fill them, each with a norm of at most 1. Ask anew after run(), which may move them.
  void* data() const { return x_.data_ptr(); }
  // The first `count` matrices become their polar factors. Same operations whatever the values; may be captured.
  void run(std::int64_t count, int iterations) { run(count, iterations, nullptr); }
  // Instead, weights are updated by their polar factors: run() and then muon_apply(), in one launch where own products
  // can, whatever update.direction is. data() holds nothing after it. aligned: weights and copies are, to 16 bytes.
  void update(std::int64_t count, int iterations, kernels::MuonApply update, bool aligned);

 private:
  struct Product;
  void run(std::int64_t count, int iterations, const kernels::MuonApply* update);
  void multiply(std::int64_t count, const std::vector<Product>& products, const kernels::MuonApply* update) const;
  static void multiply(std::int64_t count, const Product& product);

  const bool tall_;
  const bool own_products_;  // kernels/product_chain.h; else torch's products
  at::Tensor x_, next_;      // [count, rows, columns]; an iteration writes the other
  at::Tensor gram_, y_[2];   // [count, side, side]; a square of one Y is the other
  at::Tensor progress_;      // kernels::ProductChain::progress
};

}  // namespace switchyard
