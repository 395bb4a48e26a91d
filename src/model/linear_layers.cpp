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

void add_router(std::vector<LinearLayer>& layers, const Config& config, const std::string& name) {
  const int semantic = semantic_width(config), width = config.model.n_embd;
  if (semantic) layers.push_back({name + ".semantic", semantic, width, 1, true});
  layers.push_back({name, router_columns(config.moe), semantic ? semantic : width, 1, true});
}

// An MLP of `hidden` columns, or `experts` of them.
void add_mlp(std::vector<LinearLayer>& layers, const std::string& prefix, const ModelConfig& model, std::int64_t hidden,
             int experts) {
  const int inputs = is_gated(model.mlp) ? 2 : 1;
  layers.push_back({prefix + "up", hidden * inputs, model.n_embd, experts * inputs, false});
  layers.push_back({prefix + "down", model.n_embd, hidden, experts, false});
}

void add_inl(std::vector<LinearLayer>& layers, const std::string& prefix, const ModelConfig& model) {
  if (model.inl.mode == "lite") return;
  const std::int64_t width = model.n_embd, hidden = model.inl.controller_hidden;
  layers.push_back({prefix + "inl.in", hidden, 2 * width, 1, true});
  layers.push_back({prefix + "inl.out", 3 * width, hidden, 3, true});
}

void add_feed_forward(std::vector<LinearLayer>& layers, const Config& config, int layer, const std::string& block) {
  const ModelConfig& model = config.model;
  if (!is_moe_layer(config, layer)) return add_mlp(layers, block + "mlp.", model, ffn_width(model), 1);
  if (config.router.type == "topk") add_router(layers, config, block + "moe.router");
  add_mlp(layers, block + "moe.experts.", model, expert_width(config), expert_stack(config.moe));
  if (shared_width(config) > 0) add_mlp(layers, block + "moe.shared.", model, shared_width(config), 1);
  if (config.moe.flexible_ffn) add_mlp(layers, block + "moe.dense.", model, ffn_width(model), 1);
}

}  // namespace

std::vector<LinearLayer> linear_layers(const Config& config) {
  std::vector<LinearLayer> layers;
  for (int layer = 0; layer < config.model.n_layer; ++layer) {
    const std::string block = format("blocks.%d.", layer);
    add_attention(layers, config.model, layer, block);
    add_feed_forward(layers, config, layer, block);
    if (config.model.inl.enabled && !config.model.inl.shared) add_inl(layers, block, config.model);
  }
  if (config.model.inl.enabled && config.model.inl.shared) add_inl(layers, "", config.model);
  layers.push_back({"head", config.model.vocab_size, config.model.n_embd, 1, false});
  return layers;
}

}  // namespace switchyard
