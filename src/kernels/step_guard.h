// kernels/step_guard.h: the norm of all gradients, and from it whether a step may be stored. CUDA only.
#pragma once

#include "kernels/types.h"

namespace switchyard::kernels {

struct SquareRange {
  const float* values;  // 16 bytes aligned is faster
  std::int64_t count;
};

// *sum = the sum of values^2 over all ranges, added in an order that depends on the sizes alone.
struct SumOfSquares {
  const SquareRange* ranges;  // [range_count], device memory
  int range_count;            // at most 65535
  std::int64_t largest;       // the longest range's count
  float* parts;               // [sum_of_squares_parts(range_count, largest)] overwritten
  float* sum;                 // one device value
};

// norm = sqrt(*sum_of_squares);  apply = norm and *loss are finite;  applied += apply;  skipped += !apply
// skipped_in_a_row = apply ? 0 : + 1;  grad_factor = min(1, clip_norm / (norm + 1e-6)), untouched when clip_norm is 0
struct StepGuard {
  const float* sum_of_squares;  // one device value, as all that follow
  const float* loss;
  float* grad_norm;
  float* grad_factor;
  int* apply;
  std::int64_t *applied, *skipped, *skipped_in_a_row;
  float clip_norm;
};

std::int64_t sum_of_squares_parts(int range_count, std::int64_t largest);
void sum_of_squares(const SumOfSquares&, Stream);
void step_guard(const StepGuard&, Stream);

}  // namespace switchyard::kernels
