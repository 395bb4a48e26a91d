#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/launch.h"
#include "optim/muon_kernels.h"
#include "optim/polar_express.h"

namespace switchyard {
namespace {

constexpr std::int64_t kScratchBytes = std::int64_t{1} << 30;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

// Of one batch: two places for X, which every iteration writes anew from the other, and two for X X' and its square.
struct MuonKernels::Scratch {
  at::Tensor x, next, gram, poly, norm_parts;

  Scratch(std::int64_t count, std::int64_t rows, std::int64_t columns, at::Device device) {
    const auto halves = at::TensorOptions().device(device).dtype(at::kBFloat16);
    const std::int64_t side = std::min(rows, columns);
    x = at::empty({count, rows, columns}, halves);
    next = at::empty_like(x);
    gram = at::empty({count, side, side}, halves);
    poly = at::empty_like(gram);
    norm_parts = at::empty({count * kernels::muon_norm_parts(rows, columns)}, halves.dtype(at::kFloat));
  }

  // x becomes its polar factor.
  void orthogonalise(std::int64_t count, int iterations) {
    at::Tensor g = gram.narrow(0, 0, count), p = poly.narrow(0, 0, count);
    const bool tall = x.size(1) > x.size(2);
    for (int i = 0; i < iterations; ++i) {
      const auto [a, b, c] = polar_coefficients(i);
      const at::Tensor from = x.narrow(0, 0, count), turned = from.transpose(1, 2);
      at::Tensor to = next.narrow(0, 0, count);
      tall ? at::bmm_out(g, turned, from) : at::bmm_out(g, from, turned);
      at::baddbmm_out(p, g, g, g, b, c);
      tall ? at::baddbmm_out(to, from, from, p, a) : at::baddbmm_out(to, from, p, from, a);
      std::swap(x, next);
    }
  }
};

MuonKernels::MuonKernels(const std::vector<kernels::MuonMatrix>& matrices, std::int64_t rows, std::int64_t columns,
                         at::Device device)
    : count_(static_cast<std::int64_t>(matrices.size())), rows_(rows), columns_(columns) {
  const std::int64_t side = std::min(rows, columns), bytes = 4 * (rows * columns + side * side);
  const std::int64_t most = std::clamp<std::int64_t>(kScratchBytes / bytes, 1, 65535);
  at_once_ = ceil_div(count_, ceil_div(count_, most));  // batches of equal size
  const auto table_bytes = static_cast<std::int64_t>(matrices.size() * sizeof(kernels::MuonMatrix));
  const at::Tensor host = at::empty({table_bytes}, at::kByte);
  std::memcpy(host.data_ptr(), matrices.data(), matrices.size() * sizeof(kernels::MuonMatrix));
  table_ = host.to(device);
}

void MuonKernels::step(const StepScalars& scalars, const MuonConfig& config) const {
  Scratch scratch(at_once_, rows_, columns_, table_.device());
  for (std::int64_t first = 0; first < count_; first += at_once_)
    update(first, std::min(at_once_, count_ - first), scratch, scalars, config);
}

void MuonKernels::update(std::int64_t first, std::int64_t count, Scratch& scratch, const StepScalars& scalars,
                         const MuonConfig& config) const {
  using kernels::bf16;
  const kernels::Stream stream = ops::current_stream(table_);
  const auto* table = static_cast<const kernels::MuonMatrix*>(table_.data_ptr()) + first;
  const int n = static_cast<int>(count);
  const kernels::MuonBatch batch{table, n, rows_, columns_};
  float* parts = scratch.norm_parts.data_ptr<float>();
  kernels::muon_prepare({batch, ops::pointer<bf16>(scratch.x), parts, scalars.momentum.data_ptr<float>(),
                         scalars.grad_factor.data_ptr<float>(), scalars.apply.data_ptr<int>(), config.nesterov},
                        stream);
  kernels::muon_scale({ops::pointer<bf16>(scratch.x), parts, n, rows_, columns_, static_cast<float>(kPolarSafety),
                       static_cast<float>(kPolarEpsilon)},
                      stream);
  scratch.orthogonalise(count, config.iterations);
  const double shape_factor = std::sqrt(std::max(1.0, static_cast<double>(rows_) / static_cast<double>(columns_)));
  kernels::muon_apply({batch, ops::pointer<bf16>(scratch.x), scalars.lr_factor.data_ptr<float>(),
                       scalars.decay_factor.data_ptr<float>(), scalars.apply.data_ptr<int>(),
                       static_cast<float>(config.lr * shape_factor),
                       static_cast<float>(config.lr * config.weight_decay), /*cautious=*/true},
                      stream);
}

}  // namespace switchyard
