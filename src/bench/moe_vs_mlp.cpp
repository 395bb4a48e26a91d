#include "bench/moe_vs_mlp.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "config/derive.h"
#include "kernels/router.h"
#include "model/mlp.h"
#include "ops/router_scores.h"

#ifdef SWITCHYARD_WITH_MOE
#include "model/moe/moe.h"
#endif

namespace switchyard::bench {
namespace {

using at::Tensor;

constexpr int kWarmUps = 10;

Init normal(int width) { return {Init::Kind::kNormal, 1 / std::sqrt(static_cast<double>(width))}; }

Config config_of(const MoeVsMlpShape& shape, const std::string& activation, const std::string& backend) {
  Config config;
  config.model.n_embd = shape.width;
  config.model.head_dim = 8;
  config.model.mlp = activation;
  config.model.ffn_hidden = shape.active;
  config.model.init = "llama";  // no output matrix is 0
  config.moe.use_moe = true;
  config.moe.n_experts = shape.experts;
  config.moe.d_expert = shape.hidden();
  config.moe.backend = backend;
  config.moe.aux_injection = "autograd";
  config.router.top_k = shape.top_k;
  config.router.init = "normal";
  config.router.init_std = normal(shape.width).scale;
  derive(config);
  return config;
}

// What is the same for every layer: input, gradient of the output, the step.
struct Material {
  Tensor x_TD, dy_TD;
  StepContext step;

  Material(const MoeVsMlpShape& shape, const ComputeDevice& device) {
    at::manual_seed(0);
    const auto options = at::TensorOptions().device(device.device);
    const auto draw = [&] { return at::randn({shape.tokens, shape.width}, options).to(device.activation_dtype); };
    x_TD = draw().requires_grad_(true);
    dy_TD = draw();
    step.training = true;
    step.seq_len = static_cast<int>(shape.tokens);
    step.step = at::zeros({1}, options.dtype(at::kLong));
    step.token_T = at::zeros({shape.tokens}, options.dtype(at::kLong));
  }
};

// One layer with its own parameters; those of equal names have equal values.
class TimedLayer {
 public:
  virtual ~TimedLayer() = default;
  virtual Tensor forward(const Tensor& x_TD, const StepContext& step) const = 0;

  void prepare(const ComputeDevice& device) {
    store_.allocate(device.device, device.activation_dtype, store_.contiguous());
    store_.initialize(1);
  }
  // The gradient of x; those of parameters are added to their slices.
  Tensor differentiate(const Tensor& out_TD, const Material& with) const {
    with.x_TD.mutable_grad() = Tensor();
    torch::autograd::backward({out_TD}, {with.dy_TD});
    return with.x_TD.grad();
  }
  PassTimes time(const Material& with, const ComputeDevice& device, bool record, int repeats) const {
    return time_passes(
        {[&] { return forward(with.x_TD, with.step); }, [&](const Tensor& out_TD) { differentiate(out_TD, with); }},
        device.index(), record, repeats, kWarmUps);
  }
  // {output, gradients of x and of the parameters end to end}
  std::pair<Tensor, Tensor> values(const Material& with) {
    store_.zero_grad();
    const Tensor out = forward(with.x_TD, with.step), dx = differentiate(out, with);
    return {out.detach(), at::cat({dx.flatten().to(at::kFloat), store_.flat_grad})};
  }

 protected:
  ParameterStore store_;
};

class DenseLayer : public TimedLayer {
 public:
  explicit DenseLayer(const Config& config) : mlp_(store_, "mlp", config, {}) {}
  Tensor forward(const Tensor& x_TD, const StepContext& step) const override { return mlp_.forward(x_TD, step); }

 private:
  const Mlp mlp_;
};

#ifdef SWITCHYARD_WITH_MOE
MoeShape moe_shape(const Config& config) {
  MoeShape shape{};
  shape.routed = {config.model.n_embd, config.moe.d_expert, ops::parse_activation(config.model.mlp),
                  normal(config.model.n_embd), normal(config.moe.d_expert)};
  return shape;
}

class SparseLayer : public TimedLayer {
 public:
  explicit SparseLayer(const Config& config) : moe_(store_, "moe", moe_shape(config), config, {0, 0, &state_}, {}) {}
  Tensor forward(const Tensor& x_TD, const StepContext& step) const override {
    const ops::RouterLogits logits = ops::router_logits(x_TD, *moe_.norm_weight());
    return moe_.forward({logits.x_TD, logits.logits_TE}, step).out_TD;
  }

 private:
  RoutingState state_;
  const Moe moe_;
};
#else
class SparseLayer : public DenseLayer {
 public:
  explicit SparseLayer(const Config& config) : DenseLayer(config) {
    throw ConfigError("bench moe-vs-mlp needs a build with sparse layers; configure with -DWITH_MOE=ON");
  }
};
#endif

double relative_error(const Tensor& got, const Tensor& expected) {
  return ((got - expected).norm() / expected.norm()).item<double>();
}

void check(std::int64_t value, std::int64_t low, std::int64_t high, const char* option) {
  if (value < low || value > high)
    throw ConfigError(format("%s %lld is not from %lld to %lld", option, static_cast<long long>(value),
                             static_cast<long long>(low), static_cast<long long>(high)));
}

}  // namespace

std::vector<MoeVsMlpShape> sweep(const std::vector<std::int64_t>& tokens, const std::vector<int>& experts,
                                 const std::vector<int>& top_k, int width, int active) {
  std::vector<MoeVsMlpShape> shapes;
  for (const std::int64_t t : tokens) check(t, 1, 1 << 24, "--tokens");
  for (const int e : experts) check(e, 1, kernels::kMaxExperts, "--experts");
  for (const int k : top_k) {
    check(k, 1, kernels::kMaxTopK, "--top-k");
    if (active % (8 * k) != 0)
      throw ConfigError(
          format("--active %d over --top-k %d experts is no whole multiple of 8 each; choose a multiple of %d", active,
                 k, 8 * k));
  }
  if (width % 8 != 0) throw ConfigError(format("--width %d is not a multiple of 8", width));
  for (const std::int64_t t : tokens)
    for (const int e : experts)
      for (const int k : top_k)
        if (k <= e) shapes.push_back({t, width, active, e, k});
  if (shapes.empty()) throw ConfigError("every --top-k exceeds every --experts; choose a smaller --top-k");
  return shapes;
}

std::vector<std::string> layer_backends(const ComputeDevice& device) {
  return {device.device.is_cuda() ? "cuda" : "cpu", "reference"};
}

MoeVsMlp time_moe_vs_mlp(const MoeVsMlpShape& shape, const std::string& activation,
                         const std::vector<std::string>& backends, const ComputeDevice& device, int repeats) {
  const bool capturable =
      device.device.is_cuda() && ops::GroupedProducts::choose(device.device, device.activation_dtype).on_device();
  const Material material(shape, device);
  const int matrices = ops::is_gated(ops::parse_activation(activation)) ? 3 : 2;
  MoeVsMlp result{shape, 2.0 * matrices * static_cast<double>(shape.tokens) * shape.width * shape.active, {}};
  {
    DenseLayer mlp(config_of(shape, activation, "auto"));
    mlp.prepare(device);
    result.runs.push_back({"mlp", mlp.time(material, device, device.device.is_cuda(), repeats)});
  }
  SparseLayer reference(config_of(shape, activation, "reference"));
  reference.prepare(device);
  const auto [out, gradient] = reference.values(material);
  for (const std::string& backend : backends) {
    SparseLayer layer(config_of(shape, activation, backend));
    layer.prepare(device);
    const auto [its_out, its_gradient] = layer.values(material);
    result.runs.push_back({backend, layer.time(material, device, capturable && backend != "reference", repeats),
                           relative_error(its_out, out), relative_error(its_gradient, gradient)});
  }
  return result;
}

}  // namespace switchyard::bench
