// ops/linear.h: y = x W^T, and the products it is made of.
#pragma once

#include "ops/parameter.h"

namespace switchyard::ops {

// The three products of a linear layer. One implementation a precision; this one multiplies in the tensors' own type.
class LinearProducts {
 public:
  virtual ~LinearProducts() = default;
  virtual Tensor forward(const Tensor& x_TD, const Parameter& w_ND) const;                         // [T, N]
  virtual Tensor dgrad(const Tensor& dy_TN, const Parameter& w_ND) const;                          // [T, D]
  virtual void dgrad_into(const Tensor& dx_TD, const Tensor& dy_TN, const Parameter& w_ND) const;  // overwrites dx
  virtual void wgrad(const Tensor& dy_TN, const Tensor& x_TD, const Parameter& w_ND) const;        // w.grad += dy^T x
  static const LinearProducts& plain();
};

// x [T, D] (rows contiguous or a column slice), w [N, D]. The gradient of w is added to its slice in the master's type.
Tensor linear(const Tensor& x_TD, const Parameter& w_ND, const LinearProducts& products = LinearProducts::plain());

// grad += a^T b for a [T, N], b [T, D], grad [N, D]: bf16 operands are summed in fp32 by the product itself.
void add_product(const Tensor& grad_ND, const Tensor& a_TN, const Tensor& b_TD);

}  // namespace switchyard::ops
