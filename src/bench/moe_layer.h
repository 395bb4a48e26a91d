// bench/moe_layer.h: the sparse layer alone, forward and backward.
#pragma once

#include <string>
#include <vector>

#include "bench/stopwatch.h"
#include "ops/activation.h"
#include "train/device.h"

namespace switchyard::bench {

struct LayerShape {
  std::int64_t tokens;
  int width, hidden, experts, top_k;
};

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
// those of matrices added into fp32 buffers. x is N(0, 1), the router's logits too, all drawn from seed 0 as
// benchmarks/peer_torch.py --layer draws them: where torch is the same, so are the values and, but for rounding, the
// routing.
LayerTiming time_moe_layer(const LayerShape& shape, ops::ActivationKind activation, const ComputeDevice& device,
                           int repeats);

}  // namespace switchyard::bench
