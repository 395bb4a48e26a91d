// Everything that depends on the step alone: how many there are, and the factors of learning rate, momentum and decay.
// Pure functions; `step` counts attempted steps from 0. The results are written to the device before a step runs.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace switchyard {

// What the accounting says about the model; see model/accounting.h.
struct ModelSize {
  std::int64_t scaling_parameters = 0;  // block matrices + head - inactive experts
  double flops_per_token = 0;
};

// train.steps if set, else the whole steps that train.target_flops pays for, else those that see
// target_param_data_ratio * scaling_parameters tokens; rounded down, at least 1.
// ConfigError when none of the three is set.
std::int64_t resolve_steps(const TrainConfig& train, const ModelSize& size);

// Factor on every learning rate at `step` of `steps`:
//   linear    (step+1)/warmup, then 1, then a line that reaches final_fraction at step = steps, over the last
//             warmdown_fraction of the steps; where warm-up and warm-down overlap the smaller counts
//   cosine    the same warm-up, then half a cosine from 1 to final_fraction
//   constant  the same warm-up, then 1
double learning_rate_factor(const ScheduleConfig& schedule, std::int64_t step, std::int64_t steps);

// From momentum_start to momentum_end in a line over momentum_warmup_steps.
double muon_momentum(const MuonConfig& muon, std::int64_t step);

// Factor on Muon's weight decay: from 1 at step 0 in a line to 0 at step = steps.
double weight_decay_factor(std::int64_t step, std::int64_t steps);

}  // namespace switchyard
