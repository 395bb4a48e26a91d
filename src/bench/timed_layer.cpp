#include "bench/timed_layer.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "base/error.h"
#include "model/layer_rules.h"
#include "ops/router_scores.h"

namespace switchyard::bench {

Material::Material(std::int64_t tokens, int width, int seq_len, const ComputeDevice& device) {
  at::manual_seed(0);
  const auto options = at::TensorOptions().device(device.device), longs = options.dtype(at::kLong);
  const auto draw = [&] { return at::randn({tokens, width}, options).to(device.activation_dtype); };
  x_TD = draw().requires_grad_(true);
  dy_TD = draw();
  step.training = true;
  step.seq_len = seq_len;
  step.step = at::full({1}, 10, longs);
  step.host_step = 10;
  step.token_T = at::arange(tokens, longs);
  step.dropout = {1, step.step, at::arange(tokens / seq_len, longs), seq_len};
}

void TimedLayer::prepare(const ComputeDevice& device) {
  store_.allocate(device.device, device.activation_dtype, store_.contiguous());
  store_.initialize(1);
}

Tensor TimedLayer::differentiate(const Tensor& out_TD, const Material& with) const {
  with.x_TD.mutable_grad() = Tensor();
  torch::autograd::backward({out_TD}, {with.dy_TD});
  return with.x_TD.grad();
}

PassTimes TimedLayer::time(const Material& with, const ComputeDevice& device, bool record, int repeats, int warm_ups,
                           int runs_a_graph) const {
  const PassTimes times = time_passes(
      {[&] { return forward(with.x_TD, with.step); }, [&](const Tensor& out_TD) { differentiate(out_TD, with); }},
      device.index(), record, repeats, warm_ups, runs_a_graph);
  with.x_TD.mutable_grad() = Tensor();  // it lies in the graph's pool, and would keep that
  return times;
}

std::pair<Tensor, Tensor> TimedLayer::values(const Material& with) {
  store_.zero_grad();
  const Tensor out = forward(with.x_TD, with.step), dx = differentiate(out, with);
  return {out.detach(), at::cat({dx.flatten().to(at::kFloat), store_.flat_grad})};
}

void SparseLayer::fill_matrices() {
  const at::NoGradGuard no_grad;
  for (const auto& parameter : store_.all())
    if (parameter->init.kind == Init::Kind::kConstant && parameter->shape.size() > 1)
      Tensor(parameter->compute).normal_(0, 1 / std::sqrt(static_cast<double>(parameter->shape.back())));
}

Init unit_normal(int width) { return {Init::Kind::kNormal, 1 / std::sqrt(static_cast<double>(width))}; }

#ifdef SWITCHYARD_WITH_MOE
SparseLayer::SparseLayer(const Config& config, Init up, Init down, const ops::GroupedProducts* products)
    : config_(config) {
  const ExpertShape routed{config.model.n_embd, expert_width(config), ops::parse_activation(config.model.mlp), up,
                           down};
  ExpertShape shared = routed, dense = routed;
  shared.hidden = shared_width(config);
  dense.hidden = config.moe.flexible_ffn ? ffn_width(config.model) : 0;
  PrecisionPolicy policy;
  if (products) {
    for (const char* name : {"moe.experts.up", "moe.experts.down"}) {
      Fp8Decision other;
      other.layer.name = name;
      other.converts = true;
      report_.decisions.push_back(other);
    }
    policy.report = &report_;
    policy.fp8_grouped = products;
  }
  moe_ = std::make_unique<const Moe>(store_, "moe", MoeShape{routed, shared, dense}, config, RouterPlace{0, 0, &state_},
                                     policy);
}

Tensor SparseLayer::forward(const Tensor& x_TD, const StepContext& step) const {
  if (!moe_->norm_weight()) return ops::summed(moe_->forward({x_TD, Tensor()}, step).out);
  const ops::RouterLogits logits = ops::router_logits(x_TD, *moe_->norm_weight());
  return ops::summed(moe_->forward({logits.x_TD, logits.logits_TE}, step).out);
}

void SparseLayer::prepare(const ComputeDevice& device) {
  TimedLayer::prepare(device);
  state_.allocate(config_, 1, device.device);
  if (state_.bias_LE.defined()) state_.bias_LE.normal_(0, 0.01);
}
#else
SparseLayer::SparseLayer(const Config&, Init, Init, const ops::GroupedProducts*) {
  throw ConfigError("this benchmark needs a build with sparse layers; configure with -DWITH_MOE=ON");
}
Tensor SparseLayer::forward(const Tensor& x_TD, const StepContext&) const { return x_TD; }
void SparseLayer::prepare(const ComputeDevice& device) { TimedLayer::prepare(device); }
#endif

}  // namespace switchyard::bench
