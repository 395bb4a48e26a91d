// The model's options: dimensions, the MLP, norms, attention, and what the nanochat family adds.
#pragma once

#include "base/text.h"
#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

template <class V>
void describe_dimensions(V& v, ModelConfig& c) {
  v.field("depth", c.depth, between(0, 10000),
          "Shorthand for a model's size: sets n_layer to this and n_embd to depth * aspect_ratio, rounded up to a "
          "multiple of head_dim. 0: unset, n_layer and n_embd say it themselves.",
          "M1");
  v.field("aspect_ratio", c.aspect_ratio, between(1, 65536),
          "Width per layer of the depth shorthand; without depth it does nothing.", "M1");
  v.field("n_layer", c.n_layer, between(1, 10000), "Transformer blocks. Cost and parameters grow in proportion.", "M1");
  v.field("n_embd", c.n_embd, between(1, 1048576),
          "Width D of the residual stream. Parameters grow with its square. A multiple of head_dim, unless n_head is "
          "given.",
          "M1");
  v.field("head_dim", c.head_dim, between(2, 65536),
          "Width of one attention head; even, because rotary embeddings turn pairs of channels. If only n_head is "
          "given, n_embd / n_head.",
          "M1");
  v.field("n_head", c.n_head, between(0, 65536), "Query heads. 0: n_embd / head_dim.", "M1");
  v.field("n_kv_head", c.n_kv_head, between(0, 65536),
          "Key and value heads (grouped-query attention): query head h reads kv head h * n_kv_head / n_head, rounded "
          "down. Fewer make the KV cache and its projections smaller. Divides n_head. 0: n_head, plain attention.",
          "M1; Ainslie et al. 2023 (GQA)");
  v.field("seq_len", c.seq_len, between(1, 16777216),
          "Tokens of one training window, and the longest context. Attention's cost a token grows with it.", "M1");
  static const std::string vocabulary = format(
      "Tokens the tokenizer knows; rows of embedding and head. At least %d for a tokenizer trained here, whose "
      "byte pieces alone take 256. Shards are uint16 up to 65536 and uint32 beyond.",
      kFewestPieces);
  v.field("vocab_size", c.vocab_size, between(2, 2147483647), vocabulary.c_str(), "M1");
}

template <class V>
void describe_blocks(V& v, ModelConfig& c) {
  v.field("mlp", c.mlp, one_of({"relu2", "swiglu", "gelu", "geglu"}),
          "Activation of dense MLPs and of experts alike, without biases. relu2: W2 max(W1 x, 0)^2; gelu: W2 gelu(W1 "
          "x); swiglu: Wd (silu(Wg x) * Wu x); geglu: the same with gelu. The gated two have three matrices, not two.",
          "M2; So et al. 2021 (relu2), Shazeer 2020 (GLU variants)");
  v.field("ffn_hidden", c.ffn_hidden, between(0, 16777216), "Hidden width of the dense MLP. 0: 4 * n_embd.", "M2");
  v.field("norm_weight", c.norm_weight, any(),
          "Whether each RMSNorm has learned weights (Llama family) or none (nanochat family).",
          "M3; Zhang, Sennrich 2019 (RMSNorm)");
  v.field("norm_eps", c.norm_eps, positive(), "Added to the mean square under RMSNorm's root.", "M3");
  v.field("embed_norm", c.embed_norm, any(), "RMSNorm right after the token embedding (nanochat family).", "M9");
  v.field("tie_head", c.tie_head, any(),
          "One matrix for embedding and head: saves vocab_size * n_embd parameters. It trains in the embedding's "
          "group, with the embedding's rate and initial values.",
          "M5; Press, Wolf 2017");
  v.field("logit_softcap", c.logit_softcap, at_least(0),
          "The head's logits become cap * tanh(logits / cap): keeps them in (-cap, cap). 0: none.",
          "M5; Gemma 2, 2024");
  v.field(
      "dropout", c.dropout, from_up_to(0, 1),
      "Share of the attention's and MLP's outputs zeroed in training, the rest scaled up. 0 is usual in pre-training.",
      "M6");
  v.field(
      "block", c.block, one_of({"sequential", "parallel"}),
      "sequential: x += attention(norm(x)), then x += mlp(norm(x)). parallel: both read the same x and their sum is "
      "added.",
      "M7; Wang, Komatsuzaki 2021 (GPT-J)");
  v.field("init", c.init, one_of({"nanochat", "llama"}),
          "Initial values. nanochat: embedding N(0,1), head N(0, 0.001^2), first matrices uniform with bound sqrt(3 / "
          "n_embd), output matrices 0. llama: all N(0, init_std^2), residual outputs scaled by 1 / sqrt(2 n_layer), "
          "norm weights 1.",
          "M9");
  v.field("init_std", c.init_std, positive(), "Standard deviation of init = llama; nothing else reads it.", "M9");
}

template <class V>
void describe_attention(V& v, ModelConfig& c) {
  v.field("rope_theta", c.rope_theta, positive(),
          "Base of the rotary position embedding. Larger values turn slower: for longer contexts.",
          "M4; Su et al. 2021 (RoPE)");
  v.field("qk_norm", c.qk_norm, any(),
          "RMSNorm of queries and keys a head, before the rotary embedding: bounds the attention logits.",
          "M4; Henry et al. 2020, Qwen3");
  v.field("qk_norm_weight", c.qk_norm_weight, any(),
          "Learned weights in the norms of q and k, as Qwen3 has. Needs qk_norm.", "M4");
  v.field("window_pattern", c.window_pattern, letters("SL"),
          "A letter a layer, repeated over the layers: S sees the last seq_len / 2 tokens, L all. The last layer is "
          "always L. \"SSSL\" costs less attention than \"L\".",
          "M4; Beltagy et al. 2020 (sliding window)");
  v.field("value_embeds", c.value_embeds, any(),
          "On alternate layers, the last included, a second embedding table of the token is added to v through a gate: "
          "many parameters (a vocab_size row each) at almost no FLOPs.",
          "M5; Zhou et al. 2024 (value residual)");
  v.field("value_gate_channels", c.value_gate_channels, between(1, 1048576),
          "The value embedding's gate of a kv head is 2 sigmoid of a linear map of the first so many channels of the "
          "block's input; starts at factor 1. At most n_embd.",
          "M5");
  v.field("resid_scalars", c.resid_scalars, any(),
          "Two learned scalars a layer: the block's input becomes r x + q x0, with x0 the normed embedding; r = 1 and "
          "q = 0.1 at the start.",
          "M5");
}

template <class V>
void describe(V& v, InlConfig& c) {
  v.field("enabled", c.enabled, any(),
          "Second-order dynamics after each block: a velocity, carried from block to block, pulls the stream towards a "
          "learned mean mu. v' = alpha v - beta (h - mu), h' = h + dt gamma v'.",
          "M8");
  v.field("mode", c.mode, one_of({"adaptive", "lite"}),
          "adaptive: a small network of (h, v) gives alpha, beta and gamma for each token and channel. lite: they stay "
          "at their initial values, and only mu is learned.",
          "M8");
  v.field("shared", c.shared, any(), "One module for all blocks, or one a block.", "M8");
  v.field("dt", c.dt, positive(), "Step of the dynamics; dt * beta_max of at most 2 is always stable.", "M8");
  v.field("beta_max", c.beta_max, positive(), "Bound on beta, the pull towards mu.", "M8");
  v.field("velocity_max", c.velocity_max, positive(), "Bound on each channel of the velocity.", "M8");
  v.field("init_alpha", c.init_alpha, between(0, 1),
          "Initial alpha, the share of the velocity that stays; inside 0 to 1.", "M8");
  v.field("init_beta", c.init_beta, positive(), "Initial beta, below beta_max.", "M8");
  v.field("init_gate", c.init_gate, between(0, 1),
          "Initial gamma, how much of the velocity moves the stream; inside 0 to 1.", "M8");
  v.field("controller_hidden", c.controller_hidden, between(1, 65536), "Hidden width of the adaptive mode's network.",
          "M8");
  v.field("mu_min", c.mu_min, any(), "Lower bound on mu. With mu_max, both 0: mu is free.", "M8");
  v.field("mu_max", c.mu_max, any(), "Upper bound on mu.", "M8");
  v.field("carry_velocity", c.carry_velocity, any(),
          "Refused: to start from the last step's velocity needs text that is read in order.", "M8");
}

template <class V>
void describe(V& v, ModelConfig& c) {
  describe_dimensions(v, c);
  describe_blocks(v, c);
  describe_attention(v, c);
  v.group("inl", c.inl, "second-order dynamics after each block");
}

}  // namespace switchyard
