#include "ops/add_norm.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/add_norm.h"
#include "ops/add_norm_router.h"
#include "ops/gradient.h"
#include "ops/kernel_rows.h"
#include "ops/launch.h"
#include "ops/router_scores.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const float* scalar(const Parameter* parameter, int index) {
  if (!parameter) return nullptr;
  SWITCHYARD_ASSERT(parameter->master.scalar_type() == at::kFloat, "residual scalars are fp32");
  return parameter->master.data_ptr<float>() + index;
}

// CPU backward: each range sums its tokens, ranges are added in order, so the result does not depend on timing.
template <class T>
void backward_on_cpu(const kernels::AddNormBackward<T>& work) {
  constexpr std::int64_t kRange = 256;
  const std::int64_t ranges = (work.tokens + kRange - 1) / kRange, columns = 2 + work.width;
  std::vector<double> sums(static_cast<std::size_t>(ranges * columns), 0.0);
  parallel_ranges(ranges, 1, [&](kernels::Range r) {
    for (std::int64_t i = r.begin; i < r.end; ++i)
      kernels::add_norm_backward_cpu(work, {i * kRange, std::min(work.tokens, (i + 1) * kRange)}, &sums[i * columns]);
  });
  for (std::int64_t i = 0; i < ranges; ++i) {
    const double* row = &sums[i * columns];
    if (work.d_keep) *work.d_keep += static_cast<float>(row[0]);
    if (work.d_again) *work.d_again += static_cast<float>(row[1]);
    for (int j = 0; work.d_gain && j < work.width; ++j) work.d_gain[j] += static_cast<float>(row[2 + j]);
  }
}

// Outputs: n; x' where it is stored; x0 where there are scalars.
class AddNorm : public torch::autograd::Function<AddNorm> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const std::optional<Tensor>& maybe_delta,
                               const std::optional<Tensor>& maybe_x0, const Residual& r, const RowSum& rows) {
    const Tensor delta = maybe_delta.value_or(Tensor()), x0 = maybe_x0.value_or(Tensor());
    const std::int64_t tokens = x.size(0), width = x.size(1);
    const bool summed = rows.rows_RD.defined();  // then delta has no values
    const bool stored = delta.defined() || r.keep;
    Tensor residual = stored ? at::empty_like(x) : Tensor(), normed = at::empty_like(x);
    Tensor inverse_rms = at::empty({tokens}, x.options().dtype(at::kFloat));
    launch(
        x,
        [&](auto type) {
          using T = typename decltype(type)::type;
          return kernels::AddNorm<T>{pointer<T>(x),
                                     summed ? nullptr : pointer<T>(delta),
                                     r.keep ? pointer<T>(x0) : nullptr,
                                     scalar(r.keep, r.index),
                                     scalar(r.again, r.index),
                                     scalar(r.gain, 0),
                                     pointer<T>(residual),
                                     pointer<T>(normed),
                                     inverse_rms.data_ptr<float>(),
                                     tokens,
                                     static_cast<int>(width),
                                     static_cast<float>(r.eps),
                                     kernel_rows<T>(rows, x)};
        },
        [](const auto& work, kernels::Stream stream) { kernels::add_norm(work, stream); },
        [](const auto& work) {
          parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::add_norm_cpu(work, range); });
        });
    const bool scalars = r.keep != nullptr;
    context->save_for_backward({stored ? residual : x, inverse_rms, scalars ? x0 : Tensor()});
    context->saved_data["keep"] = reinterpret_cast<std::int64_t>(r.keep);
    context->saved_data["again"] = reinterpret_cast<std::int64_t>(r.again);
    context->saved_data["gain"] = reinterpret_cast<std::int64_t>(r.gain);
    context->saved_data["index"] = static_cast<std::int64_t>(r.index);
    context->saved_data["delta"] = delta.defined();
    // The first block's x is x0: one gradient takes both parts, and autograd adds nothing.
    context->saved_data["x_is_x0"] = scalars && !delta.defined() && x.is_same(x0);
    context->set_materialize_grads(false);
    variable_list out{normed};
    if (stored) out.push_back(residual);
    if (scalars) out.push_back(x0);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto parameter = [&](const char* key) {
      return reinterpret_cast<const Parameter*>(context->saved_data[key].toInt());
    };
    const Parameter *keep = parameter("keep"), *again = parameter("again"), *gain = parameter("gain");
    const int index = static_cast<int>(context->saved_data["index"].toInt());
    const Tensor &residual = saved[0], &x0 = saved[2];
    const std::int64_t tokens = residual.size(0), width = residual.size(1);
    const auto dense = [](const Tensor& grad) { return grad.defined() ? grad.contiguous() : Tensor(); };
    const Tensor d_normed = dense(grads[0]), d_residual = grads.size() > 1 ? dense(grads[1]) : Tensor();
    const bool x_is_x0 = context->saved_data["x_is_x0"].toBool(), add_d_x0 = keep && grads[2].defined();
    Tensor d_x = x_is_x0 ? Tensor() : at::empty_like(residual), d_x0;
    if (keep) d_x0 = add_d_x0 ? own_gradient(grads[2], residual) : at::empty_like(residual);
    Tensor scratch;
    if (residual.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
      scratch =
          at::empty({kernels::add_norm_scratch(tokens, static_cast<int>(width))}, residual.options().dtype(at::kFloat));
#endif
    }
    const auto slice = [&](const Parameter* p, int at) { return p ? p->grad.data_ptr<float>() + at : nullptr; };
    launch(
        residual,
        [&](auto type) {
          using T = typename decltype(type)::type;
          return kernels::AddNormBackward<T>{pointer<T>(d_residual),
                                             pointer<T>(d_normed),
                                             pointer<T>(residual),
                                             saved[1].data_ptr<float>(),
                                             pointer<T>(x0),
                                             scalar(keep, index),
                                             scalar(again, index),
                                             scalar(gain, 0),
                                             pointer<T>(d_x),
                                             pointer<T>(d_x0),
                                             slice(keep, index),
                                             slice(again, index),
                                             slice(gain, 0),
                                             pointer<float>(scratch),
                                             tokens,
                                             static_cast<int>(width),
                                             add_d_x0};
        },
        [](const auto& work, kernels::Stream stream) { kernels::add_norm_backward(work, stream); },
        [](const auto& work) { backward_on_cpu(work); });
    for (const Parameter* p : {keep, again, gain})
      if (p) p->grad_added();
    // d_x goes out twice: neither of its two readers may write into it, and is_ours tells them so.
    return {d_x, context->saved_data["delta"].toBool() ? d_x : Tensor(), d_x0, Tensor(), Tensor()};
  }
};

}  // namespace

Normed add_norm(const Tensor& x_TD, const Addend& delta, const Tensor& x0_TD, const Residual& residual) {
#ifdef SWITCHYARD_WITH_CUDA
  if (norm_takes_router(x_TD, delta.delta_TD, residual)) return add_norm_router(x_TD, summed(delta), residual);
#endif
  if (at::GradMode::is_enabled())
    for (const Parameter* p : {residual.keep, residual.again, residual.gain})
      if (p) p->use();
  const variable_list out = AddNorm::apply(x_TD, optional(delta.delta_TD),
                                           residual.keep ? optional(x0_TD) : std::nullopt, residual, delta.rows);
  Normed normed{out.size() > 1 ? out[1] : x_TD, out[0], out.size() > 2 ? out[2] : Tensor(), Tensor()};
  if (residual.router) {
    const RouterLogits routed = router_logits(normed.n_TD, *residual.router);
    normed.logits_TE = routed.logits_TE, normed.n_TD = routed.x_TD;
  }
  return normed;
}

Normed add_norm_reference(const Tensor& x_TD, const Tensor& delta_TD, const Tensor& x0_TD, const Residual& residual) {
  Tensor x = delta_TD.defined() ? x_TD + delta_TD : x_TD;
  if (residual.keep) x = attach(*residual.keep)[residual.index] * x + attach(*residual.again)[residual.index] * x0_TD;
  Tensor normed = x * (x.pow(2).mean(-1, true) + residual.eps).rsqrt();
  if (residual.gain) normed = normed * attach(*residual.gain);
  const Tensor logits = residual.router ? at::mm(normed.to(at::kFloat), attach(*residual.router).t()) : Tensor();
  return {x, normed, x0_TD, logits};
}

Tensor rms_norm(const Tensor& x_TD, const Parameter* gain, double eps) {
  Residual plain;
  plain.gain = gain;
  plain.eps = eps;
  return add_norm(x_TD, Tensor(), Tensor(), plain).n_TD;
}

}  // namespace switchyard::ops
