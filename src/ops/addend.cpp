#include "ops/addend.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/dispatch.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

// The gradient of the sum is that of its stand-in.
class Summed : public torch::autograd::Function<Summed> {
 public:
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& /*stand-in: links*/, const RowSum& rows) {
    return sum_rows(rows);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list& grads) {
    return {grads[0], Tensor()};
  }
};

}  // namespace

Tensor summed(const Addend& addend) {
  return addend.rows.rows_RD.defined() ? Summed::apply(addend.delta_TD, addend.rows) : addend.delta_TD;
}

Tensor sum_rows(const RowSum& rows) {
  const Tensor &from = rows.rows_RD, &row_of = rows.row_of_TK;
  Tensor out = at::empty({row_of.size(0), from.size(1)}, from.options());
  launch(
      from,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::Combine<T>{pointer<T>(from),
                                   pointer<int>(row_of),
                                   pointer<T>(out),
                                   row_of.size(0),
                                   static_cast<int>(row_of.size(1)),
                                   static_cast<int>(from.size(1))};
      },
      [](const auto& work, kernels::Stream stream) { kernels::combine(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::combine_cpu(work, range); });
      });
  return out;
}

Tensor stand_in_for(const RowSum& rows) {
  return at::empty_strided({rows.row_of_TK.size(0), rows.rows_RD.size(1)}, {0, 0}, rows.rows_RD.options());
}

}  // namespace switchyard::ops
