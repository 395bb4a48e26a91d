#include "ops/head_loss.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "ops/head_chunk.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void cross_entropy(const Tensor& logits, const Tensor& target, const Tensor& nll, const HeadLossOptions& options,
                   bool gradient) {
  launch(
      logits,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::CrossEntropy<T>{pointer<T>(logits),
                                        target.data_ptr<std::int64_t>(),
                                        nll.data_ptr<float>(),
                                        logits.size(0),
                                        static_cast<int>(logits.size(1)),
                                        static_cast<float>(options.softcap),
                                        static_cast<float>(options.grad_scale),
                                        gradient};
      },
      [](const auto& work, kernels::Stream stream) { kernels::cross_entropy(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 4, [&](kernels::Range range) { kernels::cross_entropy_cpu(work, range); });
      });
}

std::int64_t chunk_of(const Tensor& x, const Parameter& w, const HeadLossOptions& options) {
  return options.chunk_tokens ? options.chunk_tokens : head_chunk_tokens(w.shape[0], x.element_size());
}

class HeadLoss : public torch::autograd::Function<HeadLoss> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& /*w*/, const Parameter* w,
                               const Tensor& target, const HeadLossOptions& options, const LinearProducts* products,
                               bool gradient) {
    const std::int64_t tokens = x.size(0), chunk = chunk_of(x, *w, options);
    Tensor nll = at::empty({tokens}, x.options().dtype(at::kFloat)), dx = gradient ? at::empty_like(x) : Tensor();
    for (std::int64_t begin = 0; begin < tokens; begin += chunk) {
      const std::int64_t count = std::min(chunk, tokens - begin);
      const Tensor part = x.narrow(0, begin, count);
      const Tensor logits = products->forward(part, *w);
      cross_entropy(logits, target.narrow(0, begin, count), nll.narrow(0, begin, count), options, gradient);
      if (!gradient) continue;
      products->dgrad_into(dx.narrow(0, begin, count), logits, *w);
      products->wgrad(logits, part, *w);
    }
    if (gradient) context->save_for_backward({dx});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(w);
    context->mark_non_differentiable({nll});
    return {nll.sum() * options.grad_scale, nll};
  }

  static variable_list backward(AutogradContext* context, const variable_list&) {
    reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt())->grad_added();
    return {context->get_saved_variables()[0], Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

std::pair<Tensor, Tensor> head_loss(const Tensor& x_TD, const Parameter& w_VD, const Tensor& target_T,
                                    const HeadLossOptions& options, const LinearProducts& products) {
  const bool gradient = at::GradMode::is_enabled();
  if (gradient) w_VD.use();
  const variable_list out = HeadLoss::apply(x_TD, w_VD.compute, &w_VD, target_T, options, &products, gradient);
  return {out[0], out[1]};
}

std::pair<Tensor, Tensor> head_loss_reference(const Tensor& x_TD, const Parameter& w_VD, const Tensor& target_T,
                                              const HeadLossOptions& options) {
  Tensor z = at::mm(x_TD, attach(w_VD).t());
  if (options.softcap > 0) z = options.softcap * at::tanh(z / options.softcap);
  const Tensor nll = at::cross_entropy_loss(z, target_T, {}, at::Reduction::None, -1);
  return {nll.sum() * options.grad_scale, nll.detach().to(at::kFloat)};
}

Tensor capped_logits(const Tensor& x_TD, const Parameter& w_VD, double softcap) {
  const Tensor z = at::mm(x_TD, w_VD.compute.t()).to(at::kFloat);
  return softcap > 0 ? softcap * at::tanh(z / softcap) : z;
}

}  // namespace switchyard::ops
