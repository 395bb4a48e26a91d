#include "train/kept_routing.h"

#include <map>

#include "base/error.h"
#include "base/log.h"

namespace switchyard {
namespace {

using Join = KeptTensor::Join;

const at::Tensor* find(const NamedTensors& kept, const std::string& name) {
  for (const auto& [key, tensor] : kept)
    if (key == name) return &tensor;
  return nullptr;
}

void copy(const KeptTensor& target, const at::Tensor& saved, const std::string& from) {
  if (saved.sizes() != target.values.sizes() || saved.scalar_type() != target.values.scalar_type())
    throw RunError(from + ": tensor " + target.name + " has another shape or type than this config's");
  at::Tensor(target.values).copy_(saved);
}

}  // namespace

NamedTensors gather_kept(const Gpt& model, Control& control) {
  NamedTensors whole;
  for (const KeptTensor& kept : model.kept_tensors()) {
    at::Tensor values = kept.values.cpu().clone();
    if (kept.join != Join::kSame) {
      const std::int64_t* data = values.data_ptr<std::int64_t>();
      const std::vector<std::int64_t> mine(data, data + values.numel());
      const auto joined = kept.join == Join::kSum ? control.sum(mine) : control.max(mine);
      values = at::tensor(joined, at::kLong).view(values.sizes());
    }
    whole.emplace_back(kept.name, values);
  }
  return whole;
}

void restore_kept(Gpt& model, const NamedTensors& kept, bool first_rank, const std::string& from) {
  std::string missing;
  for (const KeptTensor& target : model.kept_tensors()) {
    const at::Tensor* saved = find(kept, target.name);
    if (!saved) {
      missing += (missing.empty() ? "" : ", ") + target.name;
    } else if (target.join != Join::kSum || first_rank) {
      copy(target, *saved, from);
    }
  }
  if (!missing.empty())
    log::warn(from + " was saved without " + missing + ", which this config keeps: they start as in a new run");
}

void restore_biases(Gpt& model, const NamedTensors& kept, const std::string& from) {
  for (const KeptTensor& target : model.kept_tensors()) {
    const at::Tensor* saved = find(kept, target.name);
    if (saved && target.join == Join::kSame) copy(target, *saved, from);
  }
}

}  // namespace switchyard
