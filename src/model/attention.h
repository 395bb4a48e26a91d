// Causal self-attention: joint qkv projection, QK-norm, rotary embedding, value embeddings, output projection.
#pragma once

#include "config/config.h"
#include "model/kv_cache.h"
#include "ops/project_qkv.h"
#include "precision/linear.h"

namespace switchyard {

class Attention : public Layer {
 public:
  Attention(ParameterStore& store, const std::string& name, const Config& config, int layer,
            const PrecisionPolicy& policy);

  // n [T, D] normalised input; value [T, KV*C] value embeddings, or undefined. Returns [T, D].
  at::Tensor forward(const at::Tensor& n_TD, const at::Tensor& value, const ops::RotaryTables& tables,
                     const StepContext& step) const;
  // The same for the next step.seq_len tokens of each sequence, appending to the cache; no gradient.
  at::Tensor forward_cached(const at::Tensor& n_TD, const at::Tensor& value, const ops::RotaryTables& tables,
                            const StepContext& step, KvCache::LayerCache& cache) const;

 private:
  // [T, (H + 2 KV) C]; rotation: as ops::project_qkv()
  at::Tensor project(const at::Tensor& n_TD, const at::Tensor& value, const ops::RotaryTables& tables,
                     const StepContext& step, ops::QkvRotation* rotation = nullptr) const;

  const int heads_, kv_heads_, head_dim_, window_;
  const bool norm_;
  const double eps_;
  std::shared_ptr<Linear> qkv_, out_, value_gate_;
  const Parameter* q_norm_ = nullptr;
  const Parameter* k_norm_ = nullptr;
};

}  // namespace switchyard
