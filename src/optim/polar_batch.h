// Polar Express on a GPU, over a batch of fp16 matrices of one shape.
//
// X meets the iterations only at their start and end: every X_i is Q_i X_0 with Q_i a product of polynomials in
// G = X_0 X_0', so products of the small side's size suffice, all of them symmetric:
//   P = a I + b G + c G^2;  Q <- Q P;  G <- P G P
// Rounding errors of G grow with each iteration as those of X X' do not, so X is formed anew after kSegment iterations.
// In fp16 this is four times closer to exact arithmetic than the plain iteration in bf16. Matrices that are nearly
// square gain nothing and take one iteration a segment, which is the plain one.
#pragma once

#include <ATen/ATen.h>

namespace switchyard {

class PolarBatch {
 public:
  // Scratch for up to `count` matrices, from torch's allocator.
  PolarBatch(std::int64_t count, std::int64_t rows, std::int64_t columns, at::Device device);
  static std::int64_t bytes_of_one(std::int64_t rows, std::int64_t columns);

  // [count, rows, columns] fp16: fill them, each with a norm of at most 1. Ask anew after run(), which may move them.
  void* data() const { return x_.data_ptr(); }
  // The first `count` matrices become their polar factors. Same operations whatever the values; may be captured.
  void run(std::int64_t count, int iterations);

 private:
  struct Product;
  void multiply(std::int64_t count, const Product& product) const;

  static constexpr int kSegment = 3;
  const bool tall_;
  const int segment_;
  bool supported_;                         // by our own kernel; else torch's products
  at::Tensor x_, next_;                    // [count, rows, columns]; an iteration writes the other
  at::Tensor gram_, power_, all_, spare_;  // [count, side, side]: G, P, Q; the last two only for segments
};

}  // namespace switchyard
