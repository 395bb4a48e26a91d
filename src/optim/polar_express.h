// Polar Express (Amsel et al. 2025): the polar factor of a matrix by matrix products alone.
//   X <- X / (1.02 |X| + 1e-6), then at each iteration, with G = X X' of the short side and Y = G at first,
//   Y <- scale Y² + add G + identity I   for each of its squares,   and at last   X <- Y X
// k squares make a polynomial of degree 2^(k+1) + 1 in X, for 0.54 side³ each where a further iteration reads X anew.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace switchyard {

struct PolarSquare {
  double scale, add, identity;
};

// The squares of an iteration, of degree 17, 17 and 9; later iterations repeat the last.
// Made by benchmarks/polar_coefficients.py: each the best for singular values in [l, u] that the one before leaves,
// from l = 1e-3 of the norm on and with those below u/100 left out. Such values end in 0.896 to 1.104, smaller ones
// grow by 1072. The safety factor 1.02 is folded into all but the last, and Y is 1 at most until an iteration's last
// square.
const std::vector<PolarSquare>& polar_squares(int iteration);
inline constexpr double kPolarSafety = 1.02, kPolarEpsilon = 1e-6;

// The nearest semi-orthogonal matrix of each of a batch [n, r, c], in the tensor's type. A zero matrix stays zero.
at::Tensor polar_express(const at::Tensor& u, int iterations);

}  // namespace switchyard
