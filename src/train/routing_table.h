// How evenly experts are used: figures from counts, and a table for people. No torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

struct LayerRouting {
  int layer = 0;
  std::vector<std::int64_t> count_E;  // rows an expert processed, over all ranks and micro-batches of the interval
  double entropy = -1;                // of the mean routing probabilities over ln E; negative: not known
};

double imbalance(const std::vector<std::int64_t>& count_E);     // largest over mean; 1 is even, 0 without rows
int dead_experts(const std::vector<std::int64_t>& count_E);     // without any row
double load_entropy(const std::vector<std::int64_t>& count_E);  // entropy of the shares over ln E; 1 is even

// A line a layer: a bar an expert (full height is twice the mean, "x" is dead), least and largest share, max/mean,
// dead.
std::string routing_table(const std::vector<LayerRouting>& layers);

}  // namespace switchyard
