#include "ops/parameter.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "base/philox.h"

namespace switchyard {
namespace {

std::int64_t product(const std::vector<std::int64_t>& shape) {
  std::int64_t result = 1;
  for (const std::int64_t size : shape) result *= size;
  return result;
}

// Element i of a parameter's initial values: four words of Philox serve four neighbours.
void fill(float* values, std::int64_t count, std::uint64_t key, const Init& init) {
  for (std::int64_t i = 0; i < count; i += 4) {
    const Words4 words = philox(key, static_cast<std::uint64_t>(i / 4), 0);
    const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
    for (int j = 0; j < 4 && i + j < count; ++j) {
      if (init.kind == Init::Kind::kUniform) {
        values[i + j] = static_cast<float>(init.scale * (2.0 * to_uniform(word[j]) - 1.0));
      } else {  // Box-Muller, in double: the two halves of a pair share their words
        const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(to_uniform(word[j & 2]))));
        const double angle = 2.0 * M_PI * to_uniform(word[(j & 2) + 1]);
        values[i + j] = static_cast<float>(init.scale * radius * (j & 1 ? std::sin(angle) : std::cos(angle)));
      }
    }
  }
}

class Attach : public torch::autograd::Function<Attach> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& compute, const Parameter* parameter) {
    context->saved_data["parameter"] = reinterpret_cast<std::int64_t>(parameter);
    return compute.view_as(compute);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto* parameter = reinterpret_cast<const Parameter*>(context->saved_data["parameter"].toInt());
    parameter->grad.add_(grads[0]);
    parameter->grad_added();
    return {Tensor(), Tensor()};
  }
};

}  // namespace

const char* to_string(ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kTokenEmbedding:
      return "token embedding";
    case ParameterKind::kValueEmbedding:
      return "value embeddings";
    case ParameterKind::kHead:
      return "head";
    case ParameterKind::kAttention:
      return "attention";
    case ParameterKind::kMlp:
      return "dense mlp";
    case ParameterKind::kRouter:
      return "router";
    case ParameterKind::kRouterVector:
      return "router vectors";
    case ParameterKind::kExpert:
      return "experts";
    case ParameterKind::kSharedExpert:
      return "shared experts";
    case ParameterKind::kValueGate:
      return "value gates";
    case ParameterKind::kKeepScalar:
      return "residual scalars";
    case ParameterKind::kAgainScalar:
      return "x0 scalars";
    case ParameterKind::kNorm:
      return "norms";
    case ParameterKind::kMixScalar:
      return "mixing scalars";
    case ParameterKind::kInlController:
      return "INL controllers";
    case ParameterKind::kInlVector:
      return "INL vectors";
  }
  return "?";
}

bool computes_in_fp32(ParameterKind kind) {
  return kind == ParameterKind::kRouter || kind == ParameterKind::kRouterVector || kind == ParameterKind::kKeepScalar ||
         kind == ParameterKind::kAgainScalar || kind == ParameterKind::kNorm || kind == ParameterKind::kMixScalar ||
         kind == ParameterKind::kInlVector;
}

Tensor drawn(const std::vector<std::int64_t>& shape, const Init& init, std::uint64_t key) {
  if (init.kind == Init::Kind::kConstant) return at::full(shape, init.scale, at::kFloat);
  Tensor values = at::empty(shape, at::kFloat);
  const bool orthogonal = init.kind == Init::Kind::kOrthogonalRows;
  fill(values.data_ptr<float>(), values.numel(), key, orthogonal ? Init{Init::Kind::kNormal, 1.0} : init);
  if (!orthogonal) return values;
  const Tensor q = std::get<0>(at::linalg_qr(values.to(at::kDouble).t(), "reduced"));
  return q.t().mul(init.scale).to(at::kFloat);
}

Parameter::Parameter(std::string name_, ParameterKind kind_, std::vector<std::int64_t> shape_, Init init_,
                     std::vector<std::int64_t> row_split_)
    : name(std::move(name_)),
      kind(kind_),
      shape(std::move(shape_)),
      init(init_),
      row_split(row_split_.empty() && shape.size() >= 2 ? std::vector<std::int64_t>{shape[shape.size() - 2]}
                                                        : std::move(row_split_)) {}

std::int64_t Parameter::count() const { return product(shape); }

std::int64_t Parameter::logical_matrices() const {
  return (shape.size() == 3 ? shape[0] : 1) * static_cast<std::int64_t>(row_split.size());
}

thread_local int UsesAreCounted::depth_ = 0;

void Parameter::use() const {
  if (!UsesAreCounted::here()) ++pending_;
}

void Parameter::grad_added() const {
  if (--pending_ == 0 && on_ready) on_ready(*this);
}

Parameter& ParameterStore::add(std::string name, ParameterKind kind, std::vector<std::int64_t> shape, Init init,
                               std::vector<std::int64_t> row_split) {
  SWITCHYARD_ASSERT(find(name) == nullptr, "parameter declared twice: " + name);
  parameters_.push_back(
      std::make_unique<Parameter>(std::move(name), kind, std::move(shape), init, std::move(row_split)));
  return *parameters_.back();
}

Parameter* ParameterStore::find(const std::string& name) const {
  for (const auto& parameter : parameters_)
    if (parameter->name == name) return parameter.get();
  return nullptr;
}

Placement ParameterStore::contiguous() const {
  Placement placement;
  for (const auto& parameter : parameters_) {
    placement.offset.push_back(placement.total);
    placement.total += (parameter->count() + 63) / 64 * 64;
  }
  return placement;
}

void ParameterStore::allocate(at::Device device, at::ScalarType compute_dtype, const Placement& placement,
                              at::ScalarType master_dtype) {
  const auto options = at::TensorOptions().device(device);
  flat_master = at::zeros({placement.total}, options.dtype(master_dtype));
  flat_grad = at::zeros({placement.total}, options.dtype(master_dtype));
  flat_compute = compute_dtype == master_dtype ? Tensor() : at::zeros({placement.total}, options.dtype(compute_dtype));
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& parameter = *parameters_[i];
    const auto slice = [&](const Tensor& flat) {
      return flat.narrow(0, placement.offset[i], parameter.count()).view(parameter.shape);
    };
    parameter.master = slice(flat_master);
    parameter.grad = slice(flat_grad);
    const bool copied = flat_compute.defined() && !computes_in_fp32(parameter.kind);
    parameter.compute = (copied ? slice(flat_compute) : parameter.master).detach().requires_grad_(true);
  }
}

void ParameterStore::initialize(std::uint64_t seed) {
  at::NoGradGuard no_grad;
  for (const auto& parameter : parameters_) {
    if (parameter->init.kind == Init::Kind::kConstant) {
      parameter->master.fill_(parameter->init.scale);
      continue;
    }
    if (parameter->init.kind == Init::Kind::kPieces) {
      const std::vector<double>& pieces = parameter->init.pieces;
      const auto parts = parameter->master.chunk(static_cast<std::int64_t>(pieces.size()), 0);
      for (std::size_t i = 0; i < pieces.size(); ++i) parts[i].fill_(pieces[i]);
      continue;
    }
    parameter->master.copy_(drawn(parameter->shape, parameter->init, mix_key(seed, fnv1a(parameter->name))));
  }
  refresh_copies();
}

void ParameterStore::refresh_copies() {
  at::NoGradGuard no_grad;
  if (flat_compute.defined()) flat_compute.copy_(flat_master);
}

void ParameterStore::zero_grad() {
  flat_grad.zero_();
  for (const auto& parameter : parameters_) parameter->forget_uses();
}

Tensor attach(const Parameter& parameter) {
  if (at::GradMode::is_enabled()) parameter.use();
  return Attach::apply(parameter.compute, &parameter);
}

}  // namespace switchyard
