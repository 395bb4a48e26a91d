#include "ops/overflow.h"

namespace switchyard::ops {

Tensor rerouted_weight(const Tensor& weight_TK, const Tensor& score_TE, const Tensor& chosen_TK,
                       const Rerouted& rerouted, bool normalize, double scale) {
  const Tensor final_TK = at::where(rerouted.moved_TK, rerouted.placement.expert_TK, chosen_TK).clamp_min_(0);
  Tensor score_TK = score_TE.gather(1, final_TK.to(at::kLong));
  if (normalize && score_TK.size(1) > 1) score_TK = score_TK / (score_TK.sum(1, /*keepdim=*/true) + 1e-20);
  return at::where(rerouted.moved_TK.any(1, /*keepdim=*/true), (score_TK * scale).to(weight_TK.scalar_type()),
                   weight_TK);
}

Tensor renormalized_after_drop(const Tensor& weight_TK, const Tensor& dropped_TK) {
  const Tensor all_T1 = weight_TK.sum(1, /*keepdim=*/true);
  const Tensor kept_T1 = weight_TK.masked_fill(dropped_TK, 0).sum(1, /*keepdim=*/true);
  const Tensor rescale_TK =
      dropped_TK.any(1, /*keepdim=*/true).logical_and_(kept_T1.ne(0)).logical_and(dropped_TK.logical_not());
  return at::where(rescale_TK, weight_TK * (all_T1 / kept_T1.masked_fill(kept_T1.eq(0), 1)), weight_TK);
}

Tensor weight_where(const Tensor& weight_TK, const Tensor& mask_TK) {
  return weight_TK.masked_fill(mask_TK.logical_not(), 0).sum(1);
}

Tensor computed_experts(const Placement& placement, int experts, int null_index) {
  const Tensor real_TK = placement.expert_TK.masked_fill(placement.expert_TK.ge(experts), -1);
  return null_index < 0 ? real_TK : real_TK.masked_fill(placement.dropped_TK, null_index);
}

Tensor constant_experts(const Tensor& x_TD, const Tensor& weight_TJ, const Tensor& map_J2D, const Tensor& vector_JD) {
  const auto type = weight_TJ.scalar_type();
  const Tensor x = x_TD.to(type);
  const std::int64_t constants = weight_TJ.size(1);
  const Tensor logits_TJ2 = at::mm(x, map_J2D.to(type).reshape({2 * constants, -1}).t());
  const Tensor share_TJ2 = logits_TJ2.view({-1, constants, 2}).softmax(2) * weight_TJ.unsqueeze(2);
  const Tensor out =
      x * share_TJ2.select(2, 0).sum(1, /*keepdim=*/true) + at::mm(share_TJ2.select(2, 1), vector_JD.to(type));
  return out.to(x_TD.scalar_type());
}

Tensor copy_expert(const Tensor& x_TD, const Tensor& weight_T) {
  return (x_TD * weight_T.unsqueeze(1)).to(x_TD.scalar_type());
}

}  // namespace switchyard::ops
