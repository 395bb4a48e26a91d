// The trainer's own part of a checkpoint: everything besides weights and optimizer tensors (moe_spec 4.3).
#pragma once

#include <cstdint>
#include <string>

#include "data/loader.h"
#include "train/collapse_watch.h"
#include "train/metrics.h"

namespace switchyard {

struct RunState {
  std::int64_t step = 0;  // the next step to run = attempted steps
  std::int64_t applied_steps = 0, skipped_steps = 0, skipped_in_a_row = 0;
  std::int64_t resets = 0;  // of the routers (moe_spec R13)
  std::int64_t tokens = 0;  // seen, over all ranks
  LoaderState loader;
  std::int64_t seed = 0;  // random numbers are drawn from counters: the seed is their whole state
  SmoothedLoss smoothed;
  bool misses_evaluation = false;  // the one due at this step was cut short by a stop signal: a resume makes it
  double best_held_out_loss = 0;   // 0: none yet
  double first_bits_per_byte = 0;  // before the first step, for the final table
  std::int64_t world_size = 1;     // of the run that wrote it
  double elapsed_s = 0;
  CollapseState collapse;  // what has been warned of

  std::string to_json() const;
  static RunState from_json(const std::string& text);  // RunError names the missing field
};

}  // namespace switchyard
