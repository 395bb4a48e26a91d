#include "model/moe/selection.h"

namespace switchyard {

ExpertSelection::ExpertSelection(const Config& config, const RouterPlace& place)
    : place_(place),
      experts_(config.moe.n_experts),
      forced_(config.router.force_balanced),
      noise_(config.router.noise == "gaussian" ? ops::Noise::kGaussian : ops::Noise::kGumbel),
      noise_scale_(config.router.noise == "gaussian" || config.router.noise == "gumbel" ? config.router.noise_scale
                                                                                        : 0),
      dropout_(config.moe.expert_dropout),
      groups_{config.router.n_group, config.router.topk_group, config.router.topk_method == "noaux_tc"} {}

ops::Selection ExpertSelection::select(const at::Tensor& logits_TE, const ops::RoutingRule& rule,
                                       const StepContext& step) const {
  const at::NoGradGuard no_grad;
  ops::Selection selection;
  selection.real_T = step.real_T;
  const bool random = step.training && (noise_scale_ > 0 || dropout_ > 0);
  const int columns = static_cast<int>(logits_TE.size(1));
  if (forced_ && place_.state->share_border.defined())
    selection.q_TE = ops::forced_shares(logits_TE.size(0), place_.state->share_border, columns, logits_TE.options());
  else if (forced_)
    selection.q_TE = ops::forced_balance(logits_TE.size(0), experts_, columns, rule.top_k, logits_TE.options());
  else if (random || groups_.kept < groups_.groups)
    selection.q_TE = scores(logits_TE, rule, step);
  else
    selection.bias_E = place_.state->bias_E(place_.row);
  return selection;
}

at::Tensor ExpertSelection::scores(const at::Tensor& logits_TE, const ops::RoutingRule& rule,
                                   const StepContext& step) const {
  ops::Choice choice;
  choice.experts = experts_;
  choice.bias_E = place_.state->bias_E(place_.row);
  choice.groups = groups_;
  if (step.training && noise_scale_ > 0)
    choice.noise = {noise_, noise_scale_, draw_site(RouterDraw::kNoise, place_.layer), step.dropout};
  if (step.training && dropout_ > 0) {
    const at::Tensor u = ops::step_uniform(experts_, draw_site(RouterDraw::kDropout, place_.layer), step.dropout);
    choice.dropped_E = ops::dropped_experts(u, dropout_, rule.top_k, groups_);
  }
  return ops::choice_scores(logits_TE, choice, rule);
}

}  // namespace switchyard
