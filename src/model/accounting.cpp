#include "model/accounting.h"

#include <algorithm>

#include "base/text.h"
#include "model/layer_rules.h"

namespace switchyard {
namespace {

constexpr int kPartKinds = static_cast<int>(PartKind::kScalars) + 1;

// Matrices that multiply a token's activations; a tied head adds its product without owning parameters.
bool is_matmul(PartKind kind) {
  return kind != PartKind::kTokenEmbedding && kind != PartKind::kValueEmbedding && kind != PartKind::kNorms &&
         kind != PartKind::kScalars && kind != PartKind::kInlVectors;
}

class Table {
 public:
  Table() {
    for (int kind = 0; kind < kPartKinds; ++kind) parts_.push_back({static_cast<PartKind>(kind), 0, 0});
  }
  void add(PartKind kind, std::int64_t count) { add(kind, count, count); }
  void add(PartKind kind, std::int64_t total, std::int64_t active) {
    parts_[static_cast<std::size_t>(kind)].total += total;
    parts_[static_cast<std::size_t>(kind)].active += active;
  }
  std::vector<Part> take() { return std::move(parts_); }

 private:
  std::vector<Part> parts_;
};

void add_attention(Table& table, const ModelConfig& model, int layer) {
  const std::int64_t width = model.n_embd, q = q_width(model), kv = kv_width(model);
  table.add(PartKind::kAttention, width * (q + 2 * kv) + q * width);
  if (has_value_embedding(model, layer)) {
    table.add(PartKind::kValueEmbedding, model.vocab_size * kv);
    table.add(PartKind::kValueGate, std::int64_t{kv_head_count(model)} * model.value_gate_channels);
  }
}

void add_router(Table& table, const Config& config) {
  const std::int64_t columns = router_columns(config.moe), width = config.model.n_embd;
  const std::int64_t semantic = semantic_width(config);
  table.add(PartKind::kRouter, semantic ? semantic * (width + columns) : width * columns);
  if (semantic) table.add(PartKind::kScalars, semantic + 1);  // the projection's bias, the scale
}

// Of a sparse layer: importance, share of flexible_ffn, and of each null or zero expert that is a constant the map of
// its shares [2, D] and the constant [D].
std::int64_t sparse_vectors(const Config& config) {
  const MoeConfig& moe = config.moe;
  const std::int64_t width = config.model.n_embd;
  const bool null_constant = moe.overflow == "null_expert" && moe.null_expert == "constant";
  return (moe.zero_experts.constant + null_constant) * 3 * width + (moe.token_importance == "learned" ? width + 1 : 0) +
         (moe.flexible_ffn ? 1 : 0);
}

// Matrices of null experts, which count as active: any token may use one, and few do.
std::int64_t null_ffn_matrices(const Config& config) {
  std::int64_t count = 0;
  for (int layer = 0; layer < config.model.n_layer; ++layer)
    if (is_moe_layer(config, layer) && has_null_ffn(config.moe))
      count += std::int64_t{is_gated(config.model.mlp) ? 3 : 2} * config.model.n_embd * expert_width(config);
  return count;
}

void add_feed_forward(Table& table, const Config& config, int layer) {
  const std::int64_t width = config.model.n_embd, matrices = is_gated(config.model.mlp) ? 3 : 2;
  if (!is_moe_layer(config, layer)) {
    table.add(PartKind::kDenseMlp, matrices * width * ffn_width(config.model));
    return;
  }
  const std::int64_t expert = matrices * width * expert_width(config);
  const std::int64_t stack = expert_stack(config.moe), visited = std::min(config.router.top_k, config.moe.n_experts);
  table.add(PartKind::kExperts, stack * expert, (visited + stack - config.moe.n_experts) * expert);
  table.add(PartKind::kSharedExperts, matrices * width * shared_width(config));
  if (config.moe.flexible_ffn) table.add(PartKind::kDenseMlp, matrices * width * ffn_width(config.model));
  if (config.router.type == "topk") add_router(table, config);
  table.add(PartKind::kScalars, sparse_vectors(config));
}

// Of one module: the controller's matrices, and its biases with mu.
std::int64_t inl_matrices(const ModelConfig& model) {
  return model.inl.mode == "lite" ? 0 : std::int64_t{5} * model.n_embd * model.inl.controller_hidden;
}
std::int64_t inl_vectors(const ModelConfig& model) {
  return model.n_embd + (model.inl.mode == "lite" ? 0 : 3 * std::int64_t{model.n_embd} + model.inl.controller_hidden);
}

std::int64_t norm_weights(const ModelConfig& model) {
  std::int64_t count = 0;
  if (model.norm_weight) count += (2 * model.n_layer + 1) * std::int64_t{model.n_embd};
  if (model.qk_norm && model.qk_norm_weight) count += std::int64_t{model.n_layer} * 2 * model.head_dim;
  return count;
}

std::int64_t attention_flops(const ModelConfig& model) {
  std::int64_t keys = 0;
  for (int layer = 0; layer < model.n_layer; ++layer) keys += std::min(attention_window(model, layer), model.seq_len);
  return 12 * q_width(model) * keys;
}

std::string table_line(const std::string& name, std::int64_t total, std::int64_t active) {
  return format("  %-18s %18s %18s\n", name.c_str(), with_commas(total).c_str(), with_commas(active).c_str());
}

}  // namespace

std::string part_name(PartKind kind) {
  static const char* const names[kPartKinds] = {
      "token embedding", "value embeddings", "value gates", "attention", "routers", "experts", "shared experts",
      "dense mlp",       "INL controllers",  "INL vectors", "head",      "norms",   "scalars"};
  return names[static_cast<int>(kind)];
}

Accounting account(const Config& config) {
  const ModelConfig& model = config.model;
  const std::int64_t vocabulary_matrix = std::int64_t{model.vocab_size} * model.n_embd;
  Table table;
  table.add(PartKind::kTokenEmbedding, vocabulary_matrix);
  if (!model.tie_head) table.add(PartKind::kHead, vocabulary_matrix);
  for (int layer = 0; layer < model.n_layer; ++layer) {
    add_attention(table, model, layer);
    add_feed_forward(table, config, layer);
  }
  table.add(PartKind::kNorms, norm_weights(model));
  if (model.resid_scalars) table.add(PartKind::kScalars, 2 * model.n_layer);
  if (model.inl.enabled) {
    const std::int64_t modules = model.inl.shared ? 1 : model.n_layer;
    table.add(PartKind::kInlControllers, modules * inl_matrices(model));
    table.add(PartKind::kInlVectors, modules * inl_vectors(model));
  }

  Accounting result;
  result.parts = table.take();
  for (const Part& part : result.parts) {
    result.total += part.total;
    result.active += part.active;
    if (is_matmul(part.kind)) result.scaling_parameters += part.active;
  }
  if (model.tie_head) result.scaling_parameters += vocabulary_matrix;
  result.inactive = result.total - result.active;
  result.attention_flops_per_token = attention_flops(model);
  result.flops_per_token = flops_per_token(config, result.scaling_parameters);
  result.averaging_flops_per_token = flops_per_token(config, result.scaling_parameters + result.inactive);
  return result;
}

std::int64_t flops_per_token(const Config& config, std::int64_t scaling_parameters) {
  const ModelConfig& model = config.model;
  const bool runs_again = model.inl.enabled && model.inl.shared;
  const std::int64_t again = runs_again ? (model.n_layer - 1) * inl_matrices(model) : 0;
  return 6 * (scaling_parameters + again - null_ffn_matrices(config)) + attention_flops(model);
}

std::string parameter_table(const Accounting& accounting) {
  std::string text = format("  %-18s %18s %18s\n", "parameters", "total", "active a token");
  for (const Part& part : accounting.parts) {
    if (part.total > 0) text += table_line(part_name(part.kind), part.total, part.active);
  }
  text += table_line("all", accounting.total, accounting.active);
  text += format("%s total, %s active, %s inactive (%s / %s / %s)\n", with_commas(accounting.total).c_str(),
                 with_commas(accounting.active).c_str(), with_commas(accounting.inactive).c_str(),
                 in_millions(accounting.total).c_str(), in_millions(accounting.active).c_str(),
                 in_millions(accounting.inactive).c_str());
  text += format("%s scaling parameters (block matrices + head - inactive)\n",
                 with_commas(accounting.scaling_parameters).c_str());
  text += format("%s FLOPs a token, of them %s in attention\n", with_commas(accounting.flops_per_token).c_str(),
                 with_commas(accounting.attention_flops_per_token).c_str());
  return text;
}

double model_flops_utilisation(double tokens_per_s, double flops_per_token, double peak_tflops_per_device,
                               int devices) {
  const double peak = peak_tflops_per_device * 1e12 * devices;
  return peak > 0 ? tokens_per_s * flops_per_token / peak : 0;
}

}  // namespace switchyard
