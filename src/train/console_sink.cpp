#include <chrono>

#include "base/log.h"
#include "base/text.h"
#include "train/sinks.h"

namespace switchyard {
namespace {

constexpr double kRedraw_s = 0.2;

class ConsoleSink : public MetricsSink {
 public:
  explicit ConsoleSink(bool every_layer) : every_layer_(every_layer) {}
  ~ConsoleSink() override { log::erase_status(); }

  void step(const StepMetrics& metrics) override { print(console_line(metrics)); }
  void eval(const EvalMetrics& metrics) override { print(console_line(metrics)); }

  void routing(std::int64_t step, const std::vector<LayerRouting>& layers) override {
    if (!every_layer_ || layers.empty()) return;
    print(format("step %lld  rows an expert\n", static_cast<long long>(step)) + routing_table(layers));
  }

  void progress(const StepMetrics& m) override {
    const auto now = std::chrono::steady_clock::now();
    if (std::chrono::duration<double>(now - drawn_).count() < kRedraw_s) return;
    drawn_ = now;
    log::status("  " + progress_line(m));
  }

 private:
  static void print(std::string text) {
    while (!text.empty() && text.back() == '\n') text.pop_back();
    log::info(text);
  }

  const bool every_layer_;
  std::chrono::steady_clock::time_point drawn_;
};

}  // namespace

std::unique_ptr<MetricsSink> console_sink(bool every_layer) { return std::make_unique<ConsoleSink>(every_layer); }

}  // namespace switchyard
