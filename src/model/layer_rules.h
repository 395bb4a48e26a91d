// What each layer is, read off the config. The model is built, counted and named by the same rules.
// Values of 0 that stand for "derived" are accepted. No torch.
#pragma once

#include <cstdint>
#include <string>

#include "config/config.h"

namespace switchyard {

bool is_moe_layer(const Config& config, int layer);
int moe_layer_count(const Config& config);
bool has_value_embedding(const ModelConfig& model, int layer);  // alternate layers, the last included
int attention_window(const ModelConfig& model, int layer);      // tokens seen: seq_len, or half of it on an S layer
bool resets_routers(const Config& config, std::int64_t step);   // at the start of that step (moe_spec R13)
bool is_gated(const std::string& mlp);                          // swiglu, geglu: two input matrices

int head_count(const ModelConfig& model);
int kv_head_count(const ModelConfig& model);
int ffn_width(const ModelConfig& model);   // of the dense MLP
int expert_width(const Config& config);    // N of a routed expert
int shared_width(const Config& config);    // of all shared experts together; 0: none
int semantic_width(const Config& config);  // of the router's projection; 0: it reads x

inline std::int64_t kv_width(const ModelConfig& m) { return std::int64_t{kv_head_count(m)} * m.head_dim; }
inline std::int64_t q_width(const ModelConfig& m) { return std::int64_t{head_count(m)} * m.head_dim; }

}  // namespace switchyard
