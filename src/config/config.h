// Every option of the program, with its default. A member's name is its key: config.router.top_k is "router.top_k".
// How each is read, checked, written and explained stands in describe.h; rules that span several in validate.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

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
  std::string init = "nanochat";  // nanochat, llama
  double init_std = 0.02;         // of init = llama
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
};

struct RouterConfig {
  std::string type = "topk";
  int top_k = 2;
  std::string score = "softmax";  // softmax, sigmoid, identity
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  std::string dtype = "fp32";
  std::string init = "zeros";  // zeros, normal, orthogonal
  double init_std = 0.02;
  std::string tie_break = "rotate";     // rotate, lowest_index
  std::string balance_loss = "switch";  // switch, cv_squared, cv_squared_topk, none
  double balance_coef = 0.01;
  bool balance_topk_normalize = false;
  std::string balance_scope = "micro";  // micro, sequence, global
  double z_loss_coef = 0;
};

struct MuonConfig {
  double lr = 0.02;
  double momentum_start = 0.85;
  double momentum_end = 0.95;
  int momentum_warmup_steps = 300;
  bool nesterov = true;
  int iterations = 5;
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
  int nonfinite_limit = 20;  // skipped steps in a row after which the run stops
  int profile_step = 0;      // 0: none
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
