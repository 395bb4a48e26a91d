#include "model/layer_rules.h"

#include <algorithm>
#include <cstddef>

namespace switchyard {

bool is_moe_layer(const Config& config, int layer) {
  const MoeConfig& moe = config.moe;
  return moe.use_moe && layer >= moe.first_dense && (layer - moe.first_dense) % moe.moe_freq == 0;
}

int moe_layer_count(const Config& config) {
  int count = 0;
  for (int layer = 0; layer < config.model.n_layer; ++layer) count += is_moe_layer(config, layer);
  return count;
}

bool has_value_embedding(const ModelConfig& model, int layer) {
  return model.value_embeds && layer % 2 == (model.n_layer - 1) % 2;
}

int attention_window(const ModelConfig& model, int layer) {
  if (layer == model.n_layer - 1 || model.window_pattern.empty()) return model.seq_len;
  const char letter = model.window_pattern[static_cast<std::size_t>(layer) % model.window_pattern.size()];
  return letter == 'S' ? model.seq_len / 2 : model.seq_len;
}

bool resets_routers(const Config& config, std::int64_t step) {
  const RouterConfig& router = config.router;
  return config.moe.use_moe && router.reset_interval > 0 && step > 0 && step % router.reset_interval == 0 &&
         (router.reset_until == 0 || step <= router.reset_until);
}

bool is_gated(const std::string& mlp) { return mlp == "swiglu" || mlp == "geglu"; }

int head_count(const ModelConfig& model) { return model.n_head ? model.n_head : model.n_embd / model.head_dim; }
int kv_head_count(const ModelConfig& model) { return model.n_kv_head ? model.n_kv_head : head_count(model); }
int ffn_width(const ModelConfig& model) { return model.ffn_hidden ? model.ffn_hidden : 4 * model.n_embd; }

int expert_width(const Config& config) { return expert_width(config.moe, config.model); }

int shared_width(const Config& config) {
  return config.moe.n_shared_experts * (config.moe.d_shared ? config.moe.d_shared : expert_width(config));
}

int semantic_width(const Config& config) {
  if (!config.router.semantic) return 0;
  return config.router.semantic_dim ? config.router.semantic_dim : std::min(256, config.model.n_embd);
}

}  // namespace switchyard
