#include "optim/polar_express.h"

#include <algorithm>
#include <array>

namespace switchyard {

PolarCoefficients polar_coefficients(int iteration) {
  static constexpr std::array<PolarCoefficients, 5> kTable = {{
      {8.156554524902461, -22.48329292557795, 15.878769915207462},
      {4.042929935166739, -2.808917465908714, 0.5000178451051316},
      {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
      {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
      {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
  }};
  return kTable[std::min<std::size_t>(iteration, kTable.size() - 1)];
}

at::Tensor polar_express(const at::Tensor& u, int iterations) {
  const bool tall = u.size(1) > u.size(2);
  const at::Tensor norm = u.to(at::kFloat).square().sum({1, 2}, true).sqrt();
  at::Tensor x = u / (norm * kPolarSafety + kPolarEpsilon).to(u.scalar_type());
  for (int i = 0; i < iterations; ++i) {
    const auto [a, b, c] = polar_coefficients(i);
    const at::Tensor gram = tall ? at::bmm(x.transpose(1, 2), x) : at::bmm(x, x.transpose(1, 2));
    const at::Tensor poly = at::baddbmm(gram, gram, gram, b, c);
    x = tall ? at::baddbmm(x, x, poly, a) : at::baddbmm(x, poly, x, a);
  }
  return x;
}

}  // namespace switchyard
