#include "model/attention.h"

#include "model/init_rules.h"
#include "model/layer_rules.h"
#include "ops/attention.h"
#include "ops/value_gate.h"

namespace switchyard {

Attention::Attention(ParameterStore& store, const std::string& name, const Config& config, int layer,
                     const PrecisionPolicy& policy)
    : Layer(name),
      heads_(head_count(config.model)),
      kv_heads_(kv_head_count(config.model)),
      head_dim_(config.model.head_dim),
      window_(attention_window(config.model, layer)),
      norm_(config.model.qk_norm),
      eps_(config.model.norm_eps) {
  const ModelConfig& model = config.model;
  const std::int64_t q = q_width(model), kv = kv_width(model), width = model.n_embd;
  qkv_ = register_module(
      "qkv", std::make_shared<Linear>(store, name + ".qkv", ParameterKind::kAttention, q + 2 * kv, width,
                                      initial(Role::kInput, model), policy, std::vector<std::int64_t>{q, kv, kv}));
  if (has_value_embedding(model, layer))
    value_gate_ = register_module(
        "value_gate", std::make_shared<Linear>(store, name + ".value_gate", ParameterKind::kValueGate, kv_heads_,
                                               model.value_gate_channels, initial(Role::kValueGate, model), policy));
  if (model.qk_norm && model.qk_norm_weight) {
    q_norm_ = &declare(store, "q_norm.weight", ParameterKind::kNorm, {head_dim_}, {Init::Kind::kConstant, 1.0});
    k_norm_ = &declare(store, "k_norm.weight", ParameterKind::kNorm, {head_dim_}, {Init::Kind::kConstant, 1.0});
  }
  out_ = register_module("out", std::make_shared<Linear>(store, name + ".out", ParameterKind::kAttention, width, q,
                                                         initial(Role::kOutput, model), policy));
}

at::Tensor Attention::project(const at::Tensor& n_TD, const at::Tensor& value, const ops::RotaryTables& tables,
                              const StepContext& step, ops::QkvRotation* rotation) const {
  ops::GatedInput input{at::Tensor(), n_TD};
  if (value.defined()) input = ops::value_gate(n_TD, value_gate_->weight());
  return ops::project_qkv(input.n_TD, qkv_->weight(), {value, input.gate_TK}, tables,
                          {step.seq_len, heads_, kv_heads_, head_dim_, norm_, eps_, q_norm_, k_norm_},
                          qkv_->products(step), rotation);
}

at::Tensor Attention::forward(const at::Tensor& n_TD, const at::Tensor& value, const ops::RotaryTables& tables,
                              const StepContext& step) const {
  const ops::AttentionShape shape{step.seq_len, heads_, kv_heads_, head_dim_, window_};
  ops::QkvRotation rotation;
  ops::QkvRotation* turned_back = !q_norm_ && ops::attention_turns_back(n_TD, shape) ? &rotation : nullptr;
  const at::Tensor qkv = project(n_TD, value, tables, step, turned_back);
  return out_->forward(ops::attention(qkv, shape, turned_back), step);
}

at::Tensor Attention::forward_cached(const at::Tensor& n_TD, const at::Tensor& value, const ops::RotaryTables& tables,
                                     const StepContext& step, KvCache::LayerCache& cache) const {
  const std::int64_t sequences = n_TD.size(0) / step.seq_len, past = step.first_position, count = step.seq_len;
  const auto heads_first = project(n_TD, value, tables, step)
                               .view({sequences, count, heads_ + 2 * kv_heads_, head_dim_})
                               .transpose(1, 2)
                               .split_with_sizes({heads_, kv_heads_, kv_heads_}, 1);
  cache.key.narrow(2, past, count).copy_(heads_first[1]);
  cache.value.narrow(2, past, count).copy_(heads_first[2]);
  const at::Tensor y = ops::cached_attention(heads_first[0], cache.key.narrow(2, 0, past + count),
                                             cache.value.narrow(2, 0, past + count), window_);
  return out_->forward(y.transpose(1, 2).reshape({n_TD.size(0), heads_ * head_dim_}), step);
}

}  // namespace switchyard
