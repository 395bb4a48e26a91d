#include "optim/muon.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace switchyard {
namespace {

// (a, b, c) of X <- a X + b (X X') X + c (X X')^2 X: degree 5, cushion 2, safety factor 1.02 folded in.
constexpr std::array<std::array<double, 3>, 5> kPolarExpress = {{
    {8.156554524902461, -22.48329292557795, 15.878769915207462},
    {4.042929935166739, -2.808917465908714, 0.5000178451051316},
    {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
    {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
    {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
}};

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

at::Tensor polar_express(const at::Tensor& u, int iterations) {
  const bool tall = u.size(1) > u.size(2);
  at::Tensor x = u / (u.to(at::kFloat).square().sum({1, 2}, true).sqrt() * 1.02 + 1e-6).to(u.scalar_type());
  for (int i = 0; i < iterations; ++i) {
    const auto& [a, b, c] = kPolarExpress[std::min<std::size_t>(i, kPolarExpress.size() - 1)];
    const at::Tensor gram = tall ? at::bmm(x.transpose(1, 2), x) : at::bmm(x, x.transpose(1, 2));
    const at::Tensor poly = at::baddbmm(gram, gram, gram, b, c);
    x = tall ? at::baddbmm(x, x, poly, a) : at::baddbmm(x, poly, x, a);
  }
  return x;
}

Muon::Muon(const std::vector<OwnedSlice>& slices, const MuonConfig& config, at::ScalarType product_dtype)
    : config_(config), product_dtype_(product_dtype) {
  for (const OwnedSlice& slice : slices) add_slice(slice);
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
