// One optimizer step: micro-batches forward and backward, gradients joined over ranks, guard, update. The same code
// runs eagerly on a CPU and as CUDA graphs on a GPU.
#pragma once

#include "data/loader.h"
#include "model/gpt.h"
#include "optim/optimizer.h"
#include "parallel/data_parallel.h"
#include "train/replay.h"

namespace switchyard {

// Sums since the last read, on the device; the host reads them at log time only.
struct IntervalSums {
  at::Tensor loss;         // fp32 [1]: mean cross entropy of each micro-batch, times loss_scale
  std::int64_t steps = 0;  // optimizer steps in it
};

class TrainStep {
 public:
  // micro_batches: of one step on this rank; loss_scale: 1 / micro-batches of the step over all ranks.
  TrainStep(Gpt& model, DataParallel& parallel, Optimizer& optimizer, StepScalars& scalars, const Config& config,
            at::Device device, std::int64_t micro_batches, bool capture);
  ~TrainStep();

  // Forward and backward of the index-th micro-batch of this rank's step; the last one reduces gradients.
  void micro_batch(const Batch& batch, std::int64_t index);
  // Joins, guards and applies the update, then clears the gradients.
  void update();

  // Every pass from here on is watched; before the first one.
  void watch(Watch watch) { context_.watch = std::move(watch); }
  // The last micro-batch again, forward alone and without dropout or noise, under that watch; counts nothing.
  void look_again(Watch watch);

  IntervalSums& interval() { return interval_; }

 private:
  void forward_backward();
  void apply_update();
  void load(const Batch& batch);

  Gpt& model_;
  DataParallel& parallel_;
  Optimizer& optimizer_;
  StepScalars& scalars_;
  const Config& config_;
  const at::Device device_;
  const std::int64_t micro_batches_;
  StepContext context_;
  std::function<at::Tensor(const at::Tensor&)> sum_counts_;  // of int64 over ranks; empty with one
  at::Tensor tokens_, targets_, windows_;                    // fixed storage: a captured graph reads it
  at::Tensor step_loss_;                                     // fp32 [1]: of this step, for the guard
  IntervalSums interval_;
  std::unique_ptr<Replay> inner_, last_, update_;
};

}  // namespace switchyard
