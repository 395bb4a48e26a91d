// How many parameters, FLOPs and bytes a config makes, before anything is built. No torch: --dry-run needs nothing
// else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"

namespace switchyard {

enum class PartKind {
  kTokenEmbedding,
  kValueEmbedding,
  kValueGate,
  kAttention,
  kRouter,
  kExperts,
  kSharedExperts,
  kDenseMlp,
  kInlControllers,
  kInlVectors,
  kHead,
  kNorms,
  kScalars
};
std::string part_name(PartKind kind);  // "token embedding", "value embeddings", …

struct Part {
  PartKind kind;
  std::int64_t total = 0;
  std::int64_t active = 0;  // what a token may use: top_k of n_experts experts, everything else
};

struct Accounting {
  std::vector<Part> parts;  // every kind, in the order above; those the model lacks are 0
  std::int64_t total = 0, active = 0, inactive = 0;
  std::int64_t scaling_parameters = 0;  // block matrices + head - inactive: what a token budget is a multiple of
  std::int64_t attention_flops_per_token = 0;
  std::int64_t flops_per_token = 0;            // forward and backward
  std::int64_t averaging_flops_per_token = 0;  // of a step that runs every expert: warmup_mode = dense_average

  const Part& part(PartKind kind) const { return parts[static_cast<std::size_t>(kind)]; }
};

Accounting account(const Config& config);

// Forward and backward FLOPs of one token:
//   6 * scaling_parameters + sum over layers of 12 * n_head * head_dim * min(window, seq_len)
//   + 6 * (n_layer - 1) * the matrices of a shared INL module, which runs after every layer
// A matrix of P active parameters multiplies and adds once a token forward and twice backward: 6 P (Kaplan et al. 2020,
// section 2.1). Attention's two products, QK' and AV, cost 2 * 2 * n_head * head_dim a key forward and twice that
// backward: 12 (PaLM, Chowdhery et al. 2022, appendix B; the masked half counts too, as there). Embedding look-ups,
// norms and scalars count nothing; experts that a token does not visit and null experts count nothing; a tied head
// counts as a matrix.
std::int64_t flops_per_token(const Config& config, std::int64_t scaling_parameters);

// The parameter table with totals, each exact and in millions, and the FLOPs a token.
std::string parameter_table(const Accounting& accounting);

// Model FLOPs utilisation, 0..1: the FLOPs of the tokens seen over what the devices could do. Peaks are bf16's, also in
// fp8. 0 when the peak is unknown (0).
double model_flops_utilisation(double tokens_per_s, double flops_per_token, double peak_tflops_per_device, int devices);

}  // namespace switchyard
