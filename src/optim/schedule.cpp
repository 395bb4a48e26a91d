#include "optim/schedule.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr double kPi = 3.14159265358979323846;

double warmup_factor(const ScheduleConfig& schedule, std::int64_t step) {
  if (step >= schedule.warmup_steps) return 1;
  return static_cast<double>(step + 1) / schedule.warmup_steps;
}

double warmdown_factor(const ScheduleConfig& schedule, std::int64_t step, std::int64_t steps) {
  const double length = std::round(schedule.warmdown_fraction * static_cast<double>(steps));
  const double left = static_cast<double>(steps - step);
  if (left >= length) return 1;
  const double height = std::max(0.0, left) / length;
  return height + (1 - height) * schedule.final_fraction;
}

double cosine_factor(const ScheduleConfig& schedule, std::int64_t step, std::int64_t steps) {
  const double length = static_cast<double>(std::max<std::int64_t>(1, steps - schedule.warmup_steps));
  const double done = std::clamp(static_cast<double>(step - schedule.warmup_steps) / length, 0.0, 1.0);
  return schedule.final_fraction + (1 - schedule.final_fraction) * 0.5 * (1 + std::cos(kPi * done));
}

}  // namespace

std::int64_t resolve_steps(const TrainConfig& train, const ModelSize& size) {
  if (train.steps > 0) return train.steps;
  double tokens = 0;
  if (train.target_flops > 0) {
    SWITCHYARD_ASSERT(size.flops_per_token > 0, "the accounting gives FLOPs per token");
    tokens = train.target_flops / size.flops_per_token;
  } else if (train.target_param_data_ratio > 0) {
    tokens = train.target_param_data_ratio * static_cast<double>(size.scaling_parameters);
  } else {
    throw ConfigError(
        format("train.steps = %d, train.target_flops = %g and train.target_param_data_ratio = %g: set one "
               "of them above 0",
               train.steps, train.target_flops, train.target_param_data_ratio));
  }
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(tokens / static_cast<double>(train.batch_tokens)));
}

double learning_rate_factor(const ScheduleConfig& schedule, std::int64_t step, std::int64_t steps) {
  const double warmup = warmup_factor(schedule, step);
  if (schedule.shape == "constant") return warmup;
  if (schedule.shape == "cosine") return std::min(warmup, cosine_factor(schedule, step, steps));
  return std::min(warmup, warmdown_factor(schedule, step, steps));
}

double muon_momentum(const MuonConfig& muon, std::int64_t step) {
  if (step >= muon.momentum_warmup_steps) return muon.momentum_end;
  const double done = static_cast<double>(step) / muon.momentum_warmup_steps;
  return (1 - done) * muon.momentum_start + done * muon.momentum_end;
}

double weight_decay_factor(std::int64_t step, std::int64_t steps) {
  return std::max(0.0, 1 - static_cast<double>(step) / static_cast<double>(std::max<std::int64_t>(1, steps)));
}

}  // namespace switchyard
