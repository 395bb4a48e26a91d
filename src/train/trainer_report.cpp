// What the trainer reads from the device at log time, and what it says at the end.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "model/accounting.h"
#include "optim/schedule.h"
#include "train/generate.h"
#include "train/trainer.h"

namespace switchyard {
namespace {

double normalized_entropy(const float* p, std::int64_t experts) {
  double total = 0, entropy = 0;
  for (std::int64_t e = 0; e < experts; ++e) total += p[e];
  if (total <= 0 || experts < 2) return 1;
  for (std::int64_t e = 0; e < experts; ++e)
    if (p[e] > 0) entropy -= p[e] / total * std::log(p[e] / total);
  return entropy / std::log(static_cast<double>(experts));
}

}  // namespace

std::vector<LayerRouting> Trainer::layer_routing(const RoutingTotals& totals) const {
  const at::Tensor counts = totals.count_LE.cpu().contiguous(), probs = totals.prob_LE.cpu().contiguous();
  const std::int64_t* data = counts.data_ptr<std::int64_t>();
  const auto all = world_.control().sum(std::vector<std::int64_t>(data, data + counts.numel()));
  std::vector<LayerRouting> table = layers_of(config_, at::tensor(all, at::kLong).view(counts.sizes()));
  for (std::size_t layer = 0; layer < table.size(); ++layer)
    table[layer].entropy = normalized_entropy(probs[static_cast<std::int64_t>(layer)].data_ptr<float>(), probs.size(1));
  return table;
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
  std::vector<LayerRouting> routing;
  if (model_->sparse_layers() > 0) {
    RoutingTotals& totals = model_->routing_totals();
    const double passes = static_cast<double>((step - interval_start_step_) * micro_batches_ * world_.size());
    m.moe_layers = model_->sparse_layers();
    m.balance_loss = world_.control().sum(totals.balance_L.sum().item<double>()) / passes;
    m.balance_per_layer =
        m.balance_loss / m.moe_layers / (config_.router.balance_topk_normalize ? 1 : config_.router.top_k);
    m.z_loss = world_.control().sum(totals.z_loss_L.sum().item<double>()) / passes;
    routing = layer_routing(totals);
    m.imbalance = 0, m.entropy = 0;
    for (const LayerRouting& layer : routing) {
      m.imbalance = std::max(m.imbalance, imbalance(layer.count_E));
      m.dead_experts += dead_experts(layer.count_E);
      m.entropy += layer.entropy / static_cast<double>(routing.size());
    }
    totals.zero();
  }
  for (const auto& sink : sinks_) {
    sink->step(m);
    if (!routing.empty()) sink->routing(step, routing);
  }
  interval_start_ = std::chrono::steady_clock::now();
  interval_start_step_ = step;
  stop_if_nonfinite(m);
}

void Trainer::stop_if_nonfinite(const StepMetrics& m) {
  if (state_.skipped_in_a_row == 0) return;
  log::warn(format("step %lld: loss or gradient is not finite; %lld updates skipped so far, %lld in a row",
                   static_cast<long long>(m.step), static_cast<long long>(m.skipped_nonfinite),
                   static_cast<long long>(state_.skipped_in_a_row)));
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
  for (const auto& sink : sinks_) sink->finish();
  if (!world_.is_main()) return;
  if (!finished)
    return log::info(format("stopped at step %lld of %lld; continue with --resume", static_cast<long long>(state_.step),
                            static_cast<long long>(steps_)));
  if (last_evaluation_.count_LE.defined())
    log::info("expert usage on held-out text:\n" + routing_table(layers_of(config_, last_evaluation_.count_LE)));
  sample_now(state_.step);
  log::info(format("held-out bits per byte: %.4f before, %.4f after %lld steps (%s tokens in %s)",
                   state_.first_bits_per_byte, last_evaluation_.bits_per_byte, static_cast<long long>(state_.step),
                   with_commas(state_.tokens).c_str(), human_duration(state_.elapsed_s).c_str()));
}

}  // namespace switchyard
