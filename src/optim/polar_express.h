// Polar Express (Amsel et al. 2025): the polar factor of a matrix by matrix products alone.
//   X <- X / (1.02 |X| + 1e-6), then at each iteration   X <- a X + b (X X') X + c (X X')^2 X
#pragma once

#include <ATen/ATen.h>

namespace switchyard {

struct PolarCoefficients {
  double a, b, c;
};

// Degree 5, made for five iterations with cushion 2, the safety factor 1.02 folded in; later ones repeat the last row.
PolarCoefficients polar_coefficients(int iteration);
inline constexpr double kPolarSafety = 1.02, kPolarEpsilon = 1e-6;

// The nearest semi-orthogonal matrix of each of a batch [n, r, c], in the tensor's type. A zero matrix stays zero.
at::Tensor polar_express(const at::Tensor& u, int iterations);

}  // namespace switchyard
