#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "base/log.h"
#include "base/text.h"
#include "train/sinks.h"

namespace switchyard {
namespace {

constexpr double kRedraw_s = 0.2;

class ConsoleSink : public MetricsSink {
 public:
  explicit ConsoleSink(bool every_layer)
      : every_layer_(every_layer), terminal_(::isatty(STDOUT_FILENO) != 0 && ::isatty(STDERR_FILENO) != 0) {}
  ~ConsoleSink() override { clear(); }

  void step(const StepMetrics& metrics) override { print(console_line(metrics)); }
  void eval(const EvalMetrics& metrics) override { print(console_line(metrics)); }
  void finish() override { clear(); }

  void routing(std::int64_t step, const std::vector<LayerRouting>& layers) override {
    if (!every_layer_ || layers.empty()) return;
    print(format("step %lld  rows an expert\n", static_cast<long long>(step)) + routing_table(layers));
  }

  void progress(const StepMetrics& m) override {
    const auto now = std::chrono::steady_clock::now();
    if (!terminal_ || std::chrono::duration<double>(now - drawn_).count() < kRedraw_s) return;
    drawn_ = now;
    const double percent = m.steps > 0 ? 100.0 * static_cast<double>(m.step) / static_cast<double>(m.steps) : 0;
    std::string text =
        format("  %3.0f%%  step %lld/%lld", percent, static_cast<long long>(m.step), static_cast<long long>(m.steps));
    if (m.loss != 0) text += format("  loss %.4f", m.loss);
    if (m.eta_s > 0) text += "  " + human_duration(m.eta_s) + " left";
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
    shown_ = true;
  }

 private:
  void print(std::string text) {
    clear();
    while (!text.empty() && text.back() == '\n') text.pop_back();
    log::info(text);
  }

  void clear() {
    if (!shown_) return;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
    shown_ = false;
  }

  const bool every_layer_, terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point drawn_;
};

}  // namespace

std::unique_ptr<MetricsSink> console_sink(bool every_layer) { return std::make_unique<ConsoleSink>(every_layer); }

}  // namespace switchyard
