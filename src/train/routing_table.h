// How evenly experts are used: figures from counts, and a table for people (moe_spec T3). No torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

// A sparse layer over the steps since the last log line, all ranks and micro-batches. What is negative or empty is not
// known, or belongs to what is off.
struct LayerRouting {
  int layer = 0;
  std::vector<std::int64_t> count_E;  // assignments, before capacities; zero experts follow the real ones
  double entropy = -1;                // of the mean routing probabilities over ln E
  int zero_experts = 0;
  std::vector<std::int64_t> idle_steps_E = {};             // steps since the expert's last token
  int dead_window = 0;                                     // idle steps from which an expert is dead
  std::vector<double> importance_E = {};                   // mean over tokens of the chosen weights before scale
  std::int64_t dropped = -1, to_null = -1, rerouted = -1;  // assignments
  double max_bias = -1;                                    // largest |b|
  double mix = -1;                                         // the experts' share beside a flexible FFN
  double warm_up = -1;                                     // how far the experts have faded in, 0 to 1
  double capacity = -1;                                    // rows an expert takes
  double velocity = -1;                                    // root mean square of the INL velocity after the block
};

double imbalance(const std::vector<std::int64_t>& count_E);      // largest over mean; 1 is even, 0 without rows
double max_violation(const std::vector<std::int64_t>& count_E);  // largest over mean, less 1 (Wang et al. 2024)
double max_over_min(const std::vector<std::int64_t>& count_E);   // largest over smallest, or over 1
double load_distance(const std::vector<std::int64_t>& count_E);  // sum of |share - 1/E|; 0 is even
int dead_experts(const std::vector<std::int64_t>& count_E);      // without any row
int dead_experts(const LayerRouting& layer);  // idle for the window; where that is not tracked, without any row
double load_entropy(const std::vector<std::int64_t>& count_E);  // entropy of the shares over ln E; 1 is even
// Share of the assignments that the `most` busiest experts have; 0 without rows.
double busiest_share(const std::vector<std::int64_t>& count_E, int most);

// A line a layer: a bar an expert (full height is twice the mean, "x" is dead), least and largest share, max/mean,
// dead; then columns of what is on.
std::string routing_table(const std::vector<LayerRouting>& layers);

}  // namespace switchyard
