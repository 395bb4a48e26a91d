#include "ops/row_norms.h"

#include "kernels/row_norms.h"
#include "ops/launch.h"

namespace switchyard::ops {

Tensor row_norms(const Tensor& x_TD) {
  const Tensor x = x_TD.contiguous();
  Tensor norm = at::empty({x.size(0)}, x.options().dtype(at::kFloat).requires_grad(false));
  launch(
      x,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::RowNorms<T>{pointer<T>(x), pointer<float>(norm), x.size(0), static_cast<int>(x.size(1))};
      },
      [](const auto& work, kernels::Stream stream) { kernels::row_norms(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::row_norms_cpu(work, range); });
      });
  return norm;
}

}  // namespace switchyard::ops
