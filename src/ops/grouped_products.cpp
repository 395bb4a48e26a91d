#include "ops/grouped_products.h"

#include "kernels/dispatch.h"
#include "ops/cpu_products.h"
#include "ops/hopper_products.h"
#include "ops/launch.h"
#include "ops/portable_products.h"

namespace switchyard::ops {
const GroupedProducts& GroupedProducts::choose(at::Device device, [[maybe_unused]] at::ScalarType dtype) {
#ifdef SWITCHYARD_WITH_CUDA
  static const HopperProducts hopper;
  if (has_hopper_products(device, dtype)) return hopper;
  if (device.is_cuda()) return portable_products(dtype);
#endif
  SWITCHYARD_ASSERT(device.is_cpu(), "a GPU in a build without CUDA");
  static const CpuProducts cpu;
  return cpu;
}

Tensor GroupedProducts::gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const {
  return forward(permute_rows(x_TD, plan), w_END, plan);
}

void GroupedProducts::gathered_wgrad(const Tensor& d, const Tensor& rows, Side by_tokens, const Parameter& w_END,
                                     const DispatchPlan& plan) const {
  if (by_tokens == Side::kD)
    wgrad(permute_rows(d, plan), rows, w_END, plan);
  else
    wgrad(d, permute_rows(rows, plan), w_END, plan);
}

Tensor permute_rows(const Tensor& x_TD, const DispatchPlan& plan) {
  Tensor rows = at::empty({plan.row_capacity, x_TD.size(1)}, x_TD.options());
  const Tensor in_use = plan.rows_in_use();
  launch(
      x_TD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::PermuteRows<T>{pointer<T>(x_TD),
                                       plan.row_of_TK.data_ptr<int>(),
                                       plan.token_of_row_R.data_ptr<int>(),
                                       in_use.data_ptr<int>(),
                                       pointer<T>(rows),
                                       plan.tokens,
                                       plan.top_k,
                                       static_cast<int>(x_TD.size(1)),
                                       plan.row_capacity};
      },
      [](const auto& work, kernels::Stream stream) { kernels::permute_rows(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.items(), 64, [&](kernels::Range range) { kernels::permute_rows_cpu(work, range); });
      });
  return rows;
}

}  // namespace switchyard::ops
