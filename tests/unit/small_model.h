// A sparse model of two layers that runs in milliseconds, its router's weights drawn so that choices differ.
#pragma once

#include "config/config.h"

namespace switchyard {

inline constexpr int kSmallVocabulary = 64;

inline Config small_sparse_model(int experts, int top_k) {
  Config config;
  config.model.n_layer = 2;
  config.model.n_embd = 32;
  config.model.head_dim = 16;
  config.model.seq_len = 16;
  config.model.vocab_size = kSmallVocabulary;
  config.moe.use_moe = true;
  config.moe.n_experts = experts;
  config.moe.d_expert = 16;
  config.router.top_k = top_k;
  config.router.init = "normal";
  config.router.init_std = 0.3;
  return config;
}

}  // namespace switchyard
