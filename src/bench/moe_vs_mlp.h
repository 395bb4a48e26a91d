// bench/moe_vs_mlp.h: the whole sparse layer beside the dense MLP that computes as much a token (moe_spec T10).
#pragma once

#include <string>
#include <vector>

#include "bench/stopwatch.h"
#include "train/device.h"

namespace switchyard::bench {

struct MoeVsMlpShape {
  std::int64_t tokens;
  int width, active;  // the dense MLP's hidden width; an expert's is active / top_k
  int experts, top_k;
  int hidden() const { return active / top_k; }
};

// Every combination with top_k <= experts. ConfigError, with the value, where a number is out of range, or an expert's
// width no whole multiple of 8.
std::vector<MoeVsMlpShape> sweep(const std::vector<std::int64_t>& tokens, const std::vector<int>& experts,
                                 const std::vector<int>& top_k, int width, int active);

struct LayerRun {
  std::string backend;  // "mlp", or moe.backend
  PassTimes times;
  // Against the reference backend, as |a - b| / |b| in the Euclidean norm: of the output, and of the gradients of x and
  // of the experts' matrices together. 0 for the reference itself and for the dense MLP.
  double output_error = 0, gradient_error = 0;
};

struct MoeVsMlp {
  MoeVsMlpShape shape;
  double forward_flops;        // of the matrices alone, 2 M T D active; backward does twice that
  std::vector<LayerRun> runs;  // the dense MLP, then the backends in their order
};

// "cuda" or "cpu", and "reference".
std::vector<std::string> layer_backends(const ComputeDevice& device);

// Router (softmax, normalised top-k), Switch loss, dispatch and experts as the model has them, x and dy N(0, 1), logits
// of variance 1. Backward gives the gradients of x, the router and the experts. After 10 warm-ups.
MoeVsMlp time_moe_vs_mlp(const MoeVsMlpShape& shape, const std::string& activation,
                         const std::vector<std::string>& backends, const ComputeDevice& device, int repeats);

}  // namespace switchyard::bench
