// Reads at a log line what the routers did since the last one (moe_spec T3): from the device's totals to figures.
#pragma once

#include "comm/control.h"
#include "model/gpt.h"
#include "train/routing_table.h"

namespace switchyard {

struct RoutingInterval {
  std::vector<LayerRouting> layers;                            // empty for a dense model
  double balance_loss = 0, z_loss = 0, seq_balance_loss = -1;  // raw, a micro-batch, summed over layers
};

class RoutingReader {
 public:
  // Counting starts here: after a restore. Collective, as read is.
  RoutingReader(Gpt& model, Control& control);

  // step: done so far; passes: micro-batches since the last read, over all ranks. Waits for the device; zeroes the
  // totals.
  RoutingInterval read(std::int64_t step, std::int64_t passes);

 private:
  struct Diverted {
    std::vector<std::int64_t> dropped_L, to_null_L, rerouted_L;  // since the run began, over ranks; empty: off
  };
  Diverted diverted();
  void add_kept(std::int64_t step, std::vector<LayerRouting>& layers);

  Gpt& model_;
  Control& control_;
  Diverted before_;
};

}  // namespace switchyard
