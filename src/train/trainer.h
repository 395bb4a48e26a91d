// A whole run: model, optimizer, data and step put together, the loop, what it reports and what it saves.
#pragma once

#include <chrono>

#include "comm/world.h"
#include "config/resolved.h"
#include "data/prefetch.h"
#include "data/prepare.h"
#include "train/activation_watch.h"
#include "train/checkpoint.h"
#include "train/collapse_watch.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/precision_policy.h"
#include "train/profile.h"
#include "train/routing_reader.h"
#include "train/run_state.h"
#include "train/sinks.h"
#include "train/step_timer.h"
#include "train/train_step.h"

namespace switchyard {

class Trainer {
 public:
  // Builds and initialises everything, restores the newest valid checkpoint with train.resume, takes weights from
  // train.init_from. Collective over the ranks of `world`.
  Trainer(const ResolvedConfig& resolved, World& world, const ComputeDevice& device, const PreparedData& data);
  ~Trainer();

  // Trains to the end, or to a stop signal, which evaluation heeds too; saves; reports. Returns the exit code.
  int run();

 private:
  void build_model();
  void tell_fp8();  // which layers convert: the roles into the log, every layer into the run's folder
  void open_text(const PreparedData& data);
  void restore();
  void load_weights_from(const std::string& path);
  void reset_routers(std::int64_t step);
  void train_step(std::int64_t step);
  StepMetrics read_interval(std::int64_t step);  // waits for the device
  void report(std::int64_t step);
  void show_progress(std::int64_t step);  // between reports; loss and speed are the last report's
  bool evaluate_now(std::int64_t step);   // false: a stop was asked for meanwhile, and nothing is known
  void sample_now(std::int64_t step);
  void save(std::int64_t step);
  void stop_if_nonfinite(const StepMetrics& metrics);
  int nothing_left() const;  // the answer to --resume of a run that has done its steps
  void final_report(bool finished);
  void report_activations(std::int64_t step);
  std::string find_nonfinite();  // names the layer, or says where else to look
  bool reports_after(std::int64_t done) const {
    return done == 1 || due(done, config_.train.log_every) || done == steps_;
  }
  bool due(std::int64_t done, int every) const { return every > 0 && done % every == 0; }

  const ResolvedConfig resolved_;
  const Config& config_;
  World& world_;
  const ComputeDevice device_;
  const std::string folder_;
  std::int64_t steps_ = 0, micro_batches_ = 0;  // micro-batches of a step on this rank
  double flops_per_token_ = 0, averaging_flops_per_token_ = 0;

  std::unique_ptr<Collectives> collectives_;  // outlives the graphs in step_
  const PrecisionChoice precision_;
  std::unique_ptr<Gpt> model_;
  std::unique_ptr<DataParallel> parallel_;
  std::unique_ptr<StepScalars> scalars_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<TrainStep> step_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<HeldOut> held_out_;  // null: no text is held out
  std::unique_ptr<Prefetcher> prefetcher_;
  CheckpointFolder checkpoints_;
  std::vector<std::unique_ptr<MetricsSink>> sinks_;
  std::unique_ptr<RoutingReader> routing_;
  std::unique_ptr<ActivationWatch> watch_;  // null: train.debug is off
  CollapseWatch collapse_;

  RunState state_;
  StepClock clock_;
  StepTimer timer_;
  double reported_loss_ = 0;
  Evaluation last_evaluation_;
  std::int64_t evaluated_step_ = -1, saved_step_ = -1, interval_start_step_ = 0;
  std::chrono::steady_clock::time_point started_, interval_start_;
};

}  // namespace switchyard
