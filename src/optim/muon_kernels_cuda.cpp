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

bool is_aligned(const kernels::MuonMatrix& m) {
  return reinterpret_cast<std::uintptr_t>(m.weight) % 16 == 0 && reinterpret_cast<std::uintptr_t>(m.copy) % 16 == 0;
}

}  // namespace

MuonKernels::MuonKernels(const std::vector<kernels::MuonMatrix>& matrices, std::int64_t rows, std::int64_t columns,
                         at::Device device)
    : count_(static_cast<std::int64_t>(matrices.size())),
      rows_(rows),
      columns_(columns),
      aligned_(std::all_of(matrices.begin(), matrices.end(), is_aligned)) {
  const std::int64_t most = std::clamp<std::int64_t>(kScratchBytes / PolarBatch::bytes_of_one(rows, columns), 1, 65535);
  at_once_ = ceil_div(count_, ceil_div(count_, most));  // batches of equal size
  const auto table_bytes = static_cast<std::int64_t>(matrices.size() * sizeof(kernels::MuonMatrix));
  const at::Tensor host = at::empty({table_bytes}, at::kByte);
  std::memcpy(host.data_ptr(), matrices.data(), matrices.size() * sizeof(kernels::MuonMatrix));
  table_ = host.to(device);
  progress_ = at::zeros({at_once_ + 1}, table_.options().dtype(at::kInt));
}

void MuonKernels::step(const StepScalars& scalars, const MuonConfig& config) const {
  PolarBatch polar(at_once_, rows_, columns_, table_.device());
  const at::Tensor norms =
      at::empty({at_once_ * kernels::muon_norm_parts(rows_, columns_)}, table_.options().dtype(at::kFloat));
  for (std::int64_t first = 0; first < count_; first += at_once_)
    update(first, std::min(at_once_, count_ - first), polar, norms.data_ptr<float>(), scalars, config);
}

void MuonKernels::update(std::int64_t first, std::int64_t count, PolarBatch& polar, float* norm_parts,
                         const StepScalars& scalars, const MuonConfig& config) const {
  const kernels::Stream stream = ops::current_stream(table_);
  const int n = static_cast<int>(count);
  const kernels::MuonBatch batch{static_cast<const kernels::MuonMatrix*>(table_.data_ptr()) + first, n, rows_,
                                 columns_};
  kernels::muon_prepare(
      {batch, static_cast<kernels::fp16*>(polar.data()), norm_parts, progress_.data_ptr<int>(),
       scalars.momentum.data_ptr<float>(), scalars.grad_factor.data_ptr<float>(), scalars.apply.data_ptr<int>(),
       config.nesterov, static_cast<float>(kPolarSafety), static_cast<float>(kPolarEpsilon)},
      stream);
  const double shape_factor = std::sqrt(std::max(1.0, static_cast<double>(rows_) / static_cast<double>(columns_)));
  polar.update(count, config.iterations,
               {batch, nullptr, scalars.lr_factor.data_ptr<float>(), scalars.decay_factor.data_ptr<float>(),
                scalars.apply.data_ptr<int>(), static_cast<float>(config.lr * shape_factor),
                static_cast<float>(config.lr * config.weight_decay), /*cautious=*/true},
               aligned_);
}

}  // namespace switchyard
