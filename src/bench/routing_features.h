// bench/routing_features.h: the optional features of the sparse layer, as the benchmark of routing turns them on.
#pragma once

#include <string>
#include <vector>

#include "bench/layer_parts.h"
#include "config/load.h"

namespace switchyard::bench {

struct RoutingFeature {
  std::string name;
  Overrides options;
  bool with_products = false;  // what it costs are products of the experts, or of an MLP beside them
  bool padding = false;        // every fourth token is padding
  // What the layer that it is compared with has too: without it, rows that a capacity or a zero expert takes from the
  // experts would count as saved by the feature.
  Overrides base = {};
  std::string base_name = {};  // empty: the layer without any feature
};

// Those that a layer of this shape can have.
std::vector<RoutingFeature> routing_features(const LayerShape& shape);

}  // namespace switchyard::bench
