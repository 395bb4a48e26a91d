// Where metrics go: the console and a file of JSON lines. Only the writing rank has any. No torch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/metrics.h"
#include "train/routing_table.h"

namespace switchyard {

class MetricsSink {
 public:
  virtual ~MetricsSink() = default;
  virtual void step(const StepMetrics&) {}      // every log_every steps
  virtual void progress(const StepMetrics&) {}  // after a step that has no line; step, steps, and what is known
                                                // of loss and eta_s without asking the device
  virtual void eval(const EvalMetrics&) {}
  virtual void routing(std::int64_t /*step*/, const std::vector<LayerRouting>&) {}
};

// One compact line through base/log; on a terminal a progress line is rewritten in between. routing prints the table
// only when every_layer (log.routing = layer).
std::unique_ptr<MetricsSink> console_sink(bool every_layer);

// Appends to `path`, one object a line, flushed: {"kind": "train" | "eval" | "routing", "step": …}. NaN and infinities
// become null. resumed_step: lines at or beyond it are dropped first (a step that is run again is not reported twice),
// a torn last line too; 0 starts the file anew. RunError with path and reason.
std::unique_ptr<MetricsSink> json_lines_sink(const std::string& path, std::int64_t resumed_step);

}  // namespace switchyard
