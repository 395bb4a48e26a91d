#include "train/activation_watch.h"

#include <cmath>

#include "base/text.h"

namespace switchyard {
namespace {

// In the order in which a layer makes them.
const std::vector<std::string> kNames = {"residual", "attention", "router logits", "ffn"};

}  // namespace

ActivationWatch::ActivationWatch(int layers, at::Device device) {
  const auto options = at::TensorOptions().device(device);
  const std::vector<std::int64_t> shape{layers, static_cast<std::int64_t>(kNames.size())};
  mean_square_LW_ = at::full(shape, -1, options.dtype(at::kFloat));
  nonfinite_LW_ = at::zeros(shape, options.dtype(at::kLong));
}

Watch ActivationWatch::watcher() {
  return [this](Watched what, int layer, const at::Tensor& values) { look(what, layer, values); };
}

void ActivationWatch::look(Watched what, int layer, const at::Tensor& values) {
  if (!values.defined()) return;
  at::NoGradGuard no_grad;
  const at::Tensor seen = values.detach();
  const auto column = static_cast<std::int64_t>(what);
  mean_square_LW_[layer][column].copy_(seen.to(at::kFloat).square().mean());
  nonfinite_LW_[layer][column].add_(seen.isfinite().all().logical_not());
  if (keeps_) kept_[format("layer.%d.%s", layer, kNames[static_cast<std::size_t>(what)].c_str())] = seen.clone();
}

NamedTensors ActivationWatch::take_tensors() {
  NamedTensors tensors(kept_.begin(), kept_.end());
  kept_.clear();
  return tensors;
}

std::vector<LayerNorms> ActivationWatch::norms() const {
  const at::Tensor host = mean_square_LW_.cpu().contiguous();
  const float* values = host.data_ptr<float>();
  const auto root = [](float square) { return square < 0 ? -1.0 : std::sqrt(static_cast<double>(square)); };
  std::vector<LayerNorms> layers;
  for (int layer = 0; layer < host.size(0); ++layer, values += host.size(1))
    layers.push_back({layer, root(values[0]), root(values[1]), root(values[3]), root(values[2])});
  return layers;
}

std::string ActivationWatch::first_nonfinite(Control& control) {
  const at::Tensor host = nonfinite_LW_.to(at::kCPU, at::kLong, /*non_blocking=*/false, /*copy=*/true);
  nonfinite_LW_.zero_();
  const std::int64_t* counts = host.data_ptr<std::int64_t>();
  std::int64_t first = 0;
  while (first < host.numel() && counts[first] == 0) ++first;
  first = -control.max(-first);
  if (first == host.numel()) return "";
  return format("layer %d, %s", static_cast<int>(first / host.size(1)),
                kNames[static_cast<std::size_t>(first % host.size(1))].c_str());
}

std::string norms_table(const std::vector<LayerNorms>& layers) {
  std::string text = "  layer    residual   attention         ffn  router logits\n";
  const auto number = [](double value, int width) {
    return value < 0 ? format("%*s", width, "-") : format("%*.4g", width, value);
  };
  for (const LayerNorms& layer : layers)
    text += format("  %5d  ", layer.layer) + number(layer.residual, 10) + "  " + number(layer.attention, 10) + "  " +
            number(layer.ffn, 10) + "  " + number(layer.router_logits, 13) + "\n";
  return text;
}

}  // namespace switchyard
