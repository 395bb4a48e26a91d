#include "bench/moe_vs_mlp.h"

#include "base/error.h"
#include "base/text.h"
#include "bench/timed_layer.h"
#include "config/derive.h"
#include "kernels/router.h"

namespace switchyard::bench {
namespace {

constexpr int kWarmUps = 10;

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
  config.router.init_std = unit_normal(shape.width).scale;
  derive(config);
  return config;
}

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
  const bool capturable = device.device.is_cuda();
  const Material material(shape.tokens, shape.width, static_cast<int>(shape.tokens), device);
  const auto time = [&](const TimedLayer& layer, bool record) {
    return layer.time(material, device, record, repeats, kWarmUps);
  };
  const auto sparse = [&](const std::string& backend) {
    return SparseLayer(config_of(shape, activation, backend), unit_normal(shape.width), unit_normal(shape.hidden()));
  };
  const int matrices = ops::is_gated(ops::parse_activation(activation)) ? 3 : 2;
  MoeVsMlp result{shape, 2.0 * matrices * static_cast<double>(shape.tokens) * shape.width * shape.active, {}};
  {
    DenseLayer mlp(config_of(shape, activation, "auto"));
    mlp.prepare(device);
    result.runs.push_back({"mlp", time(mlp, device.device.is_cuda())});
  }
  SparseLayer reference = sparse("reference");
  reference.prepare(device);
  const auto [out, gradient] = reference.values(material);
  for (const std::string& backend : backends) {
    SparseLayer layer = sparse(backend);
    layer.prepare(device);
    const auto [its_out, its_gradient] = layer.values(material);
    result.runs.push_back({backend, time(layer, capturable && backend != "reference"), relative_error(its_out, out),
                           relative_error(its_gradient, gradient)});
  }
  return result;
}

}  // namespace switchyard::bench
