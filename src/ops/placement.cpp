#include "ops/placement.h"

#include <limits>

#include "kernels/reroute.h"
#include "ops/dispatch_plan.h"
#include "ops/launch.h"

namespace switchyard::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// [T, K] as a list in order of (k, t), and back.
Tensor by_choice(const Tensor& values_TK) { return values_TK.t().reshape({-1}); }
Tensor by_token(const Tensor& list, std::int64_t top_k) { return list.view({top_k, -1}).t().contiguous(); }

// The order in which assignments, listed by (k, t), are served; undefined: as listed.
Tensor service_order(const Tensor& priority, std::int64_t top_k) {
  if (!priority.defined()) return {};
  const Tensor list = priority.dim() == 2 ? by_choice(priority.detach()) : priority.detach().repeat({top_k});
  return std::get<1>(at::sort(at::nan_to_num(list, -kInfinity, kInfinity, -kInfinity), /*stable=*/true, 0,
                              /*descending=*/true));
}

struct Accepted {
  Tensor fits;    // bool, as listed
  Tensor room_E;  // what is left
};

// The counting sort is stable, so an assignment's rank with its expert is its row less the expert's first.
Accepted accept(const Tensor& expert, const Tensor& room_E, const Tensor& order) {
  const Tensor asked = order.defined() ? expert.index_select(0, order) : expert;
  const DispatchPlan plan = dispatch(asked.unsqueeze(1), static_cast<int>(room_E.size(0)));
  const Tensor at_expert = asked.clamp_min(0);
  const Tensor rank = plan.row_of_TK.squeeze(1) - plan.offset_E1.index_select(0, at_expert);
  Tensor fits = rank.lt(room_E.index_select(0, at_expert)).logical_and_(asked.ge(0));
  if (order.defined()) fits = at::empty_like(fits).scatter_(0, order, fits);
  return {fits, (room_E - plan.count_E).clamp_min_(0)};
}

// What each dropped assignment asks for in one round, listed by (k, t); -1: nothing.
Tensor proposals(const Placement& now, const Tensor& score_TE, const Tensor& first_T) {
  Tensor expert = at::empty({now.expert_TK.numel()}, now.expert_TK.options());
  const kernels::Proposals work{score_TE.data_ptr<float>(),
                                now.expert_TK.data_ptr<int>(),
                                pointer<std::uint8_t>(now.dropped_TK),
                                now.room_E.data_ptr<int>(),
                                pointer<int>(first_T),
                                expert.data_ptr<int>(),
                                score_TE.size(0),
                                static_cast<int>(now.expert_TK.size(1)),
                                static_cast<int>(score_TE.size(1))};
  if (!score_TE.is_cuda()) {
    parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::proposals_cpu(work, range); });
  } else {
#ifdef SWITCHYARD_WITH_CUDA
    kernels::proposals(work, current_stream(score_TE));
#endif
  }
  return expert;
}

}  // namespace

Placement place(const Tensor& expert_TK, int experts, const Tensor& capacity, const Tensor& priority) {
  SWITCHYARD_ASSERT(capacity.scalar_type() == at::kInt && capacity.numel() == 1, "capacity is one int32");
  const std::int64_t top_k = expert_TK.size(1);
  const Tensor limited_TK = at::where(expert_TK.lt(experts), expert_TK, -1).to(at::kInt);
  const Accepted accepted = accept(by_choice(limited_TK), capacity.expand({experts}), service_order(priority, top_k));
  const Tensor dropped_TK = by_token(accepted.fits, top_k).logical_not().logical_and_(limited_TK.ge(0));
  return {expert_TK.masked_fill(dropped_TK, -1), dropped_TK, accepted.room_E};
}

Rerouted reroute(const Placement& placed, const Tensor& selection_TE, const Tensor& priority, int rounds,
                 const Tensor& first_T) {
  const std::int64_t top_k = placed.expert_TK.size(1);
  const Tensor order = service_order(priority, top_k), score_TE = selection_TE.detach().to(at::kFloat).contiguous();
  Placement now = placed;
  for (int round = 0; round < rounds; ++round) {
    const Tensor asked = proposals(now, score_TE, first_T);
    const Accepted accepted = accept(asked, now.room_E, order);
    const Tensor fits_TK = by_token(accepted.fits, top_k);
    now = {at::where(fits_TK, by_token(asked, top_k), now.expert_TK), now.dropped_TK.logical_and(fits_TK.logical_not()),
           accepted.room_E};
  }
  return {now, placed.dropped_TK.logical_and(now.dropped_TK.logical_not())};
}

}  // namespace switchyard::ops
