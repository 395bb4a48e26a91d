// Notices a sparse layer whose router has collapsed, and says what helps. No torch.
#pragma once

#include <map>
#include <set>

#include "train/routing_table.h"

namespace switchyard {

// What has been seen, by layer: a run that is resumed warns of nothing twice.
struct CollapseState {
  std::map<int, std::vector<std::int64_t>> idle_steps_E;  // at least so many, seen at log lines
  std::set<int> collapsed;
};

class CollapseWatch {
 public:
  // dead_window: steps without a token after which an expert counts as dead
  CollapseWatch(int top_k, int dead_window) : top_k_(top_k), dead_window_(dead_window) {}

  // A warning for each layer that has collapsed and had not before: nearly all assignments are on top_k experts, or
  // more than half of the experts are dead. A layer that has recovered may be warned of again. steps: since the last
  // look.
  std::vector<std::string> look(const std::vector<LayerRouting>& layers, std::int64_t steps);

  const CollapseState& state() const { return state_; }
  void restore(CollapseState state) { state_ = std::move(state); }

 private:
  std::string finding(const LayerRouting& layer, const std::vector<std::int64_t>& seen_idle_E) const;

  const int top_k_, dead_window_;
  CollapseState state_;
};

}  // namespace switchyard
