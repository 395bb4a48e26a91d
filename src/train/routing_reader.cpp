#include "train/routing_reader.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "model/layer_rules.h"
#include "train/evaluate.h"

namespace switchyard {
namespace {

template <class T>
std::vector<T> values_of(const at::Tensor& tensor, at::ScalarType type) {
  if (!tensor.defined()) return {};
  const at::Tensor host = tensor.to(at::kCPU, type).contiguous();
  return {host.data_ptr<T>(), host.data_ptr<T>() + host.numel()};
}

std::vector<std::int64_t> integers(const at::Tensor& tensor) { return values_of<std::int64_t>(tensor, at::kLong); }
std::vector<double> doubles(const at::Tensor& tensor) { return values_of<double>(tensor, at::kDouble); }

template <class T>
std::vector<T> row(const std::vector<T>& all, std::size_t index, std::size_t width) {
  if (all.empty()) return {};
  const auto begin = all.begin() + static_cast<std::ptrdiff_t>(index * width);
  return {begin, begin + static_cast<std::ptrdiff_t>(width)};
}

double normalized_entropy(const std::vector<double>& p_E) {
  double total = 0, entropy = 0;
  for (const double p : p_E) total += p;
  if (total <= 0 || p_E.size() < 2) return 1;
  for (const double p : p_E)
    if (p > 0) entropy -= p / total * std::log(p / total);
  return entropy / std::log(static_cast<double>(p_E.size()));
}

// The named tensor that the model keeps; undefined where it keeps none.
at::Tensor kept(const Gpt& model, const std::string& name) {
  for (const KeptTensor& tensor : model.kept_tensors())
    if (tensor.name == name) return tensor.values;
  return {};
}

}  // namespace

RoutingReader::RoutingReader(Gpt& model, Control& control) : model_(model), control_(control), before_(diverted()) {}

RoutingReader::Diverted RoutingReader::diverted() {
  const auto over_ranks = [&](const char* name) {
    const std::vector<std::int64_t> mine = integers(kept(model_, name));
    return mine.empty() ? mine : control_.sum(mine);
  };
  return {over_ranks("router.dropped"), over_ranks("router.to_null"), over_ranks("router.rerouted")};
}

RoutingInterval RoutingReader::read(std::int64_t step, std::int64_t passes) {
  RoutingInterval interval;
  if (model_.sparse_layers() == 0) return interval;
  RoutingTotals& totals = model_.routing_totals();
  const auto columns = static_cast<std::size_t>(totals.count_LE.size(1));
  const auto mean = [&](const at::Tensor& sum_L) {
    return control_.sum(sum_L.sum().item<double>()) / static_cast<double>(passes);
  };
  interval.balance_loss = mean(totals.balance_L);
  interval.z_loss = mean(totals.z_loss_L);
  if (totals.seq_balance_L.defined()) interval.seq_balance_loss = mean(totals.seq_balance_L);
  const at::Tensor count_LE = at::tensor(control_.sum(integers(totals.count_LE)), at::kLong);
  interval.layers = layers_of(model_.config(), count_LE.view(totals.count_LE.sizes()));
  const std::vector<double> prob_LE = control_.sum(doubles(totals.prob_LE));
  std::vector<double> importance_LE = doubles(totals.importance_LE);
  if (!importance_LE.empty()) importance_LE = control_.sum(importance_LE);
  for (std::size_t i = 0; i < interval.layers.size(); ++i) {
    LayerRouting& layer = interval.layers[i];
    layer.entropy = normalized_entropy(row(prob_LE, i, columns));
    layer.importance_E = row(importance_LE, i, columns);
    std::int64_t rows = 0;
    for (const std::int64_t count : layer.count_E) rows += count;
    const double tokens = static_cast<double>(rows) / model_.config().router.top_k;
    for (double& importance : layer.importance_E) importance /= std::max(1.0, tokens);
  }
  std::vector<double> velocity_L = doubles(totals.velocity_L);
  if (!velocity_L.empty()) velocity_L = control_.sum(velocity_L);
  for (LayerRouting& layer : interval.layers) {
    if (!velocity_L.empty())
      layer.velocity = std::sqrt(velocity_L[static_cast<std::size_t>(layer.layer)] / static_cast<double>(passes));
    if (const Parameter* mix = model_.store().find(format("blocks.%d.moe.mix", layer.layer)))
      layer.mix = at::sigmoid(mix->master).item<double>();
  }
  add_kept(step, interval.layers);
  totals.zero();
  return interval;
}

void RoutingReader::add_kept(std::int64_t step, std::vector<LayerRouting>& layers) {
  const Config& config = model_.config();
  const auto columns = static_cast<std::size_t>(router_columns(config.moe));
  std::vector<std::int64_t> last_LE = integers(kept(model_, "router.last_step"));
  if (!last_LE.empty()) last_LE = control_.max(last_LE);
  const std::vector<double> bias_LE = doubles(kept(model_, "router.bias"));
  const Diverted now = diverted();
  const auto since = [](const std::vector<std::int64_t>& now_L, const std::vector<std::int64_t>& before_L,
                        std::size_t i) { return now_L.empty() ? -1 : now_L[i] - before_L[i]; };
  for (std::size_t i = 0; i < layers.size(); ++i) {
    LayerRouting& layer = layers[i];
    layer.zero_experts = static_cast<int>(columns) - config.moe.n_experts;
    layer.dead_window = config.log.dead_window;
    for (const std::int64_t last : row(last_LE, i, columns)) layer.idle_steps_E.push_back(step - 1 - last);
    for (const double bias : row(bias_LE, i, columns)) layer.max_bias = std::max(layer.max_bias, std::abs(bias));
    layer.dropped = since(now.dropped_L, before_.dropped_L, i);
    layer.to_null = since(now.to_null_L, before_.to_null_L, i);
    layer.rerouted = since(now.rerouted_L, before_.rerouted_L, i);
    layer.capacity = static_cast<double>(model_.expert_capacity_at(step - 1));
    if (config.moe.warmup_steps > 0)
      layer.warm_up = std::min(1.0, static_cast<double>(step - 1) / config.moe.warmup_steps);
  }
  before_ = now;
}

}  // namespace switchyard
