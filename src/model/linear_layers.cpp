#include "model/linear_layers.h"

#include "base/text.h"
#include "model/layer_rules.h"

namespace switchyard {
namespace {

void add_attention(std::vector<LinearLayer>& layers, const ModelConfig& model, int layer, const std::string& block) {
  const std::int64_t width = model.n_embd, q = q_width(model), kv = kv_width(model);
  layers.push_back({block + "attn.qkv", q + 2 * kv, width, 3, false});
  if (has_value_embedding(model, layer)) {
    layers.push_back({block + "attn.value_gate", kv_head_count(model), model.value_gate_channels, 1, true});
  }
  layers.push_back({block + "attn.out", width, q, 1, false});
}

// An MLP of `hidden` columns, or `experts` of them.
void add_mlp(std::vector<LinearLayer>& layers, const std::string& prefix, const ModelConfig& model, std::int64_t hidden,
             int experts) {
  const int inputs = is_gated(model.mlp) ? 2 : 1;
  layers.push_back({prefix + "up", hidden * inputs, model.n_embd, experts * inputs, false});
  layers.push_back({prefix + "down", model.n_embd, hidden, experts, false});
}

void add_router(std::vector<LinearLayer>& layers, const std::string& name, const Config& config) {
  if (config.router.type == "token_id") return;
  const int width = config.model.n_embd, dim = cosine_width(config);
  layers.push_back({name, router_columns(config.moe), dim ? dim : width, 1, true});
  if (dim) layers.push_back({name + ".semantic", dim, width, 1, true});
}

}  // namespace

std::vector<LinearLayer> linear_layers(const Config& config) {
  std::vector<LinearLayer> layers;
  for (int layer = 0; layer < config.model.n_layer; ++layer) {
    const std::string block = format("blocks.%d.", layer);
    add_attention(layers, config.model, layer, block);
    if (!is_moe_layer(config, layer)) {
      add_mlp(layers, block + "mlp.", config.model, ffn_width(config.model), 1);
      continue;
    }
    add_router(layers, block + "moe.router", config);
    add_mlp(layers, block + "moe.experts.", config.model, expert_width(config), expert_stack(config.moe));
    if (shared_width(config) > 0) add_mlp(layers, block + "moe.shared.", config.model, shared_width(config), 1);
  }
  layers.push_back({"head", config.model.vocab_size, config.model.n_embd, 1, false});
  return layers;
}

}  // namespace switchyard
