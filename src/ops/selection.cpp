#include "ops/selection.h"

#include <algorithm>
#include <limits>

namespace switchyard::ops {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

at::TensorOptions integers(const Tensor& like) { return like.options().dtype(at::kLong); }

// Where the tie order of each token starts, [T, 1].
Tensor turns(const Tensor& q, const RoutingRule& rule) {
  const Tensor t = at::arange(q.size(0), integers(q)).remainder(rule.seq_len) + rule.first_position;
  return (t * rule.top_k).remainder(q.size(1)).unsqueeze(1);
}

// The score of each group, [T, G].
Tensor group_scores(const Tensor& q_TGM, bool sum_of_two) {
  if (!sum_of_two || q_TGM.size(2) == 1) return q_TGM.amax(2);
  const Tensor best = std::get<0>(q_TGM.topk(2, 2)), second = best.select(2, 1);
  return best.select(2, 0) + second.masked_fill(second == kNever, 0);
}

// The order in which ties prefer groups, [T, G]: they are consecutive experts, so it starts with the one in which the
// experts' order starts, and with the first where that is a zero expert.
Tensor group_order(const Tensor& q, int experts, int groups, const RoutingRule& rule) {
  const Tensor group = at::arange(groups, integers(q)).unsqueeze(0);
  if (!rule.rotate_ties) return group.expand({q.size(0), groups});
  const Tensor turn = turns(q, rule);
  const Tensor first = turn.masked_fill(turn >= experts, 0).div(experts / groups, "floor");
  return (group + first).remainder(groups);
}

}  // namespace

Tensor limit_groups(const Tensor& q_TE, int experts, const GroupLimit& limit, const RoutingRule& rule) {
  if (limit.kept == limit.groups) return q_TE;
  const std::int64_t tokens = q_TE.size(0), group_size = experts / limit.groups;
  const Tensor real = q_TE.detach().narrow(1, 0, experts).reshape({tokens, limit.groups, group_size});
  const Tensor score = group_scores(real.masked_fill(real.isnan(), kNever), limit.sum_of_two);
  // Groups stand in the order that ties prefer; the stable sort keeps it among equals.
  const Tensor order = group_order(q_TE, experts, limit.groups, rule);
  const Tensor sorted = std::get<1>(at::sort(score.gather(1, order), /*stable=*/true, 1, /*descending=*/true));
  const Tensor best = order.gather(1, sorted.narrow(1, 0, limit.kept));
  const Tensor masked = at::ones({tokens, limit.groups}, q_TE.options().dtype(at::kBool)).scatter(1, best, false);
  const Tensor limited = real.masked_fill(masked.unsqueeze(2), kNever).reshape({tokens, experts});
  if (q_TE.size(1) == experts) return limited;
  return at::cat({limited, q_TE.detach().narrow(1, experts, q_TE.size(1) - experts)}, 1);
}

Tensor dropped_experts(const Tensor& u_E, double p, int top_k, const GroupLimit& limit) {
  const Tensor u = u_E.view({limit.groups, -1});
  const std::int64_t survivors = std::min<std::int64_t>((top_k + limit.kept - 1) / limit.kept, u.size(1));
  const Tensor largest = std::get<1>(u.topk(survivors, 1));
  return (u < p).scatter(1, largest, false).view({-1});
}

Tensor without_experts(const Tensor& q_TE, const Tensor& dropped_E) {
  const std::int64_t zero_experts = q_TE.size(1) - dropped_E.size(0);
  return q_TE.detach().masked_fill(at::constant_pad_nd(dropped_E, {0, zero_experts}, false), kNever);
}

Tensor forced_balance(std::int64_t tokens, int experts, int columns, int top_k, const at::TensorOptions& like) {
  const auto options = like.dtype(at::kLong);
  const Tensor turn = (at::arange(tokens, options) * top_k).unsqueeze(1);
  const Tensor place = (at::arange(experts, options).unsqueeze(0) - turn).remainder(experts);
  return at::constant_pad_nd(place.neg().to(like.dtype()), {0, columns - experts}, kNever);
}

Tensor experts_of_ids(const Tensor& id_T, int experts, int top_k) {
  const Tensor apart = at::arange(top_k, integers(id_T)) * (experts / top_k);
  return (id_T.to(at::kLong).unsqueeze(1) + apart).remainder(experts).to(at::kInt);
}

}  // namespace switchyard::ops
