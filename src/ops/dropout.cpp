#include "ops/dropout.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/dropout.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor masked(const Tensor& x, double p, std::int64_t site, std::int64_t seed, const Tensor& step, const Tensor& window,
              std::int64_t seq_len) {
  Tensor out = at::empty_like(x);
  launch(
      x,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return kernels::Dropout<T>{pointer<T>(x),
                                   pointer<T>(out),
                                   window.data_ptr<std::int64_t>(),
                                   step.data_ptr<std::int64_t>(),
                                   static_cast<std::uint64_t>(seed),
                                   static_cast<std::uint64_t>(site),
                                   x.size(0),
                                   static_cast<int>(seq_len),
                                   static_cast<int>(x.size(1)),
                                   static_cast<float>(p)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::dropout(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 32, [&](kernels::Range range) { kernels::dropout_cpu(work, range); });
      });
  return out;
}

class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, double p, std::int64_t site, std::int64_t seed,
                        const Tensor& step, const Tensor& window, std::int64_t seq_len) {
    context->save_for_backward({step, window});
    context->saved_data["p"] = p;
    context->saved_data["draw"] = std::vector<std::int64_t>{site, seed, seq_len};
    return masked(x, p, site, seed, step, window, seq_len);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const auto draw = context->saved_data["draw"].toIntVector();
    const Tensor d_x = masked(grads[0].contiguous(), context->saved_data["p"].toDouble(), draw[0], draw[1], saved[0],
                              saved[1], draw[2]);
    return {d_x, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor dropout(const Tensor& x_TD, double p, std::uint64_t site, const DropoutKey& key) {
  if (p == 0) return x_TD;
  return Dropout::apply(x_TD, p, static_cast<std::int64_t>(site), static_cast<std::int64_t>(key.seed), key.step,
                        key.window_B, static_cast<std::int64_t>(key.seq_len));
}

}  // namespace switchyard::ops
