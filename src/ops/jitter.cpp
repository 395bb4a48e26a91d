#include "ops/jitter.h"

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/jitter.h"
#include "ops/gradient.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Call : torch::CustomClassHolder {
  double amount;
  std::uint64_t site;
  DropoutKey key;
};

// out = add + x times its factors; add may be undefined.
void run(const Tensor& x, const Tensor& add, const Tensor& out, const Call& call) {
  const DropoutKey& key = call.key;
  launch(
      x,
      [&](auto type) {
        using T = typename decltype(type)::type;
        const int width = static_cast<int>(x.size(1));
        const kernels::NoiseDraw noise{nullptr,
                                       pointer<std::int64_t>(key.window_B),
                                       pointer<std::int64_t>(key.step),
                                       key.seed,
                                       call.site,
                                       x.size(0),
                                       key.seq_len,
                                       width,
                                       Noise::kUniform};
        return kernels::Jitter<T>{
            pointer<T>(x), pointer<T>(add), pointer<T>(out), noise, x.size(0), width, static_cast<float>(call.amount)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::jitter(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 16, [&](kernels::Range range) { kernels::jitter_cpu(work, range); });
      });
}

class JitterOp : public torch::autograd::Function<JitterOp> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const c10::intrusive_ptr<Call>& call) {
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    context->set_materialize_grads(false);
    Tensor out = at::empty_like(x, at::MemoryFormat::Contiguous);
    run(x.contiguous(), Tensor(), out, *call);
    return {out, x};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto capsule = context->saved_data["call"].toCapsule();
    if (!grads[0].defined()) return {grads[1], Tensor()};
    const Tensor d = grads[0].contiguous(), others = grads[1].defined() ? own_gradient(grads[1], d) : Tensor();
    const Tensor d_x = others.defined() ? others : at::empty_like(d);
    run(d, others, d_x, static_cast<const Call&>(*capsule));
    return {d_x, Tensor()};
  }
};

}  // namespace

std::pair<Tensor, Tensor> jitter(const Tensor& x_TD, double amount, std::uint64_t site, const DropoutKey& key) {
  SWITCHYARD_ASSERT(x_TD.size(0) == key.window_B.numel() * key.seq_len,
                    "jitter is drawn for the tokens of the key's windows");
  auto call = c10::make_intrusive<Call>();
  call->amount = amount, call->site = site, call->key = key;
  const variable_list out = JitterOp::apply(x_TD, call);
  return {out[0], out[1]};
}

std::pair<Tensor, Tensor> jitter_reference(const Tensor& x_TD, double amount, std::uint64_t site,
                                           const DropoutKey& key) {
  const Tensor u = noise(Noise::kUniform, x_TD.size(0), x_TD.size(1), site, key);
  return {(x_TD * (u * (2 * amount) + (1 - amount))).to(x_TD.scalar_type()), x_TD};
}

}  // namespace switchyard::ops
