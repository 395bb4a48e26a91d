// Muon on a GPU in bf16 (kernels/muon.h): what muon.cpp computes in plain ATen, without its fp32 intermediates.
// Matrices of one shape are read where they lie through a table of pointers.
#pragma once

#include <vector>

#include "config/config.h"
#include "kernels/muon.h"
#include "optim/polar_batch.h"
#include "optim/step_scalars.h"

namespace switchyard {

class MuonKernels {
 public:
  // matrices: rows x columns each, in memory of `device`.
  MuonKernels(const std::vector<kernels::MuonMatrix>& matrices, std::int64_t rows, std::int64_t columns,
              at::Device device);

  // Too few elements to fill a GPU: its time is that of one product after the other.
  bool is_small() const { return count_ * rows_ * columns_ < (1 << 20); }
  // One update of every matrix; nothing is stored while scalars.apply is 0. Takes its scratch, at most about 1 GiB,
  // from torch's allocator and may be captured.
  void step(const StepScalars& scalars, const MuonConfig& config) const;

 private:
  void update(std::int64_t first, std::int64_t count, PolarBatch& polar, float* norm_parts, const StepScalars& scalars,
              const MuonConfig& config) const;

  std::int64_t count_, rows_, columns_;
  bool aligned_;          // weights and copies, to 16 bytes
  std::int64_t at_once_;  // matrices of one batch
  at::Tensor table_;      // kernels::MuonMatrix [count] on the device
  at::Tensor progress_;   // kernels::MuonPrepare::progress
};

}  // namespace switchyard
