#include "ops/router_scores.h"

#include <torch/csrc/autograd/custom_function.h>

#ifdef SWITCHYARD_WITH_CUDA
#include "kernels/router_logits.h"
#endif
#include "ops/gradient.h"
#include "ops/launch.h"
#include "ops/linear.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// With one expert a token every normalised weight would be 1, and the loss would never reach the router.
bool normalizes(const RoutingRule& rule) { return rule.normalize && rule.top_k > 1; }

template <class T>
void scores_on_cpu(const kernels::RouterScores<T>& work) {
  for (std::int64_t begin = 0; begin < work.tokens; begin += work.group_size)
    kernels::router_scores_cpu(work, {begin, begin + work.group_size});
}

void check(const Tensor& logits, const Selection& selection) {
  const auto fits = [&](const Tensor& t, at::ScalarType type, at::IntArrayRef shape) {
    return !t.defined() || (t.scalar_type() == type && t.sizes() == shape && t.is_contiguous());
  };
  SWITCHYARD_ASSERT(fits(selection.bias_E, at::kFloat, {logits.size(1)}) &&
                        fits(selection.q_TE, logits.scalar_type(), logits.sizes()) &&
                        fits(selection.real_T, at::kBool, {logits.size(0)}),
                    "bias is [E] fp32, q [T, E] of the logits' type, real [T] bool; all contiguous");
  SWITCHYARD_ASSERT(!(selection.bias_E.defined() && selection.q_TE.defined()), "q holds the bias already");
}

class Scores : public torch::autograd::Function<Scores> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& logits, const Selection& selection,
                               const RoutingRule& rule) {
    const std::int64_t tokens = logits.size(0), experts = logits.size(1);
    const std::int64_t group = rule.group_size ? rule.group_size : tokens, groups = tokens / group;
    const auto ints = logits.options().dtype(at::kInt);
    // The CPU kernel adds ranges of tokens to the sums, the CUDA kernel overwrites them.
    const auto sums = [&](std::vector<std::int64_t> shape, const at::TensorOptions& options) {
      return logits.is_cuda() ? at::empty(shape, options) : at::zeros(shape, options);
    };
    Tensor expert = at::empty({tokens, rule.top_k}, ints), count = sums({groups, experts}, ints);
    Tensor weight = at::empty({tokens, rule.top_k}, logits.options()),
           prob_sum = sums({groups, experts}, logits.options());
    Tensor importance = sums({experts}, logits.options()), z_sum = sums({1}, logits.options()), scratch;
#ifdef SWITCHYARD_WITH_CUDA
    if (logits.is_cuda())
      scratch = at::empty({kernels::router_scratch(tokens, group, static_cast<int>(experts))}, logits.options());
#endif
    const auto describe = [&](auto type) {
      using T = typename decltype(type)::type;
      return kernels::RouterScores<T>{pointer<T>(logits),
                                      pointer<float>(selection.bias_E),
                                      expert.data_ptr<int>(),
                                      pointer<T>(weight),
                                      count.data_ptr<int>(),
                                      pointer<T>(prob_sum),
                                      pointer<T>(importance),
                                      pointer<T>(z_sum),
                                      pointer<float>(scratch),
                                      tokens,
                                      group,
                                      static_cast<int>(experts),
                                      rule.top_k,
                                      rule.seq_len,
                                      rule.score,
                                      normalizes(rule),
                                      rule.rotate_ties,
                                      static_cast<float>(rule.scale),
                                      rule.first_position,
                                      pointer<T>(selection.q_TE),
                                      pointer<bool>(selection.real_T)};
    };
    if (logits.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
      kernels::router_scores(describe(Type<float>{}), current_stream(logits));
#endif
    } else if (logits.scalar_type() == at::kDouble) {
      scores_on_cpu(describe(Type<double>{}));
    } else {
      scores_on_cpu(describe(Type<float>{}));
    }
    context->save_for_backward({logits, expert});
    context->saved_data["shape"] =
        std::vector<std::int64_t>{group, static_cast<std::int64_t>(rule.score), normalizes(rule)};
    context->saved_data["scale"] = rule.scale;
    context->mark_non_differentiable({expert, count});
    context->set_materialize_grads(false);
    return {expert, weight, count, prob_sum, importance, z_sum};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &logits = saved[0], &expert = saved[1];
    const auto shape = context->saved_data["shape"].toIntVector();
    const float scale = static_cast<float>(context->saved_data["scale"].toDouble());
    const auto dense = [](const Tensor& grad) { return grad.defined() ? grad.contiguous() : Tensor(); };
    const Tensor d_weight = dense(grads[1]), d_prob = dense(grads[3]), d_importance = dense(grads[4]),
                 d_z = dense(grads[5]);
    Tensor d_logits = at::empty_like(logits);
    const auto describe = [&](auto type) {
      using T = typename decltype(type)::type;
      return kernels::RouterScoresBackward<T>{pointer<T>(logits),
                                              expert.data_ptr<int>(),
                                              pointer<T>(d_weight),
                                              pointer<T>(d_prob),
                                              pointer<T>(d_importance),
                                              pointer<T>(d_z),
                                              pointer<T>(d_logits),
                                              logits.size(0),
                                              shape[0],
                                              static_cast<int>(logits.size(1)),
                                              static_cast<int>(expert.size(1)),
                                              static_cast<Score>(shape[1]),
                                              shape[2] != 0,
                                              scale};
    };
    launch(
        logits, describe,
        [](const auto& work, kernels::Stream stream) {
          if constexpr (std::is_same_v<std::decay_t<decltype(work)>, kernels::RouterScoresBackward<float>>)
            kernels::router_scores_backward(work, stream);
        },
        [](const auto& work) {
          parallel_ranges(work.tokens, 256,
                          [&](kernels::Range range) { kernels::router_scores_backward_cpu(work, range); });
        });
    return {d_logits, Tensor(), Tensor()};
  }
};

#ifdef SWITCHYARD_WITH_CUDA
void logits_on_cuda(const Tensor& x, const Tensor& w, const Tensor& logits) {
  with_type_of(x, [&](auto type) {
    using T = typename decltype(type)::type;
    const int width = static_cast<int>(x.size(1)), experts = static_cast<int>(w.size(0));
    kernels::router_logits(
        kernels::RouterLogits<T>{pointer<T>(x), pointer<float>(w), pointer<float>(logits), x.size(0), width, experts},
        current_stream(x));
  });
}

void backward_on_cuda(const Tensor& x, const Parameter& w, const Tensor& d_logits, const Tensor& d_x) {
  const int width = static_cast<int>(x.size(1)), experts = static_cast<int>(d_logits.size(1));
  const Tensor scratch =
      at::empty({kernels::router_logits_scratch(x.size(0), width, experts)}, x.options().dtype(at::kFloat));
  with_type_of(x, [&](auto type) {
    using T = typename decltype(type)::type;
    kernels::router_logits_backward(
        kernels::RouterLogitsBackward<T>{pointer<T>(x), pointer<float>(w.compute), pointer<float>(d_logits),
                                         pointer<T>(d_x), pointer<float>(w.grad), pointer<float>(scratch), x.size(0),
                                         width, experts},
        current_stream(x));
  });
}
#endif

class LogitsOp : public torch::autograd::Function<LogitsOp> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& given_w,
                               const Parameter* parameter) {
    const Tensor w = given_w.view({-1, x.size(1)});
    context->save_for_backward({x});
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    context->set_materialize_grads(false);
    Tensor logits;
    if (x.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
      logits = at::empty({x.size(0), w.size(0)}, w.options());
      logits_on_cuda(x, w, logits);
#endif
    } else {
      logits = at::mm(x, w.t());
    }
    return {logits, x};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    const Tensor x = context->get_saved_variables()[0];
    Tensor d_x = own_gradient(grads[1], x);
    if (grads[0].defined()) {
      const Tensor d_logits = grads[0].contiguous();
      if (x.is_cuda()) {
#ifdef SWITCHYARD_WITH_CUDA
        backward_on_cuda(x, *parameter, d_logits, d_x);
#endif
      } else {
        d_x.addmm_(d_logits, parameter->compute.detach().view({-1, x.size(1)}));
        add_product(parameter->grad.view({-1, x.size(1)}), d_logits, x);
      }
    }
    parameter->grad_added();
    return {d_x, Tensor(), Tensor()};
  }
};

}  // namespace

RouterScores router_scores(const Tensor& logits_TE, const Selection& selection, const RoutingRule& rule) {
  check(logits_TE, selection);
  const variable_list out = Scores::apply(logits_TE, selection, rule);
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

Score parse_score(const std::string& name) {
  if (name == "softmax") return Score::kSoftmax;
  if (name == "sigmoid") return Score::kSigmoid;
  SWITCHYARD_ASSERT(name == "identity", "unknown router score " + name);
  return Score::kIdentity;
}

Tensor scores_of(const Tensor& logits_TE, Score score) {
  if (score == Score::kIdentity) return logits_TE;
  return score == Score::kSoftmax ? at::softmax(logits_TE, -1) : at::sigmoid(logits_TE);
}

RouterScores router_scores_reference(const Tensor& given_TE, const Selection& selection, const RoutingRule& rule) {
  const std::int64_t tokens = given_TE.size(0), experts = given_TE.size(1);
  const std::int64_t group = rule.group_size ? rule.group_size : tokens, groups = tokens / group;
  const Tensor real = selection.real_T.defined() ? selection.real_T.unsqueeze(1)
                                                 : at::ones({tokens, 1}, given_TE.options().dtype(at::kBool));
  const Tensor logits_TE = given_TE.masked_fill(~real, 0);  // padding may hold anything
  const Tensor softmax = at::softmax(logits_TE, -1);
  const Tensor score = scores_of(logits_TE, rule.score);
  const Tensor prob = rule.score == Score::kSigmoid ? score / score.sum(-1, true) : softmax;
  const Tensor q = selection.q_TE.defined()     ? selection.q_TE
                   : selection.bias_E.defined() ? score + selection.bias_E
                                                : score;
  // Ties: sort columns by their rotated order first, then a stable descending sort keeps that order among equals.
  const auto options = at::TensorOptions().dtype(at::kLong).device(logits_TE.device());
  const Tensor position = (at::arange(tokens, options).remainder(rule.seq_len) + rule.first_position).unsqueeze(1);
  const Tensor column = at::arange(experts, options).unsqueeze(0).expand({tokens, experts});
  const Tensor order = rule.rotate_ties ? (column + position * rule.top_k).remainder(experts) : column;
  const Tensor sorted = std::get<1>(at::sort(q.detach().gather(1, order), /*stable=*/true, 1, /*descending=*/true));
  const Tensor expert = order.gather(1, sorted.narrow(1, 0, rule.top_k));
  Tensor weight = score.gather(1, expert);
  if (normalizes(rule)) weight = weight / (weight.sum(-1, true) + 1e-20);
  weight = weight * real;
  const Tensor chosen = at::zeros_like(logits_TE.detach()).scatter(1, expert, 1.0) * real;
  const Tensor importance = at::zeros_like(logits_TE).scatter(1, expert, weight).sum(0);
  const Tensor z = (at::logsumexp(logits_TE, 1, true).square() * real).sum().reshape({1});
  return {expert.masked_fill(~real, -1).to(at::kInt),
          weight * rule.scale,
          chosen.view({groups, group, experts}).sum(1).to(at::kInt),
          (prob * real).view({groups, group, experts}).sum(1),
          importance,
          z};
}

RouterLogits router_logits(const Tensor& x_TD, const Parameter& w_ED) {
  if (at::GradMode::is_enabled()) w_ED.use();
  const variable_list out = LogitsOp::apply(x_TD, w_ED.compute, &w_ED);
  return {out[0], out[1]};
}

}  // namespace switchyard::ops
