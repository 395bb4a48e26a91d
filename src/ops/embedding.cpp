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
void backward_on_cuda(const Tensor& d_out, const Tensor& tokens, const Tensor& order, const Parameter& table) {
  const int width = static_cast<int>(d_out.size(1));
  const Tensor scratch =
      at::empty({kernels::embedding_scratch(tokens.numel(), width)}, d_out.options().dtype(at::kFloat));
  const auto run = [&](auto type) {
    using T = typename decltype(type)::type;
    kernels::embedding_backward(
        kernels::EmbeddingBackward<T>{pointer<T>(d_out), tokens.data_ptr<std::int64_t>(),
                                      order.data_ptr<std::int64_t>(), table.grad.data_ptr<float>(),
                                      scratch.data_ptr<float>(), tokens.numel(), width},
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
                        const std::optional<Tensor>& order) {
    context->save_for_backward({tokens, order.value_or(Tensor())});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    return rows_of(table, tokens);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    const variable_list saved = context->get_saved_variables();
    const Tensor &tokens = saved[0], d_out = grads[0].contiguous();
    if (d_out.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
      backward_on_cuda(d_out, tokens, saved[1], *parameter);
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

Tensor token_order(const Tensor& tokens_T) {
  if (!tokens_T.is_cuda()) return {};
  // A vocabulary fits in 32 bits, which halves the passes of the sort.
  return std::get<1>(at::sort(tokens_T.to(at::kInt), /*stable=*/true, 0, false));
}

Tensor embedding(const Tensor& tokens_T, const Parameter& table_VD, const Tensor& order) {
  if (at::GradMode::is_enabled()) table_VD.use();
  return Embedding::apply(tokens_T, table_VD.compute, &table_VD, optional(order));
}

}  // namespace switchyard::ops
