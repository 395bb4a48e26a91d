#include "train/evaluate.h"

#include <algorithm>
#include <cmath>

#include "model/layer_rules.h"

namespace switchyard {

std::optional<Evaluation> evaluate(Gpt& model, const HeldOut& text, at::Device device, Control& control,
                                   const std::function<bool()>& stop) {
  at::NoGradGuard no_grad;
  StepContext context;
  context.seq_len = model.config().model.seq_len;
  double nll = 0;
  std::int64_t targets = 0, bytes = 0;
  at::Tensor count_LE;
  for (std::int64_t first = 0; first < text.count(); first += control.size()) {
    if (control.any(stop())) return std::nullopt;
    const std::int64_t i = first + control.rank();
    if (i >= text.count()) continue;  // the others of this round have a batch left
    const Batch batch = text.read(i);
    const auto tensor_of = [&](const auto& values) { return at::tensor(values, at::kLong).to(device); };
    const auto all = static_cast<std::int64_t>(batch.inputs.size());
    // What only fills the last batch is routed nowhere.
    context.real_T = batch.tokens < all ? at::arange(all, device).lt(batch.tokens) : at::Tensor();
    const ModelOutput output = model.forward(tensor_of(batch.inputs), tensor_of(batch.targets), context);
    nll += output.nll_T.to(at::kDouble).sum().item<double>();
    for (const std::int32_t target : batch.targets) targets += target >= 0;
    bytes += batch.source_bytes;
    if (output.count_LE.defined())
      count_LE = count_LE.defined() ? count_LE + output.count_LE : output.count_LE.to(at::kLong);
  }
  const std::vector<std::int64_t> counts = control.sum(std::vector<std::int64_t>{targets, bytes});
  Evaluation result;
  result.targets = counts[0];
  result.source_bytes = counts[1];
  const double sum = control.sum(nll);
  result.loss = sum / static_cast<double>(std::max<std::int64_t>(1, result.targets));
  result.bits_per_byte = sum / (std::log(2.0) * static_cast<double>(std::max<std::int64_t>(1, result.source_bytes)));
  if (model.sparse_layers() > 0) {
    if (!count_LE.defined()) count_LE = at::zeros_like(model.routing_totals().count_LE);
    const at::Tensor host = count_LE.cpu().contiguous();
    const std::int64_t* data = host.data_ptr<std::int64_t>();
    const std::vector<std::int64_t> total = control.sum(std::vector<std::int64_t>(data, data + host.numel()));
    result.count_LE = at::tensor(total, at::kLong).view(host.sizes());
  }
  return result;
}

std::vector<LayerRouting> layers_of(const Config& config, const at::Tensor& count_LE) {
  std::vector<LayerRouting> layers;
  for (int block = 0, row = 0; block < config.model.n_layer; ++block) {
    if (!is_moe_layer(config, block)) continue;
    const at::Tensor counts = count_LE[row++].contiguous();
    const std::int64_t* data = counts.data_ptr<std::int64_t>();
    LayerRouting layer;
    layer.layer = block;
    layer.count_E = {data, data + counts.numel()};
    layer.zero_experts = router_columns(config.moe) - config.moe.n_experts;
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace switchyard
