#include "train/trainer.h"

#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "comm/stop_signal.h"
#include "model/accounting.h"
#include "model/layer_rules.h"
#include "optim/parameter_groups.h"
#include "optim/schedule.h"
#include "train/generate.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Whether steps become CUDA graphs. What cannot be kept beside cuda_graph = true, the config's rules refuse.
bool captures(const Config& config, const ComputeDevice& device) {
  if (!device.device.is_cuda() || config.train.cuda_graph == "false") return false;
  const char* reason = config.train.debug == "tensors" ? "train.debug = tensors copies them to the host"
                       : config.moe.use_moe && config.moe.backend == "reference"
                           ? "moe.backend = reference reads counts on the host"
                           : nullptr;
  if (reason) log::info(format("the step runs without CUDA graphs: %s", reason));
  return !reason;
}

}  // namespace

Trainer::Trainer(const ResolvedConfig& resolved, World& world, const ComputeDevice& device, const PreparedData& data)
    : resolved_(resolved),
      config_(resolved_.config),
      world_(world),
      device_(device),
      folder_(config_.train.out),
      precision_(config_, device_),
      checkpoints_(folder_, config_.train.keep_checkpoints),
      collapse_(config_.router.top_k, config_.log.dead_window),
      timer_(device_.device),
      started_(Clock::now()) {
  install_stop_signals();
  const Accounting size = account(config_);
  flops_per_token_ = static_cast<double>(size.flops_per_token);
  averaging_flops_per_token_ = static_cast<double>(size.averaging_flops_per_token);
  steps_ = resolve_steps(config_.train, {size.scaling_parameters, flops_per_token_});
  micro_batches_ =
      config_.train.batch_tokens / (std::int64_t{config_.train.micro_batch} * config_.model.seq_len * world.size());
  build_model();
  open_text(data);
  restore();
  tell_fp8();
  routing_ = std::make_unique<RoutingReader>(*model_, world_.control());
  prefetcher_ = std::make_unique<Prefetcher>(
      *loader_, MicroBatchSchedule{micro_batches_ * world.size(), world.rank(), world.size()}, state_.step);
  if (world_.is_main()) {
    sinks_.push_back(console_sink(config_.log.routing == "layer"));
    // A checkpoint of step n follows the lines of step n: they stay.
    sinks_.push_back(json_lines_sink(folder_ + "/metrics.jsonl", state_.step == 0 ? 0 : state_.step + 1));
  }
}

Trainer::~Trainer() = default;

void Trainer::build_model() {
  if (world_.size() > 1)
    collectives_ =
        device_.device.is_cuda() ? make_device_collectives(world_, device_.index()) : make_host_collectives(world_);
  model_ = std::make_unique<Gpt>(config_, precision_.policy());
  parallel_ = std::make_unique<DataParallel>(model_->store(), config_, collectives_.get());
  model_->store().allocate(device_.device, device_.activation_dtype, parallel_->placement());
  model_->store().initialize(static_cast<std::uint64_t>(config_.train.seed));
  model_->prepare(device_.device, device_.activation_dtype);
  parallel_->attach();
  scalars_ = std::make_unique<StepScalars>(device_.device);
  optimizer_ = std::make_unique<Optimizer>(parallel_->owned(), config_);
  const bool captures_step = captures(config_, device_);
  step_ = std::make_unique<TrainStep>(*model_, *parallel_, *optimizer_, *scalars_, config_, device_.device,
                                      micro_batches_, captures_step);
  if (config_.train.debug != "off") {
    watch_ = std::make_unique<ActivationWatch>(config_.model.n_layer, device_.device);
    step_->watch(watch_->watcher());
  }
  if (captures_step && config_.moe.use_moe && config_.moe.warmup_mode == "dense_average" &&
      config_.moe.warmup_steps > 0)
    log::info(format("the first %d steps run without CUDA graphs: moe.warmup_mode = dense_average runs every expert",
                     config_.moe.warmup_steps));
  log::info(group_table(model_->store(), config_));
}

void Trainer::open_text(const PreparedData& data) {
  tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(data.tokenizer_path));
  const auto open = [&](const std::vector<std::string>& paths) {
    return std::make_shared<const ShardSet>(paths, data.tokenizer_hash, config_.model.vocab_size);
  };
  loader_ = std::make_unique<Loader>(
      open(data.train_shards),
      LoaderOptions{config_.train.micro_batch, config_.model.seq_len, static_cast<std::uint64_t>(config_.data.seed)});
  if (data.heldout_shards.empty()) return log::info("no text is held out: there is no evaluation");
  held_out_ = std::make_unique<HeldOut>(open(data.heldout_shards), config_.train.micro_batch, config_.model.seq_len,
                                        tokenizer_->bytes_of(), tokenizer_->bos(), config_.train.eval_tokens);
}

void Trainer::reset_routers(std::int64_t step) {
  for (const Parameter* parameter : model_->reset_routers(static_cast<std::uint64_t>(config_.train.seed), step))
    optimizer_->forget(*parameter);
  ++state_.resets;
  log::info(format("step %lld: routers start anew (router.reset_interval = %d)", static_cast<long long>(step),
                   config_.router.reset_interval));
}

void Trainer::train_step(std::int64_t step) {
  if (resets_routers(config_, step)) reset_routers(step);
  scalars_->set_schedule(step, learning_rate_factor(config_.optim.schedule, step, steps_),
                         muon_momentum(config_.optim.muon, step), weight_decay_factor(step, steps_));
  model_->set_step(step);
  if (watch_) watch_->keep_tensors(config_.train.debug == "tensors" && reports_after(step + 1));
  timer_.mark(StepTimer::kBegin);
  for (std::int64_t i = 0; i < micro_batches_; ++i) step_->micro_batch(prefetcher_->next(), i);
  timer_.mark(StepTimer::kUpdate);
  step_->update();
  timer_.mark(StepTimer::kEnd);
  state_.step = step + 1;
  state_.tokens += config_.train.batch_tokens;
}

int Trainer::run() {
  if (state_.step >= steps_ && !state_.misses_evaluation) return nothing_left();
  bool stopped = false;
  if (state_.step == 0) {
    stopped = !evaluate_now(0);
    state_.first_bits_per_byte = last_evaluation_.bits_per_byte;
  } else if (state_.misses_evaluation && state_.step < steps_) {
    stopped = !evaluate_now(state_.step);
  }
  interval_start_ = Clock::now();
  interval_start_step_ = state_.step;
  const std::int64_t first = state_.step;
  StepProfile profile(world_.is_main() ? config_.train.profile_step : 0, device_.index(), folder_);
  for (std::int64_t step = state_.step; step < steps_ && !stopped; ++step) {
    profile.before(step + 1);
    train_step(step);
    interval_start_ += profile.after(step + 1);
    if (step == first) {
      synchronize_device(device_.index());
      log::info(format("first step done %.1f s after the trainer started", seconds_since(started_)));
    }
    const std::int64_t done = step + 1;
    if (reports_after(done)) {
      report(done);
    } else {
      show_progress(done);
    }
    if (due(done, config_.train.eval_every) && done < steps_) stopped = !evaluate_now(done);
    if (!stopped && due(done, config_.train.sample_every) && done < steps_) sample_now(done);
    if (!stopped && due(done, config_.train.checkpoint_every) && done < steps_) save(done);
    stopped = stopped || world_.control().any(stop_signal_received());
  }
  const bool trained = state_.step >= steps_;
  if (stopped && !trained && state_.step > 0)
    log::info(format("stop asked for: saving at step %lld", static_cast<long long>(state_.step)));
  const bool finished = trained && evaluate_now(state_.step);
  if (state_.step > 0) save(state_.step);
  final_report(finished);
  return 0;
}

bool Trainer::evaluate_now(std::int64_t step) {
  if (!held_out_) return true;
  const Clock::time_point start = Clock::now();
  model_->set_step(state_.step);
  const auto evaluation = evaluate(*model_, *held_out_, device_.device, world_.control(), stop_signal_received);
  if (std::exchange(state_.misses_evaluation, !evaluation)) saved_step_ = -1;  // what was saved knows nothing of it
  if (!evaluation) return false;
  last_evaluation_ = *evaluation;
  evaluated_step_ = step;
  EvalMetrics metrics;
  metrics.step = step;
  metrics.loss = last_evaluation_.loss;
  metrics.bits_per_byte = last_evaluation_.bits_per_byte;
  metrics.tokens = last_evaluation_.targets;
  metrics.best = state_.best_held_out_loss == 0 || metrics.loss < state_.best_held_out_loss;
  metrics.seconds = seconds_since(start);
  if (metrics.best) state_.best_held_out_loss = metrics.loss;
  for (const auto& sink : sinks_) sink->eval(metrics);
  interval_start_ += Clock::now() - start;  // evaluation is not training time
  return true;
}

void Trainer::sample_now(std::int64_t step) {
  if (!world_.is_main() || config_.train.sample_tokens == 0) return;
  const Clock::time_point start = Clock::now();
  model_->set_step(state_.step);
  SamplingOptions options;
  options.max_tokens = config_.train.sample_tokens;
  options.seed = static_cast<std::uint64_t>(config_.train.seed) + static_cast<std::uint64_t>(step);
  const auto text = generate(*model_, *tokenizer_, config_.train.sample_prompt, 1, options, device_.device);
  log::info(format("sample at step %lld:\n", static_cast<long long>(step)) + text[0]);
  interval_start_ += Clock::now() - start;
}

}  // namespace switchyard
