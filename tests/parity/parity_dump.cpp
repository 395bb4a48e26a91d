// Writes down what this program computes, for the Python model to compute again (compare.py):
//   parity_dump --config FILE --out FOLDER [--zero_router] [--at_step N] [--any.key value ...]
// The model is the config's with every weight moved away from its initial value, so that no gradient is 0; the steps
// run through the trainer's own TrainStep. In FOLDER, all values fp32:
//   config.json                every key, resolved
//   weights.safetensors        before anything ran
//   tokens.safetensors         inputs, targets int64 [M, B, S]; step s takes micro-batches s*A .. s*A+A-1, modulo M
//   forward.safetensors        of micro-batch 0 at step N: logits [B, S, V], loss, aux (sum of the weighted auxiliary
//   losses) gradients.safetensors      of micro-batch 0 gradients_step.safetensors of the first step's A micro-batches,
//   their mean weights_after.safetensors  after the first step reset_N.safetensors        what routers were reset to at
//   the start of step N, for each N where they were steps.json                 {"loss": [a value a step]}
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/run_app.h"
#include "base/text.h"
#include "config/command_line.h"
#include "config/derive.h"
#include "model/layer_rules.h"
#include "optim/schedule.h"
#include "train/safetensors.h"
#include "train/train_step.h"

using namespace switchyard;

namespace {

constexpr std::int64_t kMicroBatches = 8;

const std::vector<AppOption> kOptions = {
    {"out", "FOLDER", "", "where everything is written"},
    {"zero_router", "", "false", "leave routers at 0, so that all experts tie"},
    {"at_step", "N", "0", "step of the micro-batch that is taken by itself; the steps begin at 0"},
};

// A CPU world of one: model, optimizer and step, as the trainer builds them.
struct Run {
  const Config& config;
  std::int64_t accumulation;
  Gpt model;
  DataParallel parallel;
  StepScalars scalars{at::kCPU};
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<TrainStep> step;

  explicit Run(const Config& c)
      : config(c),
        accumulation(c.train.batch_tokens / (std::int64_t{c.train.micro_batch} * c.model.seq_len)),
        model(c),
        parallel(model.store(), c, nullptr) {
    model.store().allocate(at::kCPU, at::kFloat, parallel.placement());
    model.store().initialize(static_cast<std::uint64_t>(c.train.seed));
    model.prepare(at::kCPU, at::kFloat);
    parallel.attach();
    optimizer = std::make_unique<Optimizer>(parallel.owned(), c);
    step =
        std::make_unique<TrainStep>(model, parallel, *optimizer, scalars, c, at::kCPU, accumulation, /*capture=*/false);
  }
};

// Matrices move by about their usual spread, vectors and scalars by a tenth.
void perturb(ParameterStore& store, bool zero_router) {
  for (const auto& parameter : store.all()) {
    if (parameter->kind == ParameterKind::kRouter && zero_router) continue;
    const bool matrix = parameter->shape.size() > 1;
    const double spread = matrix ? 0.7 / std::sqrt(static_cast<double>(parameter->shape.back())) : 0.1;
    parameter->master.add_(at::randn(parameter->shape), spread);
  }
  store.refresh_copies();
}

NamedTensors copies(const ParameterStore& store, Tensor Parameter::*which) {
  NamedTensors tensors;
  for (const auto& parameter : store.all())
    tensors.emplace_back(parameter->name, ((*parameter).*which).detach().clone());
  return tensors;
}

std::vector<Batch> random_text(const Config& config, const std::string& folder) {
  const std::int64_t sequences = config.train.micro_batch, length = config.model.seq_len;
  const at::Tensor text = at::randint(config.model.vocab_size, {kMicroBatches, sequences, length + 1}, at::kLong);
  const at::Tensor inputs = text.narrow(2, 0, length).contiguous(), targets = text.narrow(2, 1, length).contiguous();
  write_safetensors(folder + "/tokens.safetensors", {{"inputs", inputs}, {"targets", targets}});
  std::vector<Batch> batches(kMicroBatches);
  const auto values = [&](const at::Tensor& all, std::int64_t m) {
    const at::Tensor one = all[m].contiguous();
    return std::vector<std::int32_t>(one.data_ptr<std::int64_t>(), one.data_ptr<std::int64_t>() + one.numel());
  };
  for (std::int64_t m = 0; m < kMicroBatches; ++m) {
    batches[m].inputs = values(inputs, m);
    batches[m].targets = values(targets, m);
    for (std::int64_t s = 0; s < sequences; ++s) batches[m].windows.push_back(m * sequences + s);
  }
  return batches;
}

at::Tensor longs(const std::vector<std::int32_t>& values) { return at::tensor(values, at::kLong); }

void dump_one_micro_batch(Run& run, const Batch& batch, const std::string& folder) {
  const ModelConfig& model = run.config.model;
  StepContext context;
  context.training = true;
  context.seq_len = model.seq_len;
  const at::Tensor windows = at::arange(run.config.train.micro_batch, at::kLong);
  context.dropout = {static_cast<std::uint64_t>(run.config.train.seed), run.scalars.step, windows, model.seq_len};
  const at::Tensor tokens = longs(batch.inputs);
  const at::Tensor logits =
      run.model.logits(tokens, context).view({run.config.train.micro_batch, model.seq_len, model.vocab_size});
  run.model.routing_totals().zero();
  const ModelOutput output = run.model.forward(tokens, longs(batch.targets), context);
  torch::autograd::backward({output.total}, {});
  write_safetensors(
      folder + "/forward.safetensors",
      {{"logits", logits}, {"loss", output.nll_T.mean().reshape({1})}, {"aux", output.auxiliary.reshape({1})}});
  write_safetensors(folder + "/gradients.safetensors", copies(run.model.store(), &Parameter::grad));
  run.model.store().zero_grad();
  const at::Tensor& counted = run.model.routing_state().bias_count_LE;
  if (counted.defined()) counted.zero_();  // it belongs to no step
}

double one_step(Run& run, const std::vector<Batch>& batches, std::int64_t step, const std::string& folder) {
  const OptimConfig& optim = run.config.optim;
  const std::int64_t steps = run.config.train.steps;
  if (resets_routers(run.config, step)) {
    NamedTensors fresh;
    for (const Parameter* parameter :
         run.model.reset_routers(static_cast<std::uint64_t>(run.config.train.seed), step)) {
      run.optimizer->forget(*parameter);
      fresh.emplace_back(parameter->name, parameter->master.detach().clone());
    }
    write_safetensors(folder + format("/reset_%lld.safetensors", static_cast<long long>(step)), fresh);
  }
  run.model.set_step(step);
  run.scalars.set_schedule(step, learning_rate_factor(optim.schedule, step, steps), muon_momentum(optim.muon, step),
                           weight_decay_factor(step, steps));
  for (std::int64_t i = 0; i < run.accumulation; ++i)
    run.step->micro_batch(batches[(step * run.accumulation + i) % kMicroBatches], i);
  if (step == 0) write_safetensors(folder + "/gradients_step.safetensors", copies(run.model.store(), &Parameter::grad));
  run.step->update();
  if (step == 0)
    write_safetensors(folder + "/weights_after.safetensors", copies(run.model.store(), &Parameter::master));
  const double loss = run.step->interval().loss.item<float>();
  run.step->interval().loss.zero_();
  return loss;
}

int dump(const CommandLine& line) {
  const std::string folder = line.own.at("out");
  if (folder.empty()) throw ConfigError("--out is missing: give the folder to write to");
  ResolvedConfig resolved = load_config(line.config, line.overrides, ".");
  settle_device(resolved, /*cuda_present=*/false);
  derive(resolved, /*world_size=*/1);
  std::filesystem::create_directories(folder);
  write_file_atomic(folder + "/config.json", resolved.resolved_json());

  Run run(resolved.config);
  at::manual_seed(static_cast<std::uint64_t>(resolved.config.train.seed));
  perturb(run.model.store(), line.own.at("zero_router") == "true");
  write_safetensors(folder + "/weights.safetensors", copies(run.model.store(), &Parameter::master));
  const std::vector<Batch> batches = random_text(resolved.config, folder);
  const std::int64_t at_step = std::stoll(line.own.at("at_step"));
  run.model.set_step(at_step);
  run.scalars.step.fill_(at_step);
  dump_one_micro_batch(run, batches[0], folder);
  std::vector<std::string> losses;
  for (std::int64_t step = 0; step < resolved.config.train.steps; ++step)
    losses.push_back(format("%.9g", one_step(run, batches, step, folder)));
  write_file_atomic(folder + "/steps.json", "{\"loss\": [" + join(losses, ", ") + "]}\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_app([&] { return dump(parse_command_line(argc, argv, "parity_dump", kOptions)); });
}
