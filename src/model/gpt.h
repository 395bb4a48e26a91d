// The whole model: embeddings, blocks, head and loss. Two families by config alone: nanochat's (relu2, unweighted
// norms, value embeddings, residual scalars, soft-cap) and Llama's (SwiGLU, weighted norms, grouped-query attention).
#pragma once

#include "config/config.h"
#include "model/block.h"
#include "ops/head_loss.h"
#include "precision/linear.h"

namespace switchyard {

struct ModelOutput {
  at::Tensor total;      // differentiable scalar: loss_scale * (mean cross entropy + weighted auxiliary losses)
  at::Tensor nll_T;      // fp32: each target's negative log-likelihood; 0 for an ignored target (-1)
  at::Tensor auxiliary;  // fp32 scalar, detached: sum of the weighted auxiliary losses; exactly 0 for a dense model
  // Of sparse models, a row a sparse layer (moe_spec T1): assignments of this pass, whole numbers; in training the raw
  // losses by kind, undefined where the config asks for none; in evaluation what each router decided, its logits among
  // it.
  at::Tensor count_LE, balance_L, z_loss_L, seq_balance_L;
  std::vector<Routing> routing;
};

// Sums over the micro-batches since the last reset, on the device. Rows are the sparse layers in order.
struct RoutingTotals {
  at::Tensor count_LE;             // int64: assignments
  at::Tensor prob_LE;              // fp32: sum over tokens of the routing probability
  at::Tensor balance_L, z_loss_L;  // fp32: raw losses, summed over micro-batches
  at::Tensor seq_balance_L;        // the same, with router.seq_balance_coef
  // With log.routing = layer, fp32: the sum of the chosen weights before scale; the mean square of INL's velocity after
  // each block of the model, summed over micro-batches.
  at::Tensor importance_LE, velocity_L;
  void zero();
};

// A tensor that a checkpoint keeps beside weights, and how ranks' values become one.
struct KeptTensor {
  enum class Join { kSame, kSum, kMax };
  std::string name;
  at::Tensor values;
  Join join = Join::kSame;
};

class Gpt : public Layer {
 public:
  Gpt(const Config& config, const PrecisionPolicy& policy = {});

  // After the constructor: `store().allocate(...)` and `store().initialize(...)`, then prepare() on the same device.
  ParameterStore& store() { return store_; }
  void prepare(at::Device device, at::ScalarType activation_dtype);

  // tokens, targets [T] int64, T a multiple of step.seq_len. In training adds this micro-batch to routing_totals().
  // Mean cross entropy is over all T: an ignored target (-1) counts as 0. Training windows have none; evaluation, whose
  // last window does, divides the sum of nll_T by the targets that count.
  ModelOutput forward(const at::Tensor& tokens_T, const at::Tensor& targets_T, const StepContext& step);
  // Soft-capped logits [T, V] fp32 of every position; no gradient.
  at::Tensor logits(const at::Tensor& tokens_T, const StepContext& step);
  // The next step.seq_len tokens of each sequence; returns the logits of each sequence's last [B, V].
  at::Tensor logits_cached(const at::Tensor& tokens_T, StepContext step, KvCache& cache);
  KvCache make_cache(std::int64_t sequences, std::int64_t capacity) const;

  // Attempted steps so far: what the schedules of routers, capacities and warm-ups go by. Between replays of a graph.
  void set_step(std::int64_t step);
  std::int64_t step() const { return host_step_; }
  // After the optimizer's step, applied or not (apply [1]: 1 or 0): biases move (moe_spec R12). sum_over_ranks: of
  // int64 counts; empty with one rank. Nothing is read by the host.
  void finish_step(const at::Tensor& apply, const std::function<at::Tensor(const at::Tensor&)>& sum_over_ranks);
  // Routers start anew (R13): each expert's vector gets initial values and noise, drawn by (seed, name, step) alone, on
  // the same storage; biases 0. Returns whose optimizer state is to be forgotten.
  std::vector<const Parameter*> reset_routers(std::uint64_t seed, std::int64_t step);

  RoutingTotals& routing_totals() { return totals_; }
  RoutingState& routing_state() { return state_; }
  // Rows that an expert takes of a micro-batch of training at that step (moe_spec E6); -1: as many as it gets.
  std::int64_t expert_capacity_at(std::int64_t step) const;
  std::vector<KeptTensor> kept_tensors() const;  // of routing (moe_spec 4.3); none where nothing is on that keeps any
  int sparse_layers() const { return sparse_layers_; }
  const Config& config() const { return config_; }

 private:
  // The normalised output of the last block [T, D]; the routing of each sparse layer is appended to `layers`.
  at::Tensor run_blocks(const at::Tensor& tokens_T, const StepContext& given, KvCache* cache,
                        std::vector<Routing>& layers);
  // Auxiliary losses into `output`, counts into it (evaluation) or into the totals (training).
  void add_routing(std::vector<Routing> layers, const StepContext& step, ModelOutput& output);
  const ops::RotaryTables& tables(const StepContext& step);
  const Parameter& head() const { return head_ ? head_->weight() : *embed_; }

  const Config config_;
  ParameterStore store_;
  Parameter* embed_ = nullptr;
  std::vector<Parameter*> value_embeds_;  // one a block, null where it has none
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<InlDynamics> inl_;  // of all blocks; null: each has its own, or there is none
  ops::Residual final_norm_;
  std::shared_ptr<Linear> head_;  // null: tied to the token embedding
  int sparse_layers_ = 0;
  at::Device device_ = at::kCPU;
  at::ScalarType dtype_ = at::kFloat;
  ops::RotaryTables tables_;
  at::Tensor step_;  // int64 [1], on the device
  std::int64_t host_step_ = 0;
  RoutingTotals totals_;
  RoutingState state_;
};

}  // namespace switchyard
