#include "ops/grouped_products.h"

#include <vector>

#include "ops/linear.h"

#ifdef SWITCHYARD_WITH_CUDA
#include <ATen/cuda/CUDAContext.h>
#endif

namespace switchyard::ops {
namespace {

// One product an expert. On a GPU reading the offsets waits for the device.
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
    const std::vector<int> offset = offsets(plan);
    for (int e = 0; e < plan.experts; ++e) {
      const std::int64_t begin = offset[e], count = offset[e + 1] - offset[e];
      if (count > 0) add_product(w_END.grad[e], d_RN.narrow(0, begin, count), rows_RD.narrow(0, begin, count));
    }
  }

 private:
  static std::vector<int> offsets(const DispatchPlan& plan) {
    const Tensor host = plan.offset_E1.cpu();
    return {host.data_ptr<int>(), host.data_ptr<int>() + host.numel()};
  }
  template <class Matrix>
  static Tensor each(const Tensor& rows, std::int64_t width, const DispatchPlan& plan, Matrix matrix) {
    const std::vector<int> offset = offsets(plan);
    Tensor out = at::empty({plan.row_capacity, width}, rows.options());
    for (int e = 0; e < plan.experts; ++e) {
      const std::int64_t begin = offset[e], count = offset[e + 1] - offset[e];
      if (count == 0) continue;
      Tensor part = out.narrow(0, begin, count);
      at::mm_out(part, rows.narrow(0, begin, count), matrix(e));
    }
    return out;
  }
};

// torch's grouped product (CUTLASS): offsets stay on the device. Its weight gradients come in bf16 and an empty
// expert's is whatever the memory held, so they are selected before they are added.
class TorchGrouped : public GroupedProducts {
 public:
  Tensor forward(const Tensor& rows_RD, const Parameter& w_END, const DispatchPlan& plan) const override {
    return at::_grouped_mm(rows_RD, w_END.compute.detach().transpose(1, 2), plan.end_E);
  }
  Tensor dgrad(const Tensor& d_RN, const Parameter& w_END, const DispatchPlan& plan) const override {
    return at::_grouped_mm(d_RN, w_END.compute.detach(), plan.end_E);
  }
  void wgrad(const Tensor& d_RN, const Tensor& rows_RD, const Parameter& w_END,
             const DispatchPlan& plan) const override {
    const Tensor product = at::_grouped_mm(d_RN.t(), rows_RD, plan.end_E);
    const Tensor empty = plan.count_E.eq(0).view({plan.experts, 1, 1});
    Tensor grad = w_END.grad;
    grad.add_(product.masked_fill(empty, 0));
  }
};

bool has_torch_grouped(at::Device device, at::ScalarType dtype) {
#ifdef SWITCHYARD_WITH_CUDA
  return device.is_cuda() && dtype == at::kBFloat16 && at::cuda::getDeviceProperties(device.index())->major == 9;
#else
  (void)device, (void)dtype;
  return false;
#endif
}

}  // namespace

const GroupedProducts& GroupedProducts::choose(at::Device device, at::ScalarType dtype) {
  static const ExpertLoop loop;
  static const TorchGrouped grouped;
  if (has_torch_grouped(device, dtype)) return grouped;
  return loop;
}

bool GroupedProducts::capturable(at::Device device, at::ScalarType dtype) { return has_torch_grouped(device, dtype); }

}  // namespace switchyard::ops
