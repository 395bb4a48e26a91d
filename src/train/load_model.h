// A trained model from its checkpoint, ready to be asked: for sample, evaluate and export.
#pragma once

#include <memory>
#include <optional>

#include "config/command_line.h"
#include "data/tokenizer.h"
#include "model/gpt.h"
#include "train/device.h"

namespace switchyard {

struct LoadedModel {
  ResolvedConfig resolved;
  ComputeDevice device;
  std::string checkpoint;  // the step folder
  std::unique_ptr<Gpt> model;
  std::unique_ptr<Tokenizer> tokenizer;  // the run's own
};

// The model stands at the checkpoint's step, with its routers' biases. path: a run folder (its best checkpoint, else
// the newest) or a step folder. device: auto, cpu, cuda. Weights are read in the device's compute type; fp8 training
// evaluates in bf16. ConfigError or RunError says what is missing.
LoadedModel load_model(const std::string& path, const std::string& device);

// The same as an app's command line asks, by its own options --checkpoint PATH and --device.
LoadedModel load_model(const CommandLine& line);
inline constexpr const char* kNoKeys = "a trained model's config cannot be changed";

// What a resumed run goes on with: the newest valid checkpoint, and the keys that one was given, then the command
// line's. Nothing where the run's folder holds no checkpoint.
struct ResumedRun {
  ResolvedConfig resolved;
  std::string checkpoint;
};
std::optional<ResumedRun> resumed_run(const ResolvedConfig& resolved, const Overrides& overrides);

// Where a run keeps its tokenizer, so that a run folder is complete by itself.
std::string tokenizer_path_of_run(const std::string& run_folder);
std::string run_of(const std::string& checkpoint);  // the run folder of a step folder

// Masters and copies from named tensors. RunError names a tensor that is missing or has another shape.
void copy_weights(ParameterStore& store, const std::vector<std::pair<std::string, at::Tensor>>& weights,
                  const std::string& from);

}  // namespace switchyard
