#include "ops/embedding.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/embedding.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor rows_of(const Tensor& table, const Tensor& tokens) {
#ifdef SWITCHYARD_WITH_CUDA
  if (table.is_cuda() && table.size(1) % 8 == 0) {  // the kernel moves whole packs of channels
    Tensor out = at::empty({tokens.numel(), table.size(1)}, table.options());
    const auto run = [&](auto type) {
      using T = typename decltype(type)::type;
      kernels::embedding(kernels::Embedding<T>{pointer<T>(table), tokens.data_ptr<std::int64_t>(), pointer<T>(out),
                                               tokens.numel(), static_cast<int>(table.size(1))},
                         current_stream(table));
    };
    if (table.scalar_type() == at::kBFloat16)
      run(Type<kernels::bf16>{});
    else
      run(Type<float>{});
    return out;
  }
#endif
  return at::index_select(table, 0, tokens);
}

#ifdef SWITCHYARD_WITH_CUDA
void backward_on_cuda(const Tensor& d_out, const Tensor& tokens, const Parameter& table, bool deterministic) {
  const Tensor order = deterministic ? std::get<1>(at::sort(tokens, /*stable=*/true, 0, false)) : Tensor();
  const auto run = [&](auto type) {
    using T = typename decltype(type)::type;
    kernels::embedding_backward(
        kernels::EmbeddingBackward<T>{pointer<T>(d_out), tokens.data_ptr<std::int64_t>(), pointer<std::int64_t>(order),
                                      table.grad.data_ptr<float>(), tokens.numel(), static_cast<int>(d_out.size(1))},
        current_stream(d_out));
  };
  if (d_out.scalar_type() == at::kBFloat16)
    run(Type<kernels::bf16>{});
  else
    run(Type<float>{});
}
#endif

class Embedding : public torch::autograd::Function<Embedding> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& tokens, const Tensor& table, const Parameter* parameter,
                        bool deterministic) {
    context->save_for_backward({tokens});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    context->saved_data["deterministic"] = deterministic;
    return rows_of(table, tokens);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    const Tensor tokens = context->get_saved_variables()[0], d_out = grads[0].contiguous();
    if (d_out.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
      backward_on_cuda(d_out, tokens, *parameter, context->saved_data["deterministic"].toBool());
#endif
    } else {
      Tensor grad = parameter->grad;
      grad.index_add_(0, tokens, d_out.to(grad.scalar_type()));
    }
    parameter->grad_added();
    return {Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor embedding(const Tensor& tokens_T, const Parameter& table_VD, bool deterministic) {
  if (at::GradMode::is_enabled()) table_VD.use();
  return Embedding::apply(tokens_T, table_VD.compute, &table_VD, deterministic);
}

}  // namespace switchyard::ops
