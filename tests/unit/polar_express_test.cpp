#include "optim/polar_express.h"

#include <gtest/gtest.h>

#include <tuple>

namespace switchyard {
namespace {

constexpr int kIterations = 3;

struct PolarCase {
  const char* name;
  std::int64_t rows, columns;
  double smallest;  // singular values fall from 1 to this
  int iterations;
};
const std::vector<PolarCase> kCases = {
    {"wide", 24, 40, 1e-2, kIterations},           {"tall", 40, 24, 1e-2, kIterations},
    {"square, all alike", 32, 32, 1, kIterations}, {"one row", 1, 30, 1, kIterations},
    {"one value", 1, 1, 1, kIterations},           {"badly conditioned", 48, 48, 3e-3, kIterations},
    {"further iterations", 24, 40, 1e-2, 7},
};

// Orthonormal columns.
at::Tensor orthonormal(std::int64_t rows, std::int64_t columns) {
  return std::get<0>(at::linalg_qr(at::randn({rows, columns}, at::kDouble)));
}

TEST(PolarExpress, SingularValuesEndNearOneAndDirectionsStay) {
  for (const PolarCase& c : kCases) {
    at::manual_seed(5);
    const std::int64_t side = std::min(c.rows, c.columns);
    const at::Tensor left = orthonormal(c.rows, side), right = orthonormal(c.columns, side);
    const at::Tensor values = at::logspace(0, std::log10(c.smallest), side, 10.0, at::kDouble);
    const at::Tensor u = at::matmul(left * values, right.t()).unsqueeze(0) * 0.1;
    const at::Tensor turned = at::matmul(left.t(), at::matmul(polar_express(u, c.iterations)[0], right));
    const at::Tensor got = turned.diagonal();
    EXPECT_LT((turned - got.diag()).abs().max().item<double>(), 1e-9) << c.name;
    EXPECT_GT(got.min().item<double>(), 0.89) << c.name;
    EXPECT_LT(got.max().item<double>(), 1.105) << c.name;
  }
}

TEST(PolarExpress, NothingGrowsTooLargeOrTurnsAround) {
  // One matrix for each value of x: the largest is 1, the other x.
  const at::Tensor x =
      at::cat({at::logspace(-7, -3, 400, 10.0, at::kDouble), at::linspace(1e-3, 1, 5000, at::kDouble)});
  const at::Tensor u = at::diag_embed(at::stack({at::ones_like(x), x}, 1));
  for (int iterations = 1; iterations <= 5; ++iterations) {
    const at::Tensor y = polar_express(u, iterations).diagonal(0, 1, 2);
    EXPECT_GT(y.min().item<double>(), 0) << iterations;
    EXPECT_LT(y.max().item<double>(), 2) << iterations;
  }
  const at::Tensor y = polar_express(u, kIterations).diagonal(0, 1, 2).select(1, 1);
  const double first = x[0].item<double>();
  EXPECT_NEAR(y[0].item<double>() / first * 1.02, 1072, 5);
  EXPECT_GT(y.masked_select(x > 1.1e-3).min().item<double>(), 0.89);
  EXPECT_LT(y.max().item<double>(), 1.105);
}

TEST(PolarExpress, ZerosStayZeroBesideOthers) {
  at::manual_seed(5);
  at::Tensor u = at::randn({3, 16, 24});
  u[1].zero_();
  const at::Tensor o = polar_express(u, kIterations);
  EXPECT_EQ(o[1].abs().max().item<float>(), 0);
  EXPECT_TRUE(at::equal(o[2], polar_express(u.narrow(0, 2, 1), kIterations)[0]));
}

TEST(PolarExpress, LowerPrecisionIsClose) {
  at::manual_seed(5);
  const at::Tensor u = at::randn({2, 96, 160}).to(at::kBFloat16);
  const at::Tensor exact = polar_express(u.to(at::kDouble), kIterations);
  const auto off = [&](at::ScalarType type) {
    const at::Tensor o = polar_express(u.to(type), kIterations).to(at::kDouble);
    return ((o - exact).norm() / exact.norm()).item<double>();
  };
  EXPECT_LT(off(at::kFloat), 1e-4);
  EXPECT_LT(off(at::kBFloat16), 0.05);
}

}  // namespace
}  // namespace switchyard
