// What the trainer reads from the device at log time, and what it says at the end.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "model/accounting.h"
#include "optim/schedule.h"
#include "train/generate.h"
#include "train/trainer.h"

namespace switchyard {

void Trainer::tell_fp8() {
  const Fp8Report& report = precision_.report();
  if (report.decisions.empty() || !world_.is_main()) return;
  log::info(fp8_table(report));
  for (const std::string& warning : report.warnings) log::warn(warning);
  write_file_atomic(folder_ + "/fp8_layers.txt", fp8_table(report, /*every_layer=*/true));
}

StepMetrics Trainer::read_interval(std::int64_t step) {
  StepMetrics m;
  Control& control = world_.control();
  IntervalSums& interval = step_->interval();
  const auto steps = static_cast<double>(std::max<std::int64_t>(1, interval.steps));
  m.step = step;
  m.steps = steps_;
  m.tokens = state_.tokens;
  m.loss = interval.loss.item<double>() / steps;  // waits for the device
  m.grad_norm = scalars_->grad_norm.item<double>();
  m.skipped_nonfinite = scalars_->skipped.item<std::int64_t>();
  state_.skipped_in_a_row = scalars_->skipped_in_a_row.item<std::int64_t>();
  const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - interval_start_).count();
  const auto interval_steps = static_cast<double>(step - interval_start_step_);
  const StepTimer::Parts parts = timer_.last_step();
  m.forward_backward_ms = parts.forward_backward_ms;
  m.optimizer_ms = parts.optimizer_ms;
  m.seconds_per_step = elapsed / std::max(1.0, interval_steps);
  clock_.add(elapsed, step - interval_start_step_);
  m.tokens_per_s = static_cast<double>(config_.train.batch_tokens) / m.seconds_per_step;
  const double flops = averages_experts(config_.moe, step - 1) ? averaging_flops_per_token_ : flops_per_token_;
  m.mfu = model_flops_utilisation(m.tokens_per_s, flops, device_.peak_tflops, world_.size());
  m.memory_bytes = control.max(peak_memory_bytes(device_.index()));
  m.lr_factor = learning_rate_factor(config_.optim.schedule, step - 1, steps_);
  m.lr = m.lr_factor * (config_.optim.matrix_optimizer == "muon" ? config_.optim.muon.lr : config_.optim.matrix_lr);
  m.eta_s = clock_.eta_s(steps_ - step);
  state_.elapsed_s += elapsed;
  m.elapsed_s = state_.elapsed_s;
  m.smoothed_loss = std::isfinite(m.loss) ? state_.smoothed.add(m.loss) : state_.smoothed.value();
  interval.loss.zero_();
  interval.steps = 0;
  return m;
}

void Trainer::report(std::int64_t step) {
  StepMetrics m = read_interval(step);
  reported_loss_ = m.loss;
  const std::int64_t steps = step - interval_start_step_;
  const RoutingInterval routing = routing_->read(step, steps * micro_batches_ * world_.size());
  if (!routing.layers.empty()) {
    m.moe_layers = model_->sparse_layers();
    m.balance_loss = routing.balance_loss;
    m.balance_per_layer =
        m.balance_loss / m.moe_layers / (config_.router.balance_topk_normalize ? 1 : config_.router.top_k);
    m.z_loss = routing.z_loss;
    m.seq_balance_loss = routing.seq_balance_loss;
    if (config_.router.reset_interval > 0) m.resets = state_.resets;
    m.imbalance = 0, m.entropy = 0;
    for (const LayerRouting& layer : routing.layers) {
      m.imbalance = std::max(m.imbalance, imbalance(layer.count_E));
      m.dead_experts += dead_experts(layer);
      m.entropy += layer.entropy / static_cast<double>(routing.layers.size());
    }
  }
  for (const auto& sink : sinks_) {
    sink->step(m);
    if (!routing.layers.empty()) sink->routing(step, routing.layers);
  }
  for (const std::string& warning : collapse_.look(routing.layers, steps))
    if (world_.is_main()) log::warn(warning);
  report_activations(step);
  interval_start_ = std::chrono::steady_clock::now();
  interval_start_step_ = step;
  stop_if_nonfinite(m);
}

void Trainer::show_progress(std::int64_t step) {
  StepMetrics m;
  m.step = step;
  m.steps = steps_;
  m.loss = reported_loss_;
  m.eta_s = clock_.eta_s(steps_ - step);
  for (const auto& sink : sinks_) sink->progress(m);
}

void Trainer::report_activations(std::int64_t step) {
  if (!watch_) return;
  if (world_.is_main())
    log::info(format("step %lld  root mean squares\n", static_cast<long long>(step)) + norms_table(watch_->norms()));
  const NamedTensors tensors = watch_->take_tensors();
  if (tensors.empty() || !world_.is_main()) return;
  const std::string folder = folder_ + "/debug";
  std::filesystem::create_directories(folder);
  write_safetensors(format("%s/step-%08lld.safetensors", folder.c_str(), static_cast<long long>(step)), tensors);
}

std::string Trainer::find_nonfinite() {
  std::string where;
  if (watch_) where = watch_->first_nonfinite(world_.control());
  if (watch_) return where.empty() ? "every layer's values are finite: look at the gradients" : "first in " + where;
  // The weights are still those of the step that was skipped.
  ActivationWatch again(config_.model.n_layer, device_.device);
  step_->look_again(again.watcher());
  where = again.first_nonfinite(world_.control());
  return where.empty() ? "not seen in another pass of its last micro-batch; --train.debug stats watches all"
                       : "first in " + where;
}

void Trainer::stop_if_nonfinite(const StepMetrics& m) {
  if (state_.skipped_in_a_row == 0) {
    const std::string where = watch_ ? watch_->first_nonfinite(world_.control()) : "";
    if (!where.empty() && world_.is_main())
      log::warn(
          format("step %lld: values that are not finite since the last line, first in %s; %lld updates skipped "
                 "so far",
                 static_cast<long long>(m.step), where.c_str(), static_cast<long long>(m.skipped_nonfinite)));
    return;
  }
  log::warn(format("step %lld: loss or gradient is not finite; %lld updates skipped so far, %lld in a row; %s",
                   static_cast<long long>(m.step), static_cast<long long>(m.skipped_nonfinite),
                   static_cast<long long>(state_.skipped_in_a_row), find_nonfinite().c_str()));
  if (state_.skipped_in_a_row < config_.train.nonfinite_limit) return;
  save(m.step);  // the weights are those of the last good step
  throw RunError(format(
      "train.nonfinite_limit = %d steps in a row had a loss or gradient that is not finite; the last good weights "
      "are saved. Lower the learning rates or use precision.mode fp32, then --resume",
      config_.train.nonfinite_limit));
}

int Trainer::nothing_left() const {
  log::info(format("nothing left to do: %s is at step %lld of %lld; a larger train.steps continues it", folder_.c_str(),
                   static_cast<long long>(state_.step), static_cast<long long>(steps_)));
  return 0;
}

void Trainer::final_report(bool finished) {
  if (!world_.is_main()) return;
  if (!finished) {
    const char* next = state_.step == 0        ? "nothing to save yet"
                       : state_.step == steps_ ? "before its last evaluation; --resume makes it"
                                               : "continue with --resume";
    return log::info(format("stopped at step %lld of %lld; %s", static_cast<long long>(state_.step),
                            static_cast<long long>(steps_), next));
  }
  if (last_evaluation_.count_LE.defined())
    log::info("expert usage on held-out text:\n" + routing_table(layers_of(config_, last_evaluation_.count_LE)));
  sample_now(state_.step);
  const std::string trained = format("%lld steps (%s tokens in %s)", static_cast<long long>(state_.step),
                                     with_commas(state_.tokens).c_str(), human_duration(state_.elapsed_s).c_str());
  if (!held_out_) return log::info("trained " + trained);
  log::info(format("held-out bits per byte: %.4f before, %.4f after %s", state_.first_bits_per_byte,
                   last_evaluation_.bits_per_byte, trained.c_str()));
}

}  // namespace switchyard
