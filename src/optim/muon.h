// Muon (Jordan et al. 2024) over stacks of same-shaped matrices: momentum, orthogonalised by Polar Express (Amsel et
// al. 2025), step scaled by sqrt(max(1, rows / columns)), cautious weight decay, optional variance reduction (NorMuon).
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "config/config.h"
#include "ops/side_stream.h"
#include "optim/muon_kernels.h"
#include "optim/owned.h"
#include "optim/step_scalars.h"

namespace switchyard {

class Muon {
 public:
  // bf16 products on a GPU without variance reduction run by kernels (muon_kernels.h), everything else, and all with
  // `reference`, in plain ATen.
  Muon(const std::vector<OwnedSlice>& slices, const MuonConfig& config, at::ScalarType product_dtype,
       bool reference = false);

  // One update of every matrix from gradients times scalars.grad_factor; nothing is stored while scalars.apply is 0.
  void step(const StepScalars& scalars);
  const std::vector<OptimizerState>& states() const { return states_; }

 private:
  // m matrices of one shape, somewhere inside a parameter: [m, rows, columns] views.
  struct Chunk {
    at::Tensor weight, grad, copy;  // copy undefined: products read the master itself
    at::Tensor momentum;            // a view of the slice's state
    at::Tensor second;              // [m, rows, 1] or [m, 1, columns]; undefined without variance reduction
  };
  using Shape = std::pair<std::int64_t, std::int64_t>;
  void add_slice(const OwnedSlice& slice);
  void use_kernels();
  void update(const std::vector<Chunk>& chunks, Shape shape, const StepScalars& scalars) const;

  const MuonConfig config_;
  const at::ScalarType product_dtype_;
  std::map<Shape, std::vector<std::vector<Chunk>>> batches_;  // by shape, in batches of bounded size
  std::vector<MuonKernels> kernels_;                          // instead of batches_, where kernels serve
  std::unique_ptr<ops::SideStream> beside_;                   // for those whose products wait for one another
  std::vector<OptimizerState> states_;
};

}  // namespace switchyard
