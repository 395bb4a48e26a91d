#include "model/memory_estimate.h"

#include <algorithm>

#include "base/text.h"
#include "kernels/attention_backward.h"
#include "kernels/grouped_gemm.h"
#include "model/accounting.h"
#include "model/layer_rules.h"
#include "model/linear_layers.h"
#include "ops/cudnn_attention.h"
#include "ops/head_chunk.h"

namespace switchyard {
namespace {

std::int64_t compute_bytes(const Config& config) { return config.precision.mode == "fp32" ? 4 : 2; }
std::int64_t micro_tokens(const Config& config) {
  return std::int64_t{config.train.micro_batch} * config.model.seq_len;
}

// Elements of the compute type that one fp32 value takes.
std::int64_t words(const Config& config) { return 4 / compute_bytes(config); }
bool recomputes_blocks(const Config& config) { return config.train.recompute == "block"; }
// At most: a warm-up that averages runs all.
int experts_of_a_token(const Config& config) {
  return averages_experts(config.moe, 0) ? config.moe.n_experts : config.router.top_k;
}

// Activations that are part of the products: 16-bit, on a Hopper GPU, which any GPU is taken for here.
bool fuses_activation(const Config& config) {
  return (config.model.mlp == "relu2" || config.model.mlp == "swiglu") && config.precision.mode == "bf16" &&
         config.device != "cpu";
}
// Of a dense MLP's hidden units: the pre-activation, two when gated, and the activation; relu^2's tells the former.
std::int64_t dense_hidden(const Config& config) {
  if (fuses_activation(config) && config.model.mlp == "relu2") return 1;
  return is_gated(config.model.mlp) ? 3 : 2;
}
// Experts' products leave the rows that they gathered for backward, where experts are wide, and SwiGLU its result
// beside what it is made of.
bool in_products(const Config& config) {
  return fuses_activation(config) && config.moe.backend != "reference" && config.moe.expert_hidden_dropout == 0;
}
bool keeps_rows_of_dy(const Config& config) {
  return in_products(config) && expert_width(config) > kernels::kMostUnitsToGather;
}
bool keeps_rows_of_x(const Config& config) {
  const std::int64_t units = (is_gated(config.model.mlp) ? 2 : 1) * std::int64_t{expert_width(config)};
  return in_products(config) && units > kernels::kMostUnitsToGather;
}
bool keeps_activation(const Config& config) { return config.model.mlp == "swiglu" && in_products(config); }

std::int64_t copy_bytes(const Config& config, const Accounting& size) {
  if (config.precision.mode == "fp32") return 0;
  std::int64_t bytes = 2 * size.total;
  if (config.precision.mode == "fp8") {
    const std::vector<LinearLayer> layers = linear_layers(config);
    const Fp8Report report = decide_fp8(layers, config.precision);
    for (const Fp8Decision& decision : report.decisions) {
      // rows of an expert stack are those of one expert
      const LinearLayer& layer = decision.layer;
      const bool stack = layer.name.find(".experts.") != std::string::npos;
      if (decision.converts) bytes += layer.rows * layer.cols * (stack ? expert_stack(config.moe) : 1);
    }
  }
  return bytes;
}

// Muon keeps one momentum, AdamW two moments; ranks share the state when it is sharded.
std::int64_t optimizer_bytes(const Config& config, const Accounting& size, int world_size) {
  std::int64_t muon = 0;
  if (config.optim.matrix_optimizer == "muon") {
    for (const PartKind kind : {PartKind::kAttention, PartKind::kExperts, PartKind::kSharedExperts, PartKind::kDenseMlp,
                                PartKind::kInlControllers}) {
      muon += size.part(kind).total;
    }
    if (config.optim.router_optimizer == "muon") muon += size.part(PartKind::kRouter).total;
  }
  const std::int64_t bytes = 4 * muon + 8 * (size.total - muon);
  return config.parallel.shard_optimizer ? (bytes + world_size - 1) / world_size : bytes;
}

// What a block that is computed again keeps: x and delta, the velocity with INL (which leaves no delta), and the value
// embedding.
std::int64_t block_input_elements(const Config& config, int layer) {
  const ModelConfig& model = config.model;
  const std::int64_t value = has_value_embedding(model, layer) ? kv_width(model) : 0;
  if (layer == 0) return value;  // its x is x0
  return (model.inl.enabled ? 1 + words(config) : 2) * model.n_embd + value;
}

// Beside the layers: the embedding before its norm (which keeps its input), x0, the last residual, and the head's
// gradient of its input, taken in forward.
std::int64_t activation_bytes(const Config& config) {
  std::int64_t elements = (config.model.embed_norm ? 4 : 3) * std::int64_t{config.model.n_embd};
  for (int layer = 0; layer < config.model.n_layer; ++layer)
    elements +=
        recomputes_blocks(config) ? block_input_elements(config, layer) : activation_elements_per_token(config, layer);
  return micro_tokens(config) * elements * compute_bytes(config);
}

// What a feed-forward's backward has at once, for one of its rows: the gradient of the activation and of the
// pre-activation; with experts also the rows of dy, the weighted activation, and the gathered x or the rows of dx (of
// narrow experts in the products the rows of dx alone), and what is made again of what would be kept. With SwiGLU in
// the products the activation has no gradient of its own. By the experts' turn a flexible FFN has had its own, and let
// go what it kept.
std::int64_t feed_forward_workspace(const Config& config, int layer) {
  const std::int64_t inputs = is_gated(config.model.mlp) ? 2 : 1, width = config.model.n_embd;
  const std::int64_t dense = dense_hidden(config) * ffn_width(config.model);
  if (!is_moe_layer(config, layer)) return dense;
  const bool activated = keeps_activation(config);
  const std::int64_t again = config.train.recompute == "moe" ? inputs + activated : 0;
  const std::int64_t hidden = inputs + (activated ? 0 : 2) + again;
  const std::int64_t rows =
      in_products(config) ? 1 + keeps_rows_of_dy(config) + (again > 0 && keeps_rows_of_x(config)) : 2;
  const std::int64_t experts = experts_of_a_token(config) * (hidden * expert_width(config) + rows * width);
  return config.moe.flexible_ffn ? std::max(dense, experts - dense - 2 * width) : experts;
}

// What attention's backward by cuDNN has at once, with what it borrows for a fixed order of its sums. Without that its
// turn, by which the feed-forward has let go what it kept, is the smaller one; so is our own kernel's, which borrows
// nothing for it.
std::int64_t ordered_attention_workspace(const Config& config) {
  const ModelConfig& model = config.model;
  if (!config.train.deterministic || config.precision.mode == "fp32" || config.device == "cpu") return 0;
  if (kernels::attention_backward_takes_shape(model.seq_len, head_count(model), kv_head_count(model), model.head_dim))
    return 0;
  const std::int64_t scores = std::int64_t{head_count(config.model)} * config.model.seq_len;
  if (micro_tokens(config) * scores * 2 > ops::kMostOrderedAttentionBytes) return 0;
  return scores + 2 * (q_width(config.model) + kv_width(config.model));
}

// A block's turn. One that is computed again brings all that it keeps; by then the head's input and its gradient have
// gone, of the stream's gradients one is made, and a dense MLP lets its activation go before its last gradient.
std::int64_t block_workspace(const Config& config, int layer) {
  const std::int64_t feed_forward =
      std::max(feed_forward_workspace(config, layer), ordered_attention_workspace(config));
  if (!recomputes_blocks(config)) return feed_forward;
  const std::int64_t gone =
      4 * std::int64_t{config.model.n_embd} + (is_moe_layer(config, layer) ? 0 : ffn_width(config.model));
  return activation_elements_per_token(config, layer) + std::max<std::int64_t>(0, feed_forward - gone);
}

// The head's turn or a block's, and with either the residual stream's gradients: of x, of x0 and of n, with INL of its
// fp32 velocity; ops add to them in place.
std::int64_t workspace_bytes(const Config& config) {
  const std::int64_t tokens = micro_tokens(config), bytes = compute_bytes(config), width = config.model.n_embd;
  const std::int64_t chunk = std::min(tokens, ops::head_chunk_tokens(config.model.vocab_size, bytes));
  const std::int64_t head = chunk * config.model.vocab_size * bytes;
  std::int64_t block = 0;
  for (int layer = 0; layer < config.model.n_layer; ++layer) block = std::max(block, block_workspace(config, layer));
  const std::int64_t stream = (3 + (config.model.inl.enabled ? words(config) : 0)) * width;
  return std::max(head, tokens * block * bytes) + tokens * stream * bytes;
}

}  // namespace

// attention     q, k, v, its output, a fp32 log-sum a head and 1/rms a head of q and k; value embedding and gate where
//               the layer has them; with weights on the norms of q and k also what they multiply and what came before
// residual      x' and its norm n, after attention and after the feed-forward, a fp32 1/rms with each
// dense mlp     the pre-activation (two when gated) and the activation, or the latter alone (relu^2 in the products)
// MoE           of the top_k rows the pre-activation, or the activation where it tells the other, or both (SwiGLU in
//               the products), and the gathered x where products leave it, instead of the norm n; nothing with
//               train.recompute = moe. The experts' output is never kept. Router: fp32 logits of every expert; expert,
//               weight, row and token of each assignment; a semantic router's projection, before and after its norm,
//               and its cosines. Shared experts and a flexible FFN as a dense mlp, and with the latter both outputs,
//               for their share's gradient
// INL           h, the fp32 velocity, and the controller's hidden layer in fp32
// A parallel block has one x', and without weights one norm.
std::int64_t activation_elements_per_token(const Config& config, int layer) {
  const ModelConfig& model = config.model;
  const std::int64_t words = switchyard::words(config), width = model.n_embd;
  const std::int64_t inputs = is_gated(model.mlp) ? 2 : 1;
  const std::int64_t qkv = q_width(model) + 2 * kv_width(model);
  std::int64_t elements = qkv + q_width(model) + head_count(model) * words;
  if (model.qk_norm) elements += (head_count(model) + kv_head_count(model)) * words;
  if (has_value_embedding(model, layer)) elements += kv_width(model) + kv_head_count(model);
  if (model.qk_norm && model.qk_norm_weight) elements += qkv + q_width(model) + kv_width(model);
  const std::int64_t norms = model.block == "parallel" && !model.norm_weight ? 1 : 2;
  elements += ((model.block == "parallel" ? 1 : 2) + norms) * width + norms * words;
  if (model.inl.enabled) elements += (1 + words) * width;
  if (model.inl.enabled && model.inl.mode == "adaptive") elements += model.inl.controller_hidden * words;
  if (!is_moe_layer(config, layer)) return elements + dense_hidden(config) * ffn_width(model);
  if (config.moe.flexible_ffn) elements += dense_hidden(config) * ffn_width(model) + 2 * width;
  if (config.train.recompute != "moe") {
    const int rows = experts_of_a_token(config);
    elements += rows * (inputs + keeps_activation(config)) * expert_width(config);
    if (keeps_rows_of_x(config)) elements += (rows - 1) * width;
  }
  elements += dense_hidden(config) * shared_width(config);
  elements += (router_columns(config.moe) + 4 * config.router.top_k) * words;
  if (const int semantic = semantic_width(config)) elements += (2 * semantic + router_columns(config.moe)) * words;
  return elements;
}

MemoryEstimate estimate_memory(const Config& config, int world_size) {
  const Accounting size = account(config);
  MemoryEstimate estimate;
  estimate.weights = 4 * size.total;
  estimate.compute_copies = copy_bytes(config, size);
  estimate.gradients = 4 * size.total;
  estimate.optimizer = optimizer_bytes(config, size, std::max(1, world_size));
  estimate.activations = activation_bytes(config);
  estimate.workspace = workspace_bytes(config);
  return estimate;
}

std::string memory_table(const MemoryEstimate& estimate) {
  const auto line = [](const char* name, std::int64_t bytes) {
    return format("  %-18s %12s\n", name, human_bytes(static_cast<double>(bytes)).c_str());
  };
  return "memory a rank, estimated\n" + line("weights", estimate.weights) +
         line("compute copies", estimate.compute_copies) + line("gradients", estimate.gradients) +
         line("optimizer", estimate.optimizer) + line("activations", estimate.activations) +
         line("workspace", estimate.workspace) + line("all", estimate.total());
}

std::string memory_advice(const Config& config, const MemoryEstimate& estimate) {
  return format(
      "training needs about %s a rank; lower train.micro_batch = %d or model.seq_len = %d (activations %s), "
      "model.n_layer = %d or model.n_embd = %d (weights, gradients and optimizer %s)",
      human_bytes(static_cast<double>(estimate.total())).c_str(), config.train.micro_batch, config.model.seq_len,
      human_bytes(static_cast<double>(estimate.activations)).c_str(), config.model.n_layer, config.model.n_embd,
      human_bytes(static_cast<double>(estimate.weights + estimate.gradients + estimate.optimizer)).c_str());
}

}  // namespace switchyard
