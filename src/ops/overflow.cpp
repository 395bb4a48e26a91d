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

Tensor computed_experts(const Placement& placement, int experts, int null_index) {
  const Tensor real_TK = placement.expert_TK.masked_fill(placement.expert_TK.ge(experts), -1);
  const bool none_dropped = null_index < 0 || !placement.dropped_TK.defined();
  return none_dropped ? real_TK : real_TK.masked_fill(placement.dropped_TK, null_index);
}

}  // namespace switchyard::ops
