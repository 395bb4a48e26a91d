#include "ops/grouped_products.h"

#include <vector>

#include "kernels/dispatch.h"
#include "ops/cpu_products.h"
#include "ops/hopper_products.h"
#include "ops/launch.h"
#include "ops/linear.h"

namespace switchyard::ops {
namespace {

// One product an expert, on a GPU without our grouped kernels: reading the offsets waits for the device.
class ExpertLoop : public GroupedProducts {
 public:
  Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const override {
    return each(rows_RD, w_END.shape[1], plan, [&](int e) { return w_END.compute.detach()[e].t(); });
  }
  Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const override {
    return each(d_RN, w_END.shape[2], plan, [&](int e) { return w_END.compute.detach()[e]; });
  }
  void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
             const DispatchPlan& plan) const override {
    for_experts(plan, [&](int e, std::int64_t begin, std::int64_t count) {
      add_product(w_END.grad[e], d_RN.narrow(0, begin, count), rows_RD.narrow(0, begin, count));
    });
  }

 private:
  static std::vector<int> offsets(const DispatchPlan& plan) {
    const Tensor host = plan.offset_E1.cpu();
    return {host.data_ptr<int>(), host.data_ptr<int>() + host.numel()};
  }
  template <class Matrix>
  static Tensor each(const Tensor& rows, std::int64_t width, const DispatchPlan& plan, Matrix matrix) {
    Tensor out = at::empty({plan.row_capacity, width}, rows.options());
    for_experts(plan, [&](int e, std::int64_t begin, std::int64_t count) {
      Tensor part = out.narrow(0, begin, count);
      at::mm_out(part, rows.narrow(0, begin, count), matrix(e));
    });
    return out;
  }
  // work(expert, first row, rows) of each expert that has rows.
  template <class Work>
  static void for_experts(const DispatchPlan& plan, Work work) {
    const std::vector<int> offset = offsets(plan);
    for (int e = 0; e < plan.experts; ++e)
      if (offset[e + 1] > offset[e]) work(e, offset[e], offset[e + 1] - offset[e]);
  }
};

}  // namespace

const GroupedProducts& GroupedProducts::choose(at::Device device, at::ScalarType dtype) {
#ifdef SWITCHYARD_WITH_CUDA
  static const HopperProducts hopper;
  if (has_hopper_products(device, dtype)) return hopper;
#endif
  (void)dtype;
  static const CpuProducts cpu;
  if (device.is_cpu()) return cpu;
  static const ExpertLoop loop;
  return loop;
}

Tensor GroupedProducts::gathered_forward(const Tensor& x_TD, const Parameter& w_END, const DispatchPlan& plan) const {
  return forward(permute_rows(x_TD, plan), w_END, plan);
}

Tensor permute_rows(const Tensor& x_TD, const DispatchPlan& plan) {
  Tensor rows = at::empty({plan.row_capacity, x_TD.size(1)}, x_TD.options());
  const Tensor in_use = plan.rows_in_use();
  launch(
      x_TD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::PermuteRows<T>{pointer<T>(x_TD),
                                       nullptr,
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
