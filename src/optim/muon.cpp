#include "optim/muon.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "optim/polar_express.h"

namespace switchyard {
namespace {

constexpr std::int64_t kBatchElements = std::int64_t{1} << 26;  // bounds the scratch of one batch

// Each matrix over its running RMS by row (by column when wide), the whole norm kept (NorMuon, Li et al. 2025).
at::Tensor reduce_variance(const at::Tensor& o, const at::Tensor& second) {
  const at::Tensor scaled = o * second.clamp_min(1e-10).rsqrt();
  const auto norm = [](const at::Tensor& x) { return x.square().sum({1, 2}, true).sqrt(); };
  return scaled * (norm(o) / norm(scaled).clamp_min(1e-10));
}

// target = condition ? value : target, also where value is not finite.
void store(const at::Tensor& target, const at::Tensor& condition, const at::Tensor& value) {
  at::Tensor out = target;
  out.copy_(at::where(condition, value, target));
}

}  // namespace

Muon::Muon(const std::vector<OwnedSlice>& slices, const MuonConfig& config, at::ScalarType product_dtype,
           bool reference)
    : config_(config), product_dtype_(product_dtype) {
  for (const OwnedSlice& slice : slices) add_slice(slice);
  const bool on_gpu = !slices.empty() && slices[0].parameter->master.is_cuda();
  if (on_gpu && product_dtype == at::kBFloat16 && !config.variance_reduction && !reference) use_kernels();
}

void Muon::use_kernels() {
#ifdef SWITCHYARD_WITH_CUDA
  for (const auto& [shape, batches] : batches_) {
    std::vector<kernels::MuonMatrix> matrices;
    for (const auto& chunks : batches)
      for (const Chunk& chunk : chunks)
        for (std::int64_t i = 0; i < chunk.weight.size(0); ++i) {
          const at::Tensor weight = chunk.weight[i], copy = chunk.copy.defined() ? chunk.copy[i] : at::Tensor();
          SWITCHYARD_ASSERT(weight.is_contiguous(), "a matrix lies in one piece");
          matrices.push_back({weight.data_ptr<float>(), chunk.grad[i].data_ptr<float>(),
                              chunk.momentum[i].data_ptr<float>(),
                              copy.defined() ? static_cast<kernels::bf16*>(copy.data_ptr()) : nullptr});
        }
    kernels_.emplace_back(matrices, shape.first, shape.second, batches[0][0].weight.device());
  }
  beside_ = std::make_unique<ops::SideStream>(states_[0].values.device());
  batches_.clear();
#endif
}

void Muon::add_slice(const OwnedSlice& slice) {
  const Parameter& p = *slice.parameter;
  const std::int64_t columns = p.shape.back(), rows = p.shape[p.shape.size() - 2], matrix = rows * columns;
  SWITCHYARD_ASSERT(slice.begin % matrix == 0 && slice.count % matrix == 0, "Muon updates whole matrices: " + p.name);
  const std::int64_t stack = slice.count / matrix;
  const auto flat_options = p.master.options();
  OptimizerState first{"first", slice, at::zeros({slice.count}, flat_options)};
  const auto view = [&](const at::Tensor& whole) {
    return whole.detach().reshape({-1}).narrow(0, slice.begin, slice.count).view({stack, rows, columns});
  };
  const at::Tensor weight = view(p.master), grad = view(p.grad), momentum = first.values.view({stack, rows, columns});
  const at::Tensor copy =
      p.compute.is_same(p.master) || p.compute.data_ptr() == p.master.data_ptr() ? at::Tensor() : view(p.compute);
  OptimizerState second{"second", slice, at::Tensor()};
  if (config_.variance_reduction) second.values = at::zeros({slice.count}, flat_options);

  std::int64_t row = 0;
  for (const std::int64_t height : p.row_split) {
    const auto part = [&](const at::Tensor& t) { return t.defined() ? t.narrow(1, row, height) : at::Tensor(); };
    Chunk chunk{part(weight), part(grad), part(copy), part(momentum), at::Tensor()};
    if (config_
            .variance_reduction) {  // the first column (row) of the matrix's place in the state holds the mean squares
      const at::Tensor place = part(second.values.view({stack, rows, columns}));
      chunk.second = height >= columns ? place.narrow(2, 0, 1) : place.narrow(1, 0, 1);
    }
    auto& batches = batches_[{height, columns}];
    std::int64_t held = 0;
    if (!batches.empty())
      for (const Chunk& other : batches.back()) held += other.weight.numel();
    if (batches.empty() || held + chunk.weight.numel() > kBatchElements) batches.emplace_back();
    batches.back().push_back(std::move(chunk));
    row += height;
  }
  states_.push_back(std::move(first));
  if (second.values.defined()) states_.push_back(std::move(second));
}

void Muon::step(const StepScalars& scalars) {
  at::NoGradGuard no_grad;
  for (const auto& [shape, batches] : batches_)
    for (const auto& chunks : batches) update(chunks, shape, scalars);
#ifdef SWITCHYARD_WITH_CUDA
  if (kernels_.empty()) return;
  const auto step_all = [&](bool small) {
    for (const MuonKernels& group : kernels_)
      if (group.is_small() == small) group.step(scalars, config_);
  };
  beside_->run([&] { step_all(true); }, [&] { step_all(false); });
#endif
}

void Muon::update(const std::vector<Chunk>& chunks, Shape shape, const StepScalars& scalars) const {
  const auto [rows, columns] = shape;
  const at::Tensor apply = scalars.apply.to(at::kBool), keep = 1 - scalars.momentum;
  std::vector<at::Tensor> directions;
  for (const Chunk& chunk : chunks) {
    const at::Tensor grad = chunk.grad * scalars.grad_factor;
    const at::Tensor momentum = at::lerp(chunk.momentum, grad, keep);
    directions.push_back((config_.nesterov ? at::lerp(grad, momentum, scalars.momentum) : momentum).to(product_dtype_));
    store(chunk.momentum, apply, momentum);
  }
  const at::Tensor orthogonal = polar_express(at::cat(directions, 0), config_.iterations).to(at::kFloat);
  const at::Tensor lr = scalars.lr_factor * config_.lr, decay = lr * scalars.decay_factor * config_.weight_decay;
  const at::Tensor scale = lr * std::sqrt(std::max(1.0, static_cast<double>(rows) / static_cast<double>(columns)));
  std::int64_t first = 0;
  for (const Chunk& chunk : chunks) {
    at::Tensor o = orthogonal.narrow(0, first, chunk.weight.size(0));
    first += chunk.weight.size(0);
    if (chunk.second.defined()) {
      const at::Tensor mean = o.square().mean(rows >= columns ? 2 : 1, true);
      const at::Tensor second = at::lerp(chunk.second, mean, 1 - config_.beta2);
      o = reduce_variance(o, second);
      store(chunk.second, apply, second);
    }
    at::Tensor change = o * scale;
    if (config_.weight_decay > 0) change = change + chunk.weight * decay * (o * chunk.weight).ge(0);
    store(chunk.weight, apply, chunk.weight - change);
    if (chunk.copy.defined()) at::Tensor(chunk.copy).copy_(chunk.weight);
  }
}

}  // namespace switchyard
