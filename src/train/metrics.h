// What a step reports, and what follows from it. No torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

struct StepMetrics {
  std::int64_t step = 0, steps = 0;
  std::int64_t tokens = 0;  // seen so far, over all ranks
  double loss = 0;          // cross-entropy, nats a token; no auxiliary loss in it
  double smoothed_loss = 0;
  int moe_layers = 0;            // 0: dense; what follows up to entropy is then left out
  double balance_loss = 0;       // raw, summed over the MoE layers
  double balance_per_layer = 0;  // mean a layer, over top_k: 1 is uniform (Switch loss with f = count/T)
  double z_loss = 0;
  double imbalance = 1;          // worst layer: largest count over mean count
  int dead_experts = 0;          // over all layers, no row since the last log line; with log.routing = layer for
                                 // log.dead_window steps
  double seq_balance_loss = -1;  // raw, summed over the MoE layers; negative: off
  std::int64_t resets = -1;      // of the routers so far; negative: off
  double entropy = 1;            // mean over layers of the routing probabilities' entropy over ln E
  double lr_factor = 0, lr = 0;  // the schedule's factor; the matrix optimizer's rate
  double grad_norm = 0;
  double tokens_per_s = 0;
  double mfu = 0;                 // 0..1; 0: peak unknown
  std::int64_t memory_bytes = 0;  // the largest rank's peak
  double elapsed_s = 0, eta_s = 0;
  std::int64_t skipped_nonfinite = 0;  // steps so far
  double seconds_per_step = 0;
  double forward_backward_ms = 0, optimizer_ms = 0;  // of the last step, on the main rank
};

struct EvalMetrics {
  std::int64_t step = 0;
  double loss = 0;  // nats a token, held out
  double bits_per_byte = 0;
  std::int64_t tokens = 0;
  bool best = false;
  double seconds = 0;
};

std::string console_line(const StepMetrics& metrics);
std::string console_line(const EvalMetrics& metrics);
std::string progress_line(const StepMetrics& metrics);  // step, and loss and eta_s where they are known

// Remaining time from a running mean of the step time, which forgets start-up and slow first steps.
class StepClock {
 public:
  void add(double seconds, std::int64_t steps = 1);
  double seconds_per_step() const { return mean_; }
  double eta_s(std::int64_t steps_left) const { return mean_ * static_cast<double>(steps_left); }

 private:
  double mean_ = 0, weight_ = 0;
};

// Exponential mean with bias correction: the first value counts in full. State is two numbers, kept in checkpoints.
struct SmoothedLoss {
  double sum = 0, weight = 0;
  double add(double loss);  // returns the mean after it; a non-finite loss changes nothing
  double value() const { return weight > 0 ? sum / weight : 0; }
};

}  // namespace switchyard
