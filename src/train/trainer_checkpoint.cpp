// The trainer's save and restore.
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "train/kept_routing.h"
#include "train/load_model.h"
#include "train/trainer.h"

namespace switchyard {
namespace {

// A run folder that holds another run's checkpoints is moved aside: nothing a GPU worked for is overwritten.
void set_aside(const std::string& folder) {
  if (!std::filesystem::exists(folder + "/checkpoints")) return;
  for (int number = 1;; ++number) {
    const std::string target = folder + "." + std::to_string(number);
    if (std::filesystem::exists(target)) continue;
    std::filesystem::rename(folder, target);
    log::info("an earlier run in " + folder + " was moved to " + target + " (use --resume to continue one)");
    return;
  }
}

}  // namespace

void Trainer::restore() {
  std::optional<CheckpointInfo> latest = config_.train.resume ? checkpoints_.latest_valid() : std::nullopt;
  if (config_.train.resume && !latest) log::warn("nothing to resume in " + folder_ + "; starting from step 0");
  if (!latest && !config_.train.init_from.empty()) load_weights_from(config_.train.init_from);
  world_.control().barrier();  // all have read what the main rank may now move: weights of a run in the same folder
  if (world_.is_main()) {
    if (!latest) set_aside(folder_);
    std::filesystem::create_directories(folder_);
    checkpoints_.clean();
    write_file_atomic(tokenizer_path_of_run(folder_), tokenizer_->model());
  }
  world_.control().barrier();
  state_.seed = config_.train.seed;
  if (!latest) return;
  const Snapshot snapshot = load_checkpoint(latest->path);
  copy_weights(model_->store(), snapshot.weights, latest->path);
  std::map<std::string, at::Tensor> optimizer(snapshot.optimizer.begin(), snapshot.optimizer.end());
  for (const OptimizerState& state : optimizer_->states()) {
    const auto found = optimizer.find(state.slice.parameter->name + "." + state.kind);
    if (found == optimizer.end())
      throw RunError(latest->path + " has no optimizer state " + state.slice.parameter->name + "." + state.kind);
    at::Tensor(state.values).copy_(DataParallel::slice_of(found->second, state.slice));
  }
  restore_kept(*model_, snapshot.routing, world_.is_main(), latest->path);
  state_ = RunState::from_json(snapshot.state_json);
  model_->set_step(state_.step);
  collapse_.restore(state_.collapse);
  loader_->check_resumable(state_.loader);
  scalars_->applied.fill_(state_.applied_steps);
  scalars_->skipped.fill_(state_.skipped_steps);
  scalars_->skipped_in_a_row.fill_(state_.skipped_in_a_row);
  saved_step_ = state_.step;
  log::info(format("resumed %s at step %lld", latest->path.c_str(), static_cast<long long>(state_.step)));
}

void Trainer::load_weights_from(const std::string& path) {
  const std::string checkpoint = find_checkpoint(path);
  copy_weights(model_->store(), load_weights(checkpoint), checkpoint);
  restore_biases(*model_, load_routing(checkpoint), checkpoint);
  log::info("weights from " + checkpoint);
}

void Trainer::save(std::int64_t step) {
  if (saved_step_ == step) return;
  if (config_.moe.use_moe && config_.router.force_balanced) {
    log::info("no checkpoint: router.force_balanced = true is a benchmark, its weights are not a trained model's");
    saved_step_ = step;
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  void* stream = current_stream_of(device_.index());
  parallel_->gather_masters(stream);
  NamedTensors optimizer = parallel_->gather_states(optimizer_->states(), stream);
  NamedTensors routing = gather_kept(*model_, world_.control());
  state_.applied_steps = scalars_->applied.item<std::int64_t>();
  state_.skipped_steps = scalars_->skipped.item<std::int64_t>();
  state_.skipped_in_a_row = scalars_->skipped_in_a_row.item<std::int64_t>();
  state_.loader = loader_->state(step * micro_batches_ * world_.size());
  state_.world_size = world_.size();
  state_.collapse = collapse_.state();
  if (world_.is_main()) {
    Snapshot snapshot;
    for (const auto& parameter : model_->store().all())
      snapshot.weights.emplace_back(parameter->name, parameter->master);
    snapshot.optimizer = std::move(optimizer);
    snapshot.routing = std::move(routing);
    snapshot.state_json = state_.to_json();
    snapshot.given_config_json = resolved_.given_json();
    snapshot.resolved_config_json = resolved_.resolved_json();
    const auto loss = evaluated_step_ == step ? std::optional<double>(last_evaluation_.loss) : std::nullopt;
    const std::string path = checkpoints_.save(step, snapshot, loss);
    log::info("saved " + path);
  }
  saved_step_ = step;
  world_.control().barrier();
  interval_start_ += std::chrono::steady_clock::now() - start;
}

}  // namespace switchyard
