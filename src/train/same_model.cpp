#include "train/same_model.h"

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "config/field.h"
#include "config/load.h"
#include "model/gpt.h"
#include "train/checkpoint.h"
#include "train/safetensors_header.h"

namespace switchyard {
namespace {

// Keys that decide which tensors there are, and how large; those that follow from others come after them.
constexpr const char* kShapeKeys[] = {"model.n_layer",
                                      "model.n_embd",
                                      "model.vocab_size",
                                      "model.head_dim",
                                      "model.n_head",
                                      "model.n_kv_head",
                                      "model.mlp",
                                      "model.ffn_hidden",
                                      "model.norm_weight",
                                      "model.qk_norm_weight",
                                      "model.value_embeds",
                                      "model.value_gate_channels",
                                      "model.tie_head",
                                      "model.resid_scalars",
                                      "model.inl.enabled",
                                      "model.inl.shared",
                                      "model.inl.mode",
                                      "moe.use_moe",
                                      "moe.n_experts",
                                      "moe.moe_freq",
                                      "moe.first_dense",
                                      "moe.d_expert",
                                      "moe.n_shared_experts",
                                      "moe.d_shared",
                                      "moe.null_expert",
                                      "moe.zero_experts.zero",
                                      "moe.zero_experts.copy",
                                      "moe.zero_experts.constant",
                                      "moe.token_importance",
                                      "moe.flexible_ffn",
                                      "router.type",
                                      "router.semantic",
                                      "router.semantic_dim"};

std::string value_of(const Config& config, const std::string& key) {
  for (const Field& field : fields_of(config))
    if (field.key == key) return field.text();
  SWITCHYARD_ASSERT(false, "no such key: " + key);
  return "";
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const std::int64_t size : shape) sizes.push_back(std::to_string(size));
  return "[" + join(sizes, ", ") + "]";
}

[[noreturn]] void refuse(const Config& config, const std::string& checkpoint, const std::string& tensor) {
  const Config theirs = parse_config(load_config_json(checkpoint, /*resolved=*/true), checkpoint, {}).config;
  for (const char* key : kShapeKeys) {
    const std::string ours = value_of(config, key), was = value_of(theirs, key);
    if (ours == was) continue;
    throw ConfigError(std::string(key) + " = " + ours + ", but " + checkpoint + " was trained with " + was + " (" +
                      tensor + "); its model is that of --config " + checkpoint + "/given_config.json");
  }
  throw ConfigError(checkpoint + " holds another model than this config's (" + tensor + "); its model is that of " +
                    "--config " + checkpoint + "/given_config.json");
}

}  // namespace

void check_same_model(const Config& config, const std::string& checkpoint) {
  const std::string path = checkpoint + "/weights.safetensors";
  const MappedFile file(path);
  std::size_t header_bytes = 0;
  const SafetensorsHeader header = decode_header(path, file.data(), file.size(), header_bytes);
  Gpt model(config);
  for (const auto& parameter : model.store().all()) {
    const auto found = std::find_if(header.tensors.begin(), header.tensors.end(),
                                    [&](const TensorEntry& entry) { return entry.name == parameter->name; });
    if (found == header.tensors.end()) refuse(config, checkpoint, "it has no tensor " + parameter->name);
    if (found->shape != parameter->shape)
      refuse(config, checkpoint,
             "its tensor " + parameter->name + " is " + shape_text(found->shape) + ", not " +
                 shape_text(parameter->shape));
  }
}

}  // namespace switchyard
