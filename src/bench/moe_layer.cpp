#include "bench/moe_layer.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <sstream>

#include "base/error.h"
#include "bench/stopwatch.h"
#include "kernels/router.h"
#include "ops/moe_ffn.h"
#include "ops/router_scores.h"

namespace switchyard::bench {
namespace {

using at::Tensor;

class Layer {
 public:
  Layer(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device)
      : shape_(shape),
        products_(ops::GroupedProducts::choose(device.device, device.activation_dtype)),
        up_(store_.add("up", ParameterKind::kExpert,
                       {shape.experts, (ops::is_gated(activation) ? 2 : 1) * shape.hidden, shape.width}, {})),
        down_(store_.add("down", ParameterKind::kExpert, {shape.experts, shape.width, shape.hidden}, {})),
        router_(store_.add("router", ParameterKind::kRouter, {shape.experts, shape.width}, {})),
        experts_{&up_, &down_, activation} {
    rule_.top_k = shape.top_k;
    rule_.seq_len = static_cast<int>(shape.tokens);
    store_.allocate(device.device, device.activation_dtype, store_.contiguous());
    draw_values(device);
    const at::NoGradGuard no_grad;
    const ops::RouterScores scores = scores_of(ops::router_logits(x_TD_, router_));
    weight_TK_ = scores.weight_TK.detach().clone().requires_grad_(true);
    plan_ = plan_of(scores);
  }

  Tensor run_experts() const { return ops::moe_ffn(x_TD_, weight_TK_, experts_, plan_, products_); }
  Tensor run_all() const {
    const ops::RouterLogits logits = ops::router_logits(x_TD_, router_);
    const ops::RouterScores scores = scores_of(logits);
    return ops::moe_ffn(logits.x_TD, scores.weight_TK, experts_, plan_of(scores), products_);
  }
  void differentiate(const Tensor& out_TD, bool with_router) const {
    torch::autograd::grad({out_TD}, with_router ? std::vector<Tensor>{x_TD_} : std::vector<Tensor>{x_TD_, weight_TK_},
                          {dy_TD_});
  }
  double largest_over_mean_load() const {
    return plan_.count_E.max().item<double>() * shape_.experts / static_cast<double>(shape_.tokens * shape_.top_k);
  }

 private:
  // In the order of the peer's: x, router, dy, up, down; each in fp32, scaled, rounded.
  void draw_values(const ComputeDevice& device) {
    at::manual_seed(0);
    const at::NoGradGuard no_grad;
    const auto draw = [&](const std::vector<std::int64_t>& size, double deviation) {
      return (at::randn(size, at::TensorOptions().device(device.device)) * deviation).to(device.activation_dtype);
    };
    const auto inner = [](int width) { return 1 / std::sqrt(static_cast<double>(width)); };
    x_TD_ = draw({shape_.tokens, shape_.width}, 1);
    router_.compute.copy_(draw(router_.shape, inner(shape_.width)));
    dy_TD_ = draw({shape_.tokens, shape_.width}, 1);
    up_.compute.copy_(draw(up_.shape, inner(shape_.width)));
    down_.compute.copy_(draw(down_.shape, inner(shape_.hidden)));
    x_TD_.requires_grad_(true);
  }
  ops::RouterScores scores_of(const ops::RouterLogits& logits) const {
    return ops::router_scores(logits.logits_TE, {}, rule_);
  }
  ops::DispatchPlan plan_of(const ops::RouterScores& scores) const {
    return ops::dispatch(scores.expert_TK, shape_.experts,
                         products_.alignment(scores.expert_TK.numel(), shape_.experts));
  }

  const LayerShape shape_;
  const ops::GroupedProducts& products_;
  ParameterStore store_;
  Parameter &up_, &down_, &router_;
  const ops::ExpertWeights experts_;
  ops::RoutingRule rule_;
  Tensor x_TD_, dy_TD_, weight_TK_;
  ops::DispatchPlan plan_;
};

}  // namespace

LayerShape parse_layer_shape(const std::string& text) {
  const auto reject = [&](const std::string& reason) -> ConfigError {
    return ConfigError("--shape " + text + ": " + reason +
                       "; it is T,D,N,E,K: tokens, width, expert width, experts, "
                       "experts a token, as in 40960,768,256,128,8");
  };
  std::vector<std::int64_t> numbers;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::size_t read = 0;
    std::int64_t number = 0;
    try {
      number = std::stoll(part, &read);
    } catch (const std::logic_error&) { throw reject("'" + part + "' is no number"); }
    if (read != part.size()) throw reject("'" + part + "' is no number");
    if (number < 1 || number > (1 << 24)) throw reject(part + " is not from 1 to 16777216");
    numbers.push_back(number);
  }
  if (numbers.size() != 5) throw reject(std::to_string(numbers.size()) + " numbers instead of 5");
  const auto small = [&](int i) { return static_cast<int>(numbers[static_cast<std::size_t>(i)]); };
  const LayerShape shape{numbers[0], small(1), small(2), small(3), small(4)};
  if (shape.width % 8 != 0 || shape.hidden % 8 != 0) throw reject("D and N must be multiples of 8");
  if (shape.experts > kernels::kMaxExperts) throw reject("E is at most " + std::to_string(kernels::kMaxExperts));
  if (shape.top_k > std::min(shape.experts, kernels::kMaxTopK))
    throw reject("K is at most E, and at most " + std::to_string(kernels::kMaxTopK));
  return shape;
}

std::vector<LayerShape> default_layer_shapes(bool gpu) {
  if (!gpu) return {{1024, 256, 512, 8, 2}, {1024, 256, 128, 32, 8}};
  return {{40960, 768, 256, 128, 8},
          {40960, 768, 512, 64, 4},
          {40960, 768, 1024, 32, 2},
          {32768, 4096, 1024, 64, 4},
          {65536, 768, 1536, 8, 2}};
}

LayerTiming time_moe_layer(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device,
                           int repeats) {
  const Layer layer(shape, activation, device);
  const bool record =
      device.device.is_cuda() && ops::GroupedProducts::choose(device.device, device.activation_dtype).on_device();
  const auto time = [&](auto forward, bool with_router) {
    return time_passes({forward, [&](const Tensor& out_TD) { layer.differentiate(out_TD, with_router); }},
                       device.index(), record, repeats);
  };
  LayerTiming timing{};
  timing.shape = shape;
  timing.forward_flops = 2.0 * (ops::is_gated(activation) ? 3 : 2) * static_cast<double>(shape.tokens) * shape.top_k *
                         shape.width * shape.hidden;
  timing.largest_over_mean_load = layer.largest_over_mean_load();
  timing.recorded = record;
  timing.experts_only = time([&] { return layer.run_experts(); }, false);
  timing.with_router = time([&] { return layer.run_all(); }, true);
  return timing;
}

}  // namespace switchyard::bench
