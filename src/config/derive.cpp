#include "config/derive.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "config/field.h"

namespace switchyard {
namespace {

void derive_zeros(Config& config) {
  ModelConfig& model = config.model;
  MoeConfig& moe = config.moe;
  if (model.n_head == 0) model.n_head = model.n_embd / std::max(1, model.head_dim);
  if (model.n_kv_head == 0) model.n_kv_head = model.n_head;
  if (model.ffn_hidden == 0) model.ffn_hidden = 4 * model.n_embd;
  moe.d_expert = expert_width(moe, model);
  if (moe.d_shared == 0) moe.d_shared = moe.d_expert;
  RouterConfig& router = config.router;
  if (router.noise_scale == 0 && router.noise != "none") router.noise_scale = router.noise == "jitter" ? 0.01 : 1.0;
  if (router.semantic && router.semantic_dim == 0) router.semantic_dim = std::min(256, model.n_embd);
  if (config.train.out.empty()) config.train.out = "runs/out/" + (config.name.empty() ? "run" : config.name);
}

// Untouched defaults that stand against what the user set.
class Yielding {
 public:
  explicit Yielding(ResolvedConfig& resolved) : resolved_(resolved), config_(resolved.config) {}

  void dimensions() {
    const ModelConfig& model = config_.model;
    if (model.depth > 0) {
      if (!set("model.n_layer")) quietly("model.n_layer", std::to_string(model.depth));
      if (!set("model.n_embd")) quietly("model.n_embd", std::to_string(width_of_depth(model)));
    }
    if (set("model.n_head") && model.n_head > 0 && !set("model.head_dim") && model.n_embd % model.n_head == 0)
      yields("model.head_dim", std::to_string(model.n_embd / model.n_head), "model.n_head");
    if (model.value_embeds && !set("model.value_gate_channels") && model.value_gate_channels > model.n_embd)
      yields("model.value_gate_channels", std::to_string(model.n_embd), "model.n_embd");
  }

  void routing() {
    const RouterConfig& router = config_.router;
    if (!set("router.top_k") && router.top_k > config_.moe.n_experts)
      yields("router.top_k", std::to_string(config_.moe.n_experts), "moe.n_experts");
    segments();
    if (router.score == "identity" && !set("router.norm_topk_prob"))
      yields("router.norm_topk_prob", "false", "router.score");
    if (router.type == "token_id" && !set("router.balance_loss")) yields("router.balance_loss", "none", "router.type");
    if (router.type == "token_id" && !set("router.balance_coef")) yields("router.balance_coef", "0", "router.type");
    if (router.semantic && !set("router.init")) {
      yields("router.init", "normal", "router.semantic");
      if (!set("router.init_std")) yields("router.init_std", "0.01", "router.semantic");
    }
    grouping();
    const bool never_spreads = router.balance_loss == "cv_squared" && router.tie_break == "lowest_index";
    if (never_spreads && !set("router.init")) yields("router.init", "normal", "router.tie_break");
  }

  // moe_spec E16: E = m E0 - S, K = m K0 - S, N = N0 / m. Left as they are where that cannot be; validate() says why.
  void segments() {
    const MoeConfig& moe = config_.moe;
    const int m = moe.segments, shared = moe.n_shared_experts, width = expert_width(moe, config_.model);
    const int experts = m * moe.n_experts - shared, top_k = m * config_.router.top_k - shared;
    if (!moe.use_moe || m == 1 || width % m != 0 || top_k < 1) return;
    resolved_.notes.push_back(
        format("moe.segments = %d: moe.n_experts is %d, router.top_k %d, moe.d_expert %d, in place of %d, %d and %d", m,
               experts, top_k, width / m, moe.n_experts, config_.router.top_k, width));
    resolved_.replace("moe.n_experts", std::to_string(experts));
    resolved_.replace("router.top_k", std::to_string(top_k));
    resolved_.replace("moe.d_expert", std::to_string(width / m));
    resolved_.replace("moe.segments", "1");
  }

  // Groups and biases are noaux_tc's; the groups left must hold top_k experts.
  void grouping() {
    const RouterConfig& router = config_.router;
    if (!set("router.topk_method") && router.bias_balancing)
      yields("router.topk_method", "noaux_tc", "router.bias_balancing");
    if (!set("router.topk_method") && router.n_group > 1) yields("router.topk_method", "noaux_tc", "router.n_group");
    const int group = std::max(1, config_.moe.n_experts / std::max(1, router.n_group));
    const int needed = std::min(router.n_group, (router.top_k + group - 1) / group);
    if (!set("router.topk_group") && router.topk_group < needed)
      yields("router.topk_group", std::to_string(needed), "router.n_group");
  }

  void optimizer_and_precision() {
    if (config_.optim.matrix_optimizer == "adamw" && !set("optim.router_optimizer"))
      yields("optim.router_optimizer", "adamw", "optim.matrix_optimizer");
    if (config_.device == "cpu" && !set("precision.mode")) yields("precision.mode", "fp32", "device");
  }

  // A step is a whole number of micro-batches on every rank.
  void batch(int world_size) {
    const std::int64_t a_sequence_each = static_cast<std::int64_t>(world_size) * config_.model.seq_len;
    const std::int64_t unit = a_sequence_each * config_.train.micro_batch;
    const std::int64_t batch = config_.train.batch_tokens;
    if (batch % unit == 0) return;
    if (!set("train.batch_tokens")) {
      const std::int64_t nearest = std::max<std::int64_t>(1, (batch + unit / 2) / unit) * unit;
      yields("train.batch_tokens", std::to_string(nearest),
             set("train.micro_batch") ? "train.micro_batch" : "model.seq_len");
    } else if (!set("train.micro_batch")) {
      int fitting = config_.train.micro_batch;
      while (fitting > 0 && batch % (a_sequence_each * fitting) != 0) --fitting;
      if (fitting > 0) yields("train.micro_batch", std::to_string(fitting), "train.batch_tokens");
    }
  }

 private:
  bool set(const char* key) const { return resolved_.was_set(key); }
  void quietly(const char* key, const std::string& value) { resolved_.set(key, value, Source::kDerived); }
  void yields(const char* key, const std::string& value, const char* because) {
    const std::string before = find_field(key)->text();
    if (before == value) return;
    quietly(key, value);
    std::string cause;
    for (const Field& field : fields_of(config_))
      if (field.key == because) cause = field.key + " = " + field.text();
    resolved_.notes.push_back(
        format("%s: the default %s yields to %s; now %s", key, before.c_str(), cause.c_str(), value.c_str()));
  }

  ResolvedConfig& resolved_;
  const Config& config_;
};

}  // namespace

void derive(Config& config) {
  if (config.model.depth > 0) {
    config.model.n_layer = config.model.depth;
    config.model.n_embd = width_of_depth(config.model);
  }
  derive_zeros(config);
}

void derive(ResolvedConfig& resolved, int world_size) {
  resolved.forget_derived();
  Yielding yielding(resolved);
  yielding.dimensions();
  yielding.routing();
  yielding.optimizer_and_precision();
  if (world_size > 0) yielding.batch(world_size);

  std::vector<std::string> before;
  for (const Field& field : fields_of(resolved.config)) before.push_back(field.text());
  derive_zeros(resolved.config);
  const std::vector<Field> after = fields_of(resolved.config);
  for (std::size_t i = 0; i < after.size(); ++i)
    if (after[i].text() != before[i]) resolved.mark(after[i].key, Source::kDerived);
}

void settle_device(ResolvedConfig& resolved, bool cuda_present) {
  if (resolved.config.device == "auto") {
    resolved.config.device = cuda_present ? "cuda" : "cpu";
    resolved.mark("device", Source::kDerived);
  }
  derive(resolved);
}

}  // namespace switchyard
