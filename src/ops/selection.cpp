#include "ops/selection.h"

#include <algorithm>
#include <limits>

#include "kernels/choice.h"
#include "ops/launch.h"

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

Tensor choice_scores(const Tensor& logits_TE, const Choice& choice, const RoutingRule& rule) {
  const ChoiceNoise& noise = choice.noise;
  const std::int64_t tokens = logits_TE.size(0);
  const int columns = static_cast<int>(logits_TE.size(1));
  SWITCHYARD_ASSERT(noise.scale == 0 || tokens == noise.key.window_B.numel() * noise.key.seq_len,
                    "noise is drawn for the tokens of the key's windows");
  const Tensor logits = logits_TE.detach().contiguous();
  Tensor q = at::empty_like(logits);
  const auto describe = [&](auto type) {
    using T = typename decltype(type)::type;
    const kernels::NoiseDraw draw{nullptr,
                                  pointer<std::int64_t>(noise.key.window_B),
                                  pointer<std::int64_t>(noise.key.step),
                                  noise.key.seed,
                                  noise.site,
                                  tokens,
                                  noise.key.seq_len,
                                  columns,
                                  noise.kind};
    return kernels::ChoiceScores<T>{pointer<T>(logits),
                                    pointer<float>(choice.bias_E),
                                    pointer<bool>(choice.dropped_E),
                                    pointer<T>(q),
                                    tokens,
                                    columns,
                                    choice.experts,
                                    rule.score,
                                    static_cast<float>(noise.scale),
                                    draw,
                                    choice.groups.groups,
                                    choice.groups.kept,
                                    choice.groups.sum_of_two,
                                    rule.top_k,
                                    rule.seq_len,
                                    rule.first_position,
                                    rule.rotate_ties};
  };
  launch(
      logits, describe,
      [](const auto& work, kernels::Stream stream) {
        if constexpr (std::is_same_v<std::decay_t<decltype(work)>, kernels::ChoiceScores<float>>)
          kernels::choice_scores(work, stream);
      },
      [](const auto& work) {
        parallel_ranges(work.tokens, 64, [&](kernels::Range range) { kernels::choice_scores_cpu(work, range); });
      });
  return q;
}

Tensor choice_scores_reference(const Tensor& logits_TE, const Choice& choice, const RoutingRule& rule) {
  Tensor logits = logits_TE.detach();
  if (choice.noise.scale > 0)
    logits = logits + choice.noise.scale *
                          noise(choice.noise.kind, logits.size(0), logits.size(1), choice.noise.site, choice.noise.key);
  Tensor q = scores_of(logits, rule.score);
  if (choice.bias_E.defined()) q = q + choice.bias_E;
  if (choice.dropped_E.defined()) q = without_experts(q, choice.dropped_E);
  return limit_groups(q, choice.experts, choice.groups, rule);
}

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

Tensor share_borders(int experts, int top_k, double spread) {
  const Tensor place = (at::arange(experts, at::kDouble) + 0.5) / experts;
  Tensor share = at::softmax(spread * at::special_ndtri(place), 0) * top_k;
  for (int full = 0; full < experts && share.max().item<double>() > 1; ++full) {
    const Tensor rest = share < 1;
    const Tensor left = top_k - rest.logical_not().sum();
    share = at::where(rest, share * left / share.masked_fill(~rest, 0).sum(), 1.0);
  }
  Tensor border = at::constant_pad_nd(share.cumsum(0), {1, 0}).clamp_max(top_k);
  border[experts] = top_k;
  return border.to(at::kFloat);
}

Tensor forced_shares(std::int64_t tokens, const Tensor& border, int columns, const at::TensorOptions& like) {
  constexpr std::int64_t kGolden = 2654435769;  // 2^32 times the golden ratio's fractional part: exact for any t
  const Tensor turn = (at::arange(tokens, like.dtype(at::kLong)) * kGolden).bitwise_and(0xFFFFFFFF);
  const Tensor points =
      (border - turn.to(at::kFloat).mul(0x1p-32).unsqueeze(1)).ceil();  // of the token, below a border
  const std::int64_t experts = border.size(0) - 1;
  const Tensor q = points.narrow(1, 1, experts) - points.narrow(1, 0, experts);
  return at::constant_pad_nd(q.to(like.dtype()), {0, columns - experts}, kNever);
}

Tensor experts_of_ids(const Tensor& id_T, int experts, int top_k) {
  const Tensor apart = at::arange(top_k, integers(id_T)) * (experts / top_k);
  return (id_T.to(at::kLong).unsqueeze(1) + apart).remainder(experts).to(at::kInt);
}

}  // namespace switchyard::ops
