// bench/moe_layer.h: the sparse layer alone, forward and backward.
#pragma once

#include <string>
#include <vector>

#include "bench/layer_parts.h"
#include "bench/stopwatch.h"

namespace switchyard::bench {

// "T,D,N,E,K". ConfigError, with the shape, where a number is missing, out of range, or not what the kernels take.
LayerShape parse_layer_shape(const std::string& text);
std::vector<LayerShape> default_layer_shapes(bool gpu);

struct LayerTiming {
  LayerShape shape;
  double forward_flops;           // 2 M T K D N of M matrices; backward does twice that
  double largest_over_mean_load;  // rows of the fullest expert over the mean
  bool recorded;                  // timed as CUDA graphs
  PassTimes experts_only;         // the routing given: gather, products, weighted sum
  PassTimes with_router;          // and logits, scores, choice, dispatch
};

// Backward gives the gradients of x, of the routing weights (or the router's matrix) and of the experts' matrices,
// those of matrices added into fp32 buffers.
LayerTiming time_moe_layer(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device,
                           int repeats);

}  // namespace switchyard::bench
