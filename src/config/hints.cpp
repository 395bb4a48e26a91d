#include "config/hints.h"

#include "base/text.h"
#include "config/field.h"

namespace switchyard {

const std::vector<std::pair<std::string, std::string>>& key_aliases() {
  static const std::vector<std::pair<std::string, std::string>> aliases = {
      {"num_experts", "moe.n_experts"},
      {"n_routed_experts", "moe.n_experts"},
      {"num_local_experts", "moe.n_experts"},
      {"num_shared_experts", "moe.n_shared_experts"},
      {"expert_topk", "router.top_k"},
      {"num_experts_per_tok", "router.top_k"},
      {"num_activated_experts", "router.top_k"},
      {"moe_intermediate_size", "moe.d_expert"},
      {"expert_intermediate_size", "moe.d_expert"},
      {"load_balance_weight", "router.balance_coef"},
      {"load_balancing_weight", "router.balance_coef"},
      {"balance_loss_coeff", "router.balance_coef"},
      {"aux_loss_coef", "router.balance_coef"},
      {"router_aux_loss_coef", "router.balance_coef"},
      {"expert_load_balance_factor", "router.balance_coef"},
      {"router_scaling_factor", "router.routed_scaling_factor"},
      {"scoring_func", "router.score"},
      {"router_z_loss_coef", "router.z_loss_coef"},
      {"decoder_sparse_step", "moe.moe_freq"},
      {"expert_capacity_factor", "moe.capacity_factor"},
      {"moe_capacity_factor", "moe.capacity_factor"},
      {"use_null_expert", "moe.overflow null_expert"},
      {"learned_token_importance", "moe.token_importance"},
      {"use_bias_balancing", "router.bias_balancing"},
      {"moe_warmup_steps", "moe.warmup_steps"},
      {"aux_loss_ramp_steps", "router.aux_ramp_steps"},
      {"router_reset_step", "router.reset_interval"},
      {"semantic_routing", "router.semantic"},
      {"expert_parallel", "parallel.expert"},
      {"hidden_size", "model.n_embd"},
      {"d_model", "model.n_embd"},
      {"num_hidden_layers", "model.n_layer"},
      {"num_layers", "model.n_layer"},
      {"num_attention_heads", "model.n_head"},
      {"num_key_value_heads", "model.n_kv_head"},
      {"intermediate_size", "model.ffn_hidden"},
      {"max_position_embeddings", "model.seq_len"},
      {"max_seq_len", "model.seq_len"},
      {"hidden_act", "model.mlp"},
      {"rms_norm_eps", "model.norm_eps"},
      {"tie_word_embeddings", "model.tie_head"},
      {"batch_size", "train.batch_tokens or train.micro_batch"},
      {"device_batch_size", "train.micro_batch"},
      {"total_batch_size", "train.batch_tokens"},
      {"num_iterations", "train.steps"},
      {"max_steps", "train.steps"},
      {"output_dir", "train.out"},
      {"checkpointing", "train.recompute"},
      {"gradient_checkpointing", "train.recompute"},
  };
  return aliases;
}

namespace {

std::string leaf_of(const std::string& key) { return key.substr(key.rfind('.') + 1); }

// Upper case and dashes are the usual slips of the hand.
std::string normalised(std::string key) {
  for (char& c : key) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return key;
}

std::vector<std::string> keys_with_leaf(const std::string& leaf) {
  std::vector<std::string> keys;
  for (const Field& field : default_fields())
    if (field.leaf() == leaf) keys.push_back(field.key);
  return keys;
}

std::string nearest_group(const std::string& unknown) {
  std::vector<std::string> names;
  for (const Group& group : config_groups()) names.push_back(group.name);
  return nearest(unknown, names);
}

std::string nearest_key(const std::string& unknown) {
  std::vector<std::string> keys, parts;
  for (const Field& field : default_fields()) keys.push_back(field.key), parts.push_back(field.leaf());
  for (const Group& group : config_groups()) keys.push_back(group.name), parts.push_back(group.name);
  // A dotted key is first taken as a whole; otherwise its last part may stand in another group.
  std::string whole = unknown.find('.') == std::string::npos ? "" : nearest(unknown, keys);
  if (!whole.empty()) return whole;
  const std::string part = nearest(leaf_of(unknown), parts);
  const auto owners = keys_with_leaf(part);
  return owners.empty() ? part : join(owners, " or ");
}

}  // namespace

std::string key_hint(const std::string& unknown_key, bool holds_keys) {
  const std::string unknown = normalised(unknown_key), leaf = leaf_of(unknown);
  if (holds_keys) {
    const std::string group = nearest_group(unknown);
    if (!group.empty()) return "did you mean " + group + "?";
  }
  if (find_field(unknown)) return "did you mean " + unknown + "?";
  for (const auto& [alias, key] : key_aliases()) {
    if (alias != leaf) continue;
    if (find_field(key.substr(0, key.find(' ')))) return "did you mean " + key + "?";
    return "that would be " + key + ", which this version does not have";
  }
  const auto same_leaf = keys_with_leaf(leaf);
  if (!same_leaf.empty()) return "did you mean " + join(same_leaf, " or ") + "?";
  const std::string near = nearest_key(unknown);
  return near.empty() ? "" : "did you mean " + near + "?";
}

}  // namespace switchyard
