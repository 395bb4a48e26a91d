#include "train/load_model.h"

#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "config/derive.h"
#include "config/load.h"
#include "config/validate.h"
#include "train/checkpoint.h"
#include "train/kept_routing.h"
#include "train/trainer.h"

namespace switchyard {

std::string tokenizer_path_of_run(const std::string& run_folder) { return run_folder + "/tokenizer.model"; }

std::string run_of(const std::string& checkpoint) {
  return std::filesystem::path(checkpoint).parent_path().parent_path().string();
}

void copy_weights(ParameterStore& store, const std::vector<std::pair<std::string, at::Tensor>>& weights,
                  const std::string& from) {
  at::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> by_name(weights.begin(), weights.end());
  for (const auto& parameter : store.all()) {
    const auto found = by_name.find(parameter->name);
    if (found == by_name.end())
      throw RunError(from + " has no tensor " + parameter->name + "; it was trained with another config");
    if (found->second.sizes() != at::IntArrayRef(parameter->shape))
      throw RunError(from + ": tensor " + parameter->name + " has another shape than this config's");
    parameter->master.copy_(found->second);
  }
  store.refresh_copies();
}

LoadedModel load_model(const std::string& path, const std::string& device) {
  LoadedModel loaded;
  loaded.checkpoint = find_checkpoint(path);
  loaded.resolved = parse_config(load_config_json(loaded.checkpoint, /*resolved=*/false), loaded.checkpoint, {});
  Config& config = loaded.resolved.config;
  config.device = device;
  if (config.precision.mode == "fp8") config.precision.mode = "bf16";
  if (config.moe.backend != "reference") config.moe.backend = "auto";  // of the device that trained it
  settle_device(loaded.resolved, cuda_available());
  for (const std::string& note : validate_model(loaded.resolved)) log::debug(note);
  loaded.device = choose_device(config, 0);
  loaded.model = std::make_unique<Gpt>(config);
  ParameterStore& store = loaded.model->store();
  store.allocate(loaded.device.device, loaded.device.activation_dtype, store.contiguous());
  copy_weights(store, load_weights(loaded.checkpoint), loaded.checkpoint);
  loaded.model->prepare(loaded.device.device, loaded.device.activation_dtype);
  restore_kept(*loaded.model, load_routing(loaded.checkpoint), /*first_rank=*/true, loaded.checkpoint);
  loaded.model->set_step(RunState::from_json(load_state_json(loaded.checkpoint)).step);
  loaded.tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(tokenizer_path_of_run(run_of(loaded.checkpoint))));
  return loaded;
}

LoadedModel load_model(const CommandLine& line) {
  const std::string& checkpoint = line.own.at("checkpoint");
  if (checkpoint.empty()) throw ConfigError("--checkpoint is missing; name a run folder such as runs/out/quickstart");
  ResolvedConfig device;
  device.set("device", line.own.at("device"));  // or an error that lists the choices
  return load_model(checkpoint, device.config.device);
}

std::optional<ResumedRun> resumed_run(const ResolvedConfig& resolved, const Overrides& overrides) {
  const CheckpointFolder checkpoints(resolved.config.train.out, resolved.config.train.keep_checkpoints);
  const auto latest = checkpoints.latest_valid();
  if (!latest) return std::nullopt;
  ResumedRun run{parse_config(load_config_json(latest->path, /*resolved=*/false), latest->path, overrides),
                 latest->path};
  run.resolved.config.train.resume = true;  // where the config file asked for it
  return run;
}

}  // namespace switchyard
