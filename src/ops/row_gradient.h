// ops/row_gradient.h: the gradient of what the experts read, left as rows for the op before them to sum.
//
// moe_ffn's gradient of x is a sum over each token's rows, and where x is given out by an op whose backward reads that
// gradient next, a sum taken in a pass of its own is written to be read once. Such an op keeps a RowGradient in its
// node of the graph. moe_ffn finds it there, puts its rows into it in backward and returns no gradient for x: nothing
// is added by autograd, and the gradients of x's other readers arrive as ever, beside the rows. The op runs after
// moe_ffn in any case, since autograd counts the readers of x, not their gradients.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "base/error.h"
#include "ops/row_sum.h"

namespace switchyard::ops {

class RowGradient : public torch::CustomClassHolder {
 public:
  // In forward: true for the first who asks. One reader of x leaves its rows here, others sum theirs.
  bool claim() { return !std::exchange(claimed_, true); }
  void put(RowSum rows) {
    SWITCHYARD_ASSERT(!rows_.rows_RD.defined(), "the rows of one backward pass are taken before those of the next");
    rows_ = std::move(rows);
  }
  RowSum take() { return std::exchange(rows_, {}); }  // undefined where nothing was put

 private:
  bool claimed_ = false;
  RowSum rows_;
};

// In Op's forward: a RowGradient of its own.
inline void keep_row_gradient(torch::autograd::AutogradContext* context) {
  context->saved_data["rows"] = c10::IValue::make_capsule(c10::make_intrusive<RowGradient>());
}

// In Op's backward: what moe_ffn left there.
inline RowSum take_rows(torch::autograd::AutogradContext* context) {
  const auto found = context->saved_data.find("rows");
  if (found == context->saved_data.end()) return {};
  const auto capsule = found->second.toCapsule();
  return static_cast<RowGradient&>(*capsule).take();
}

// That of Op, where the gradient of x goes to it as that of its output `output`; else null.
template <class Op>
c10::intrusive_ptr<RowGradient> row_gradient_of(const Tensor& x, std::uint32_t output) {
  auto* node = dynamic_cast<torch::autograd::CppNode<Op>*>(x.grad_fn().get());
  if (!node || x.output_nr() != output) return {};
  const auto found = node->ctx_.saved_data.find("rows");
  if (found == node->ctx_.saved_data.end()) return {};
  auto capsule = found->second.toCapsule();
  return c10::intrusive_ptr<RowGradient>::reclaim(static_cast<RowGradient*>(capsule.release()));
}

// That of the op which gives out x [T, D] and takes rows; null where none does.
c10::intrusive_ptr<RowGradient> row_gradient_before(const Tensor& x_TD);

}  // namespace switchyard::ops
