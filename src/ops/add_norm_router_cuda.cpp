#include <torch/csrc/autograd/custom_function.h>

#include "kernels/add_norm_router.h"
#include "ops/add_norm_router.h"
#include "ops/kernel_rows.h"
#include "ops/launch.h"
#include "ops/row_gradient.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const float* values(const Parameter* parameter) { return parameter ? parameter->master.data_ptr<float>() : nullptr; }

// Outputs: n, x', logits.
class AddNormRouter : public torch::autograd::Function<AddNormRouter> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& delta,
                               const Tensor& /*w: links the graph*/, const Residual& r) {
    const std::int64_t tokens = x.size(0), width = x.size(1), experts = r.router->shape[0];
    const at::TensorOptions fp32 = x.options().dtype(at::kFloat);
    const Tensor residual = at::empty_like(x), normed = at::empty_like(x), inverse_rms = at::empty({tokens}, fp32),
                 logits = at::empty({tokens, experts}, fp32);
    with_type_of(x, [&](auto type) {
      using T = typename decltype(type)::type;
      kernels::add_norm_router(
          kernels::AddNormRouter<T>{pointer<T>(x), pointer<T>(delta), values(r.gain), pointer<float>(r.router->compute),
                                    pointer<T>(residual), pointer<T>(normed), pointer<float>(inverse_rms),
                                    pointer<float>(logits), tokens, static_cast<int>(width), static_cast<int>(experts),
                                    static_cast<float>(r.eps)},
          current_stream(x));
    });
    context->save_for_backward(
        {residual, inverse_rms, logits, experts > kernels::kFusedWeightExperts ? normed : Tensor()});
    context->saved_data["router"] = reinterpret_cast<std::int64_t>(r.router);
    context->saved_data["gain"] = reinterpret_cast<std::int64_t>(r.gain);
    keep_row_gradient(context);
    context->set_materialize_grads(false);
    return {normed, residual, logits};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &residual = saved[0], &inverse_rms = saved[1], &logits = saved[2], &normed = saved[3];
    const auto parameter = [&](const char* key) {
      return reinterpret_cast<const Parameter*>(context->saved_data[key].toInt());
    };
    const Parameter *router = parameter("router"), *gain = parameter("gain");
    const auto dense = [](const Tensor& grad) { return grad.defined() ? grad.contiguous() : Tensor(); };
    const Tensor d_normed = dense(grads[0]), d_residual = dense(grads[1]),
                 d_logits = grads[2].defined() ? grads[2].contiguous() : at::zeros_like(logits);
    const RowSum rows = take_rows(context);
    const std::int64_t tokens = residual.size(0);
    const int width = static_cast<int>(residual.size(1)), experts = static_cast<int>(logits.size(1));
    const Tensor d_x = at::empty_like(residual),
                 scratch = at::empty({kernels::add_norm_router_scratch(tokens, width, experts)}, logits.options());
    with_type_of(residual, [&](auto type) {
      using T = typename decltype(type)::type;
      kernels::add_norm_router_backward(
          kernels::AddNormRouterBackward<T>{
              pointer<T>(d_residual), pointer<T>(d_normed), pointer<float>(d_logits), pointer<T>(residual),
              pointer<T>(normed), pointer<float>(inverse_rms), pointer<float>(logits), values(gain),
              pointer<float>(router->compute), pointer<T>(d_x), pointer<float>(router->grad),
              gain ? pointer<float>(gain->grad) : nullptr, pointer<float>(scratch), tokens, width, experts},
          current_stream(residual), kernel_rows<T>(rows, residual));
    });
    for (const Parameter* p : {router, gain})
      if (p) p->grad_added();
    // d_x goes out twice: neither of its two readers may write into it, and is_ours tells them so.
    return {d_x, d_x, Tensor(), Tensor()};
  }
};

}  // namespace

c10::intrusive_ptr<RowGradient> row_gradient_of_norm(const Tensor& x_TD) {
  return row_gradient_of<AddNormRouter>(x_TD, 0);
}

bool norm_takes_router(const Tensor& x_TD, const Tensor& delta_TD, const Residual& residual) {
  if (!x_TD.is_cuda() || !delta_TD.defined() || !residual.router || residual.keep) return false;
  bool takes = false;
  with_type_of(x_TD, [&](auto type) {
    takes = kernels::add_norm_takes_router<typename decltype(type)::type>(static_cast<int>(x_TD.size(1)),
                                                                          static_cast<int>(residual.router->shape[0]));
  });
  return takes;
}

Normed add_norm_router(const Tensor& x_TD, const Tensor& delta_TD, const Residual& residual) {
  if (at::GradMode::is_enabled())
    for (const Parameter* p : {residual.router, residual.gain})
      if (p) p->use();
  const variable_list out = AddNormRouter::apply(x_TD, delta_TD, residual.router->compute, residual);
  return {out[1], out[0], Tensor(), out[2]};
}

}  // namespace switchyard::ops
