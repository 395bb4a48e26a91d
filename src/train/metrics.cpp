#include "train/metrics.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace switchyard {
namespace {

// A step counts for this share of the mean, once the mean has settled.
constexpr double kClockShare = 0.1;
constexpr double kLossKeep = 0.9;

std::string rate(double per_second) {
  if (!(per_second < 1e6)) return format("%.2fM", per_second / 1e6);
  return per_second < 1e4 ? format("%.0f", per_second) : format("%.0fk", per_second / 1e3);
}

std::string moe_part(const StepMetrics& m) {
  std::string text = format("  balance %.3f (%.3f a layer)", m.balance_loss, m.balance_per_layer);
  if (m.z_loss > 0) text += format("  z %.3g", m.z_loss);
  return text + format("  load %.2f  dead %d", m.imbalance, m.dead_experts);
}

}  // namespace

std::string console_line(const StepMetrics& m) {
  const int width = static_cast<int>(std::to_string(m.steps).size());
  std::string text = format("step %*lld/%lld  loss %.4f", width, static_cast<long long>(m.step),
                            static_cast<long long>(m.steps), m.loss);
  if (m.moe_layers > 0) text += moe_part(m);
  text += format("  lr %.2e  norm %.3f  %s tok/s", m.lr, m.grad_norm, rate(m.tokens_per_s).c_str());
  if (m.mfu > 0) text += format("  mfu %.1f%%", 100 * m.mfu);
  if (m.memory_bytes > 0) text += "  " + human_bytes(static_cast<double>(m.memory_bytes));
  if (m.skipped_nonfinite > 0) text += format("  skipped %lld", static_cast<long long>(m.skipped_nonfinite));
  return text + "  eta " + human_duration(m.eta_s);
}

std::string console_line(const EvalMetrics& m) {
  std::string text =
      format("step %lld  held-out loss %.4f  bits/byte %.4f  (%s tokens, %.1f s)", static_cast<long long>(m.step),
             m.loss, m.bits_per_byte, with_commas(m.tokens).c_str(), m.seconds);
  return m.best ? text + "  best so far" : text;
}

std::string progress_line(const StepMetrics& m) {
  const double percent = m.steps > 0 ? 100.0 * static_cast<double>(m.step) / static_cast<double>(m.steps) : 0;
  std::string text =
      format("%3.0f%%  step %lld/%lld", percent, static_cast<long long>(m.step), static_cast<long long>(m.steps));
  if (m.loss != 0) text += format("  loss %.4f", m.loss);
  return m.eta_s > 0 ? text + "  " + human_duration(m.eta_s) + " left" : text;
}

void StepClock::add(double seconds, std::int64_t steps) {
  if (steps <= 0) return;
  // Never less than a fair share of what was seen: the mean is plain at first and forgets later.
  weight_ += static_cast<double>(steps);
  const double share =
      std::max(static_cast<double>(steps) / weight_, 1 - std::pow(1 - kClockShare, static_cast<double>(steps)));
  mean_ += (seconds / static_cast<double>(steps) - mean_) * share;
}

double SmoothedLoss::add(double loss) {
  if (!std::isfinite(loss)) return value();  // one bad step must not hide all that follow
  sum = kLossKeep * sum + (1 - kLossKeep) * loss;
  weight = kLossKeep * weight + (1 - kLossKeep);
  return value();
}

}  // namespace switchyard
