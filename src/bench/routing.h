// bench/routing.h: what the sparse layer costs besides its products, part by part, and what each optional feature adds.
#pragma once

#include <string>
#include <vector>

#include "bench/layer_parts.h"
#include "bench/stopwatch.h"

namespace switchyard::bench {

// Bytes that must cross memory where a pass is cut into kernels as it is here. Over the rate of a copy: its floor.
struct PassBytes {
  double forward = 0, backward = 0;
};

struct RoutingPart {
  std::string name;
  PassBytes bytes;
  PassTimes times;  // what the layer takes with it less what it takes without
};

struct FeatureTiming {
  std::string name, options;  // options: as on the command line of train
  bool with_products;         // the experts' products are in `times` and in `without`
  PassTimes times, without;   // the layer with the feature, and without
  std::string against;        // what the layer without it has; empty: no feature
  std::string failure;        // why there are no times; empty: there are
};

struct RoutingTiming {
  LayerShape shape;
  bool recorded;                   // timed as CUDA graphs
  std::vector<RoutingPart> parts;  // the last: all of them together
  std::vector<FeatureTiming> features;
};

// Bytes a second, read and written, of a copy that no cache holds.
double copy_rate(const ComputeDevice& device);

std::vector<LayerShape> default_routing_shapes(bool gpu);

// Prints a line a part and a feature as it goes. Experts are relu^2, bf16 on a GPU and fp32 on a CPU, and their
// products give noise drawn beforehand (stand_in_products.h), except in features whose cost is a product. only:
// features whose name contains it, all where it is empty. copy_rate: bytes a second. A feature that fails is told and
// kept in the result; the others go on.
RoutingTiming time_routing_layer(const LayerShape& shape, const ComputeDevice& device, double copy_rate, int repeats,
                                 const std::string& only);

}  // namespace switchyard::bench
