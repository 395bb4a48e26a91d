// Every option of the program, with its default. A member's name is its key: config.router.top_k is "router.top_k".
// How each is read, checked, written and explained stands in describe.h; rules that span several in validate.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

struct InlConfig {
  bool enabled = false;
  std::string mode = "adaptive";  // adaptive, lite
  bool shared = true;             // one module for all blocks
  double dt = 0.1;
  double beta_max = 2.0;
  double velocity_max = 10;
  double init_alpha = 0.9;
  double init_beta = 0.1;
  double init_gate = 0.5;
  int controller_hidden = 64;
  double mu_min = 0;  // both 0: mu is not clamped
  double mu_max = 0;
  bool carry_velocity = false;
};

// A tokenizer trained here has at least BOS, unknown, 256 bytes, and some characters.
inline constexpr int kFewestPieces = 320;

struct ModelConfig {
  int depth = 0;  // shorthand: sets n_layer, and n_embd with aspect_ratio (0: unset)
  int aspect_ratio = 64;
  int n_layer = 12;
  int n_embd = 768;
  int head_dim = 64;
  int n_head = 0;     // 0: n_embd / head_dim
  int n_kv_head = 0;  // 0: n_head
  int seq_len = 1024;
  int vocab_size = 32768;
  std::string mlp = "relu2";  // relu2, swiglu, gelu, geglu
  int ffn_hidden = 0;         // 0: 4 * n_embd
  bool norm_weight = false;
  double norm_eps = 1e-6;
  double rope_theta = 10000;
  bool qk_norm = true;
  bool qk_norm_weight = false;
  std::string window_pattern = "L";  // a letter a layer, repeated; S: half of seq_len, L: all; the last layer is L
  bool value_embeds = true;          // on alternate layers, the last included
  int value_gate_channels = 32;
  bool resid_scalars = true;
  double logit_softcap = 15;  // 0: none
  bool tie_head = false;
  bool embed_norm = true;
  double dropout = 0;
  std::string block = "sequential";  // sequential, parallel
  std::string init = "nanochat";     // nanochat, llama
  double init_std = 0.02;            // of init = llama
  InlConfig inl;
};

struct ZeroExpertsConfig {
  int zero = 0;
  int copy = 0;
  int constant = 0;
};

struct MoeConfig {
  bool use_moe = false;
  int moe_freq = 1;
  int first_dense = 0;
  int n_experts = 8;
  int expert_hidden_mult = 4;
  int d_expert = 0;              // 0: expert_hidden_mult * n_embd
  std::string backend = "auto";  // auto, cuda, cpu, reference
  int n_shared_experts = 0;
  int d_shared = 0;                   // 0: the routed experts' width
  std::string init = "uniform";       // uniform, normal
  double init_std = 0.02;             // of init = normal
  std::string aux_injection = "sum";  // sum, autograd
  int segments = 1;
  double capacity_factor = 0;            // 0: dropless
  int expert_capacity = 0;               // rows; 0: from capacity_factor
  int min_expert_capacity = 1;           // rows
  int max_expert_capacity = 0;           // rows; 0: what capacity_factor gives
  int capacity_ramp_steps = 0;           // from min to max; 0: no ramp
  double eval_capacity_factor = 0;       // 0: evaluation drops nothing
  std::string drop_policy = "position";  // position, weight, importance
  std::string overflow = "drop";         // drop, null_expert, reroute
  std::string null_expert = "zero";      // zero, copy, constant, ffn
  int reroute_rounds = 1;
  bool renormalize_after_drop = false;
  std::string token_importance = "none";  // none, norm, learned
  ZeroExpertsConfig zero_experts;
  double zero_expert_tau = 1;
  bool flexible_ffn = false;
  double combine_init = 0.5;
  int warmup_steps = 0;
  std::string warmup_mode = "blend";  // blend, dense_average
  double expert_dropout = 0;
  double expert_hidden_dropout = 0;
};

// n_embd of a model that is given by its depth: a multiple of head_dim.
inline int width_of_depth(const ModelConfig& model) {
  return (model.depth * model.aspect_ratio + model.head_dim - 1) / model.head_dim * model.head_dim;
}
// N of a routed expert.
inline int expert_width(const MoeConfig& moe, const ModelConfig& model) {
  return moe.d_expert ? moe.d_expert : moe.expert_hidden_mult * model.n_embd;
}
// Experts that a router may choose: the routed ones, then the zero experts.
inline int router_columns(const MoeConfig& moe) {
  return moe.n_experts + moe.zero_experts.zero + moe.zero_experts.copy + moe.zero_experts.constant;
}

inline bool has_null_ffn(const MoeConfig& moe) { return moe.overflow == "null_expert" && moe.null_expert == "ffn"; }
// Experts with weights: the routed ones, then the null expert where it has some.
inline int expert_stack(const MoeConfig& moe) { return moe.n_experts + has_null_ffn(moe); }
// Whether step `step` still averages all experts instead of routing (warmup_mode = dense_average).
inline bool averages_experts(const MoeConfig& moe, std::int64_t step) {
  return moe.use_moe && moe.warmup_mode == "dense_average" && step < moe.warmup_steps;
}

struct RouterConfig {
  std::string type = "topk";  // topk, token_id
  int top_k = 2;
  std::string score = "softmax";  // softmax, sigmoid, identity
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  std::string dtype = "fp32";
  std::string init = "zeros";  // zeros, normal, orthogonal
  double init_std = 0.02;
  std::string tie_break = "rotate";    // rotate, lowest_index
  std::string topk_method = "greedy";  // greedy, group_limited_greedy, noaux_tc
  int n_group = 1;
  int topk_group = 1;
  double logit_clip = 0;       // 0: off
  std::string noise = "none";  // none, gumbel, gaussian, jitter
  double noise_scale = 0;      // 0: 1 for gumbel and gaussian, 0.01 for jitter
  bool semantic = false;
  int semantic_dim = 0;  // 0: the smaller of 256 and n_embd
  double semantic_scale_init = 2.0;
  bool force_balanced = false;
  double force_spread = 0;
  std::string balance_loss = "switch";  // switch, cv_squared, cv_squared_topk, none
  double balance_coef = 0.01;
  bool balance_topk_normalize = false;
  std::string balance_scope = "micro";  // micro, sequence, global
  double z_loss_coef = 0;
  double seq_balance_coef = 0;
  int aux_ramp_steps = 0;
  double aux_ramp_start = 0;
  double aux_ramp_end = 1;
  bool bias_balancing = false;
  double bias_update_rate = 0.001;
  int reset_interval = 0;  // 0: never
  double reset_noise = 0.02;
  int reset_until = 0;  // 0: to the end
};

struct MuonConfig {
  double lr = 0.02;
  double momentum_start = 0.85;
  double momentum_end = 0.95;
  int momentum_warmup_steps = 300;
  bool nesterov = true;
  int iterations = 3;
  double weight_decay = 0.2;        // cautious; falls linearly to 0 over the run
  bool variance_reduction = false;  // NorMuon
  double beta2 = 0.95;              // of variance_reduction
};

struct AdamwConfig {
  double embed_lr = 0.3;
  double value_embed_lr = 0.15;
  double head_lr = 0.004;
  double gate_lr = 0.004;
  double scalar_lr = 0.005;  // residual scalars, norm weights
  double x0_lr = 0.5;
  double beta1 = 0.8;
  double x0_beta1 = 0.96;
  double beta2 = 0.95;
  double eps = 1e-10;
  double weight_decay = 0;
  bool scale_lr_with_width = true;  // tables and head: times (n_embd / 768)^-0.5
};

struct ScheduleConfig {
  std::string shape = "linear";  // linear (warm-up, constant, warm-down), cosine, constant
  int warmup_steps = 0;
  double warmdown_fraction = 0.5;  // of all steps
  double final_fraction = 0;       // of the peak rate, at the end
};

struct OptimConfig {
  std::string matrix_optimizer = "muon";  // muon, adamw: for the block matrices
  double matrix_lr = 0.004;               // of matrix_optimizer = adamw
  std::string router_optimizer = "muon";  // muon, adamw
  MuonConfig muon;
  AdamwConfig adamw;
  ScheduleConfig schedule;
  double clip_norm = 0;  // 0: no clipping
};

struct TrainConfig {
  int steps = 0;  // 0: from target_flops, else from target_param_data_ratio
  double target_flops = 0;
  double target_param_data_ratio = 10.5;
  int micro_batch = 16;                // sequences a rank processes at once
  std::int64_t batch_tokens = 524288;  // tokens an optimizer step sees, over all ranks
  std::string cuda_graph = "auto";     // auto, true, false
  bool deterministic = false;
  int log_every = 10;
  int eval_every = 250;  // 0: only at the end
  std::int64_t eval_tokens = 1048576;
  int sample_every = 0;  // 0: only at the end
  std::string sample_prompt = "def ";
  int sample_tokens = 96;
  int checkpoint_every = 0;  // 0: only at the end
  int keep_checkpoints = 2;
  bool resume = false;
  std::string init_from = "";
  std::string out = "";  // run folder; "" : runs/out/<name>
  std::int64_t seed = 1337;
  int nonfinite_limit = 20;        // skipped steps in a row after which the run stops
  int profile_step = 0;            // 0: none
  std::string recompute = "none";  // none, moe, block
  std::string debug = "off";       // off, stats, tensors
};

struct DataConfig {
  std::string corpus = "torch_python";  // torch_python, or paths and globs separated by commas
  std::string tokenizer = "";           // a sentencepiece model; "": trained on the corpus
  std::string cache = "data/cache";
  std::int64_t tokenizer_sample_lines = 200000;
  double holdout_fraction = 0.02;  // of the documents, whole ones
  std::int64_t seed = 1;
};

struct PrecisionConfig {
  std::string mode = "bf16";  // fp32, bf16, fp8
  std::string fp8_recipe = "tensorwise";
  std::string fp8_gradient = "e5m2";  // e5m2, e4m3
  std::vector<std::string> fp8_exclude = {"*experts*"};
  int fp8_min_align = 16;
};

struct ParallelConfig {
  bool shard_optimizer = true;
  bool overlap = true;  // reduce gradients while backward goes on
  double bucket_mib = 64;
  double timeout_s = 45;  // a silent rank is declared dead after this
};

struct LogConfig {
  std::string routing = "summary";  // summary, layer
  int dead_window = 100;            // steps
};

struct Config {
  std::string name = "";  // of the run; "": the file's name
  std::string comment = "";
  std::string device = "auto";  // auto, cpu, cuda
  ModelConfig model;
  MoeConfig moe;
  RouterConfig router;
  OptimConfig optim;
  PrecisionConfig precision;
  ParallelConfig parallel;
  TrainConfig train;
  DataConfig data;
  LogConfig log;
};

}  // namespace switchyard
