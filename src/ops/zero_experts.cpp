#include "ops/zero_experts.h"

#include "ops/launch.h"

namespace switchyard::ops {
namespace {

kernels::ZeroExpertChoice choice_of(const ZeroExperts& e, const Tensor& x_TD, const Tensor& weight_TK) {
  SWITCHYARD_ASSERT(e.expert_TK.is_contiguous() && (!e.dropped_TK.defined() || e.dropped_TK.is_contiguous()),
                    "choices of experts are contiguous");
  SWITCHYARD_ASSERT((weight_TK.scalar_type() == at::kDouble) == (x_TD.scalar_type() == at::kDouble),
                    "zero experts take fp64 weights with fp64 tokens, else fp32 weights");
  return {pointer<int>(e.expert_TK), pointer<bool>(e.dropped_TK), e.first_copy, e.first_constant, e.end, e.of_dropped};
}

// sum_k of the weights whose assignment `mask` marks, [T, 1].
Tensor weight_where(const Tensor& weight_TK, const Tensor& mask_TK) {
  return weight_TK.masked_fill(mask_TK.logical_not(), 0).sum(1, /*keepdim=*/true);
}

}  // namespace

void add_zero_experts_(const Tensor& out_TD, const Tensor& x_TD, const Tensor& weight_TK, const ZeroExperts& experts) {
  const Tensor map = experts.map_J2D.defined() ? experts.map_J2D.detach().contiguous() : Tensor();
  const Tensor vector = experts.vector_JD.defined() ? experts.vector_JD.detach().contiguous() : Tensor();
  launch(
      x_TD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        using Value = kernels::ZeroExpertValue<T>;
        return kernels::ZeroExperts<T>{choice_of(experts, x_TD, weight_TK),
                                       pointer<T>(x_TD),
                                       pointer<Value>(weight_TK),
                                       pointer<Value>(map),
                                       pointer<Value>(vector),
                                       pointer<T>(out_TD),
                                       x_TD.size(0),
                                       static_cast<int>(weight_TK.size(1)),
                                       static_cast<int>(x_TD.size(1)),
                                       experts.constants()};
      },
      [](const auto& work, kernels::Stream stream) { kernels::zero_experts(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::zero_experts_cpu(work, range); });
      });
}

std::pair<Tensor, Tensor> zero_experts_backward_(const Tensor& d_x_TD, const Tensor& d_weight_TK, const Tensor& x_TD,
                                                 const Tensor& d_out_TD, const Tensor& weight_TK,
                                                 const ZeroExperts& experts) {
  const std::int64_t tokens = x_TD.size(0), width = x_TD.size(1), constants = experts.constants();
  Tensor map, vector, coefficient, sums, scratch;
  if (constants > 0) {
    map = experts.map_J2D.detach().contiguous(), vector = experts.vector_JD.detach().contiguous();
    coefficient = at::empty({constants, tokens, 2}, weight_TK.options());
    sums = at::zeros({constants, 2, width}, weight_TK.options());
#ifdef SWITCHYARD_WITH_CUDA
    if (x_TD.is_cuda())
      scratch = at::empty({kernels::zero_expert_scratch(tokens, static_cast<int>(width), static_cast<int>(constants))},
                          sums.options());
#endif
  }
  launch(
      x_TD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        using Value = kernels::ZeroExpertValue<T>;
        return kernels::ZeroExpertsBackward<T>{choice_of(experts, x_TD, weight_TK),
                                               pointer<T>(x_TD),
                                               pointer<T>(d_out_TD),
                                               pointer<Value>(weight_TK),
                                               pointer<Value>(map),
                                               pointer<Value>(vector),
                                               pointer<T>(d_x_TD),
                                               pointer<Value>(d_weight_TK),
                                               pointer<Value>(coefficient),
                                               tokens,
                                               static_cast<int>(weight_TK.size(1)),
                                               static_cast<int>(width),
                                               static_cast<int>(constants)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::zero_experts_backward(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64,
                        [&](kernels::Range range) { kernels::zero_experts_backward_cpu(work, range); });
      });
  if (constants == 0) return {};
  launch(
      x_TD,
      [&](auto type) {
        using T = typename decltype(type)::type;
        using Value = kernels::ZeroExpertValue<T>;
        return kernels::ZeroExpertSums<T>{
            pointer<T>(x_TD),        pointer<T>(d_out_TD),       pointer<Value>(coefficient),
            pointer<Value>(sums),    pointer<float>(scratch),    tokens,
            static_cast<int>(width), static_cast<int>(constants)};
      },
      [](const auto& work, kernels::Stream stream) { kernels::zero_expert_sums(work, stream); },
      [](const auto& work) {
        parallel_ranges(work.constants, 1, [&](kernels::Range range) { kernels::zero_expert_sums_cpu(work, range); });
      });
  const Tensor of_first = sums.select(1, 0);
  return {at::stack({of_first, -of_first}, 1), sums.select(1, 1)};
}

Tensor zero_experts_reference(const Tensor& x_TD, const Tensor& weight_TK, const ZeroExperts& experts) {
  const auto chosen = [&](int kind) {
    Tensor mask =
        kind == kernels::kCopy
            ? experts.expert_TK.ge(experts.first_copy).logical_and(experts.expert_TK.lt(experts.first_constant))
            : experts.expert_TK.eq(experts.first_constant + kind - kernels::kConstant)
                  .logical_and(experts.expert_TK.lt(experts.end));
    if (experts.dropped_TK.defined() && experts.of_dropped == kind) mask = mask.logical_or(experts.dropped_TK);
    return mask;
  };
  const Tensor x = x_TD.to(weight_TK.scalar_type());
  Tensor out = x * weight_where(weight_TK, chosen(kernels::kCopy));
  for (int j = 0; j < experts.constants(); ++j) {
    const Tensor weight_T1 = weight_where(weight_TK, chosen(kernels::kConstant + j));
    const Tensor share_T2 = at::mm(x, experts.map_J2D[j].t()).softmax(1);
    out = out + weight_T1 * (x * share_T2.narrow(1, 0, 1) + share_T2.narrow(1, 1, 1) * experts.vector_JD[j]);
  }
  return out.to(x_TD.scalar_type());
}

}  // namespace switchyard::ops
