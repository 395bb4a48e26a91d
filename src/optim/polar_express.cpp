#include "optim/polar_express.h"

#include <algorithm>

namespace switchyard {

const std::vector<PolarSquare>& polar_squares(int iteration) {
  // As benchmarks/polar_coefficients.py prints them.
  static const std::vector<std::vector<PolarSquare>> table = {
      {{5.3247416, -5.9298411, 1.0}, {1.3983409, 0.15406939, -0.39834088}, {25.61061, -0.72721187, 1.0099419}},
      {{0.34927279, -1.515626, 1.0}, {1.3867093, 0.037678918, -0.38670928}, {10.832895, -0.10595862, 0.57383618}},
      {{0.37809332, -1.3470653, 1.0}, {2.4070898, -0.2202112, 1.122751}},
  };
  return table[std::min<std::size_t>(iteration, table.size() - 1)];
}

at::Tensor polar_express(const at::Tensor& u, int iterations) {
  const bool tall = u.size(1) > u.size(2);
  const at::Tensor norm = u.to(at::kFloat).square().sum({1, 2}, true).sqrt();
  at::Tensor x = u / (norm * kPolarSafety + kPolarEpsilon).to(u.scalar_type());
  for (int i = 0; i < iterations; ++i) {
    const at::Tensor gram = tall ? at::bmm(x.transpose(1, 2), x) : at::bmm(x, x.transpose(1, 2));
    at::Tensor y = gram;
    for (const auto& [scale, add, identity] : polar_squares(i)) {
      y = at::baddbmm(gram, y, y, add, scale);
      y.diagonal(0, 1, 2).add_(identity);
    }
    x = tall ? at::bmm(x, y) : at::bmm(y, x);
  }
  return x;
}

}  // namespace switchyard
