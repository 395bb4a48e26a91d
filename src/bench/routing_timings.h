// bench/routing_timings.h: the kernels that route tokens, each against its floor. CUDA builds only; no torch.
#pragma once

#include "bench/device_clock.h"

namespace switchyard::bench {

struct RoutingTimings {
  int tokens, width, hidden, experts, top_k;  // hidden: of an expert
  std::string suffix;                         // of the kernels' names
};

// Scores, plan and the moves of rows, in bf16; then what only optional features launch.
void time_routing(Clock& clock, const RoutingTimings& shape);

}  // namespace switchyard::bench
