#include "ops/inl.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/launch.h"
#include "ops/linear.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::ScalarType state_type(const Tensor& h) { return h.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// What backward needs beside its saved tensors.
struct Call : torch::CustomClassHolder {
  const Parameter* mu;
  InlController controller;
  InlRule rule;
};

Tensor clamped_mu(const Call& call) {
  const Tensor mu = call.mu->master;
  const auto bound = [](std::optional<double> value) {
    return value ? std::optional<at::Scalar>(*value) : std::nullopt;
  };
  if (!call.rule.mu_min && !call.rule.mu_max) return mu;
  return at::clamp(mu, bound(call.rule.mu_min), bound(call.rule.mu_max));
}

// The half of W_a that reads h, or v; the third of W_b, b_b or their gradients that makes one coefficient.
Tensor columns(const Parameter* in, int half) {
  const std::int64_t width = in->shape[1] / 2;
  return in->compute.detach().narrow(1, half * width, width);
}
Tensor third(const Tensor& of, int which) {
  const std::int64_t width = of.size(0) / 3;
  return of.narrow(0, which * width, width);
}

// The controller's hidden layer before silu [T, C], in the state's type.
Tensor hidden(const InlController& c, const Tensor& h, const Tensor& v) {
  const Tensor sum = at::addmm(at::mm(h, columns(c.in, 0).t()), v.to(h.scalar_type()), columns(c.in, 1).t());
  return sum.to(v.scalar_type()) + c.in_bias->master;
}

enum Coefficient { kAlpha, kBeta, kGate };

// A coefficient and its derivative by what the controller gives for it; numbers, and 0, without a controller.
struct Value {
  Tensor value_TD, slope_TD;
};
Value coefficient(const Call& call, Coefficient which, const Tensor& active, const Tensor& like, bool with_slope) {
  const InlRule& rule = call.rule;
  const InlController& c = call.controller;
  if (!c.in) {
    const double constants[] = {rule.alpha, std::min(rule.beta, rule.beta_max), rule.gate};
    return {at::full({1, 1}, constants[which], like.options()), Tensor()};
  }
  const Tensor product = at::mm(active, third(c.out->compute.detach(), which).t());
  const Tensor raw = product.to(like.scalar_type()) + third(c.out_bias->master, which);
  Tensor slope;
  if (which != kBeta) {
    const Tensor s = at::sigmoid(raw);
    if (with_slope) slope = s * (1 - s);
    return {s, slope};
  }
  const Tensor s = at::softplus(raw);
  if (with_slope) slope = at::sigmoid(raw).mul_(s.lt(rule.beta_max));
  return {s.clamp_max(rule.beta_max), slope};
}

void add_to(const Parameter* parameter, const Tensor& gradient) {
  parameter->grad.add_(gradient);
  parameter->grad_added();
}

class Inl : public torch::autograd::Function<Inl> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& h, const std::optional<Tensor>& given_v,
                               const Tensor& /*mu: links the graph*/, const c10::intrusive_ptr<Call>& call) {
    const Tensor v = given_v ? *given_v : at::zeros(h.sizes(), h.options().dtype(state_type(h)));
    const Tensor pre = call->controller.in ? hidden(call->controller, h, v) : Tensor();
    const Tensor active = pre.defined() ? at::silu(pre).to(h.scalar_type()) : Tensor();
    const Tensor velocity = unclamped(*call, h, v, active).clamp_(-call->rule.velocity_max, call->rule.velocity_max);
    const Tensor gate = coefficient(*call, kGate, active, v, false).value_TD;
    const Tensor moved = h.to(v.scalar_type()) + gate.mul(call->rule.dt) * velocity;
    context->save_for_backward({h, v, pre});
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    context->saved_data["needs_v"] = given_v && given_v->requires_grad();
    context->set_materialize_grads(false);
    return {moved.to(h.scalar_type()), velocity};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto capsule = context->saved_data["call"].toCapsule();
    const Call& call = static_cast<const Call&>(*capsule);
    const variable_list saved = context->get_saved_variables();
    const Tensor &h = saved[0], &v = saved[1], &pre = saved[2];
    const Tensor active = pre.defined() ? at::silu(pre).to(h.scalar_type()) : Tensor();
    const Value alpha = coefficient(call, kAlpha, active, v, true), beta = coefficient(call, kBeta, active, v, true),
                gate = coefficient(call, kGate, active, v, true);
    const Tensor from_mu = h.to(v.scalar_type()) - clamped_mu(call);
    const Tensor raw = alpha.value_TD * v - beta.value_TD * from_mu;
    const double limit = call.rule.velocity_max, dt = call.rule.dt;

    const Tensor d_moved = grads[0].defined() ? grads[0].to(v.scalar_type()) : at::zeros_like(v);
    const Tensor d_velocity = d_moved * gate.value_TD.mul(dt);
    const Tensor d_raw =
        (grads[1].defined() ? d_velocity + grads[1] : d_velocity).mul_(raw.abs().lt(limit).to(v.scalar_type()));
    const Tensor push = beta.value_TD * d_raw;
    Tensor d_h = d_moved - push, d_v = alpha.value_TD * d_raw;
    add_mu_gradient(call, push.sum(0));
    if (pre.defined()) {
      const Tensor d_gate = raw.clamp(-limit, limit).mul_(d_moved).mul_(dt).mul_(gate.slope_TD);
      through_controller(call.controller, {d_raw * v * alpha.slope_TD, from_mu * d_raw.neg() * beta.slope_TD, d_gate},
                         saved, active, d_h, d_v);
    }
    return {d_h.to(h.scalar_type()), context->saved_data["needs_v"].toBool() ? d_v : Tensor(), Tensor(), Tensor()};
  }

 private:
  static Tensor unclamped(const Call& call, const Tensor& h, const Tensor& v, const Tensor& active) {
    const Tensor kept = coefficient(call, kAlpha, active, v, false).value_TD * v;
    return kept - coefficient(call, kBeta, active, v, false).value_TD * (h.to(v.scalar_type()) - clamped_mu(call));
  }

  // Descent moves mu against its gradient.
  static void add_mu_gradient(const Call& call, const Tensor& d_mu) {
    const Tensor& mu = call.mu->master;
    Tensor gradient = d_mu;
    if (call.rule.mu_min) gradient = at::where(mu < *call.rule.mu_min, gradient.clamp_max(0), gradient);
    if (call.rule.mu_max) gradient = at::where(mu > *call.rule.mu_max, gradient.clamp_min(0), gradient);
    add_to(call.mu, gradient);
  }

  // d: of what the controller gave for alpha, beta and gamma, in the state's type. Adds to d_h and d_v.
  static void through_controller(const InlController& c, const std::vector<Tensor>& d, const variable_list& saved,
                                 const Tensor& active, Tensor& d_h, Tensor& d_v) {
    const Tensor &h = saved[0], &v = saved[1], &pre = saved[2];
    const std::int64_t width = h.size(1);
    Tensor d_active;
    for (int which = 0; which < 3; ++which) {
      const Tensor d_raw = d[static_cast<std::size_t>(which)].to(h.scalar_type());
      const Tensor part = at::mm(d_raw, third(c.out->compute.detach(), which)).to(pre.scalar_type());
      d_active = which == 0 ? part : d_active + part;
      add_product(third(c.out->grad, which), d_raw, active);
      third(c.out_bias->grad, which).add_(d[static_cast<std::size_t>(which)].sum(0));
    }
    c.out->grad_added();
    c.out_bias->grad_added();
    const Tensor s = at::sigmoid(pre);
    const Tensor d_pre = d_active * s * (1 + pre * (1 - s));
    add_to(c.in_bias, d_pre.sum(0));
    const Tensor d_low = d_pre.to(h.scalar_type());
    add_product(c.in->grad.narrow(1, 0, width), d_low, h);
    add_product(c.in->grad.narrow(1, width, width), d_low, v.to(h.scalar_type()));
    c.in->grad_added();
    d_h.add_(at::mm(d_low, columns(c.in, 0)).to(d_h.scalar_type()));
    d_v.add_(at::mm(d_low, columns(c.in, 1)).to(d_v.scalar_type()));
  }
};

}  // namespace

InlState inl(const InlState& in, const Parameter& mu_D, const InlController& controller, const InlRule& rule) {
  if (at::GradMode::is_enabled()) {
    mu_D.use();
    for (const Parameter* p : {controller.in, controller.in_bias, controller.out, controller.out_bias})
      if (p) p->use();
  }
  auto call = c10::make_intrusive<Call>();
  call->mu = &mu_D, call->controller = controller, call->rule = rule;
  const variable_list out = Inl::apply(in.h_TD, optional(in.v_TD), mu_D.compute, call);
  return {out[0], out[1]};
}

InlState inl_reference(const InlState& in, const Parameter& mu_D, const InlController& c, const InlRule& rule) {
  const at::ScalarType type = state_type(in.h_TD);
  const Tensor h = in.h_TD.to(type), v = in.v_TD.defined() ? in.v_TD : at::zeros_like(h);
  Tensor alpha = at::full({1}, rule.alpha, h.options()), beta = at::full({1}, rule.beta, h.options()),
         gate = at::full({1}, rule.gate, h.options());
  if (c.in) {
    const Tensor active = at::silu(at::mm(at::cat({h, v}, 1), attach(*c.in).to(type).t()) + attach(*c.in_bias));
    const auto raw = (at::mm(active, attach(*c.out).to(type).t()) + attach(*c.out_bias)).chunk(3, 1);
    alpha = at::sigmoid(raw[0]), beta = at::softplus(raw[1]), gate = at::sigmoid(raw[2]);
  }
  Tensor mu = attach(mu_D);
  if (rule.mu_min) mu = mu.clamp_min(*rule.mu_min);
  if (rule.mu_max) mu = mu.clamp_max(*rule.mu_max);
  const Tensor velocity =
      (alpha * v - beta.clamp_max(rule.beta_max) * (h - mu)).clamp(-rule.velocity_max, rule.velocity_max);
  return {(h + rule.dt * gate * velocity).to(in.h_TD.scalar_type()), velocity};
}

}  // namespace switchyard::ops
