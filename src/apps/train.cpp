// train: from a config to a trained model.
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/run_app.h"
#include "comm/world.h"
#include "config/command_line.h"
#include "config/derive.h"
#include "config/explain.h"
#include "config/validate.h"
#include "model/memory_estimate.h"
#include "train/dry_run.h"
#include "train/load_model.h"
#include "train/memory_advice.h"
#include "train/trainer.h"

using namespace switchyard;

namespace {

constexpr const char* kPurpose = "trains GPT models with mixture-of-experts layers";

int print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  if (text.empty() || text.back() != '\n') std::fputs("\n", stdout);
  return kExitOk;
}

ResolvedConfig read_config(const CommandLine& line) {
  const char* root = std::getenv("SWITCHYARD_ROOT");  // set by ./train: where configs/ lies
  ResolvedConfig resolved = load_config(line.config, line.overrides, root ? root : ".");
  const bool resumes = resolved.config.train.resume;
  std::optional<ResolvedConfig> resumed;
  if (resumes) resumed = resumed_config(resolved, line.overrides);
  if (resumed) resolved = *resumed;
  if (line.config.empty() && !resumed)  // the defaults alone are a model of days, not what anyone meant
    throw ConfigError(resumes
                          ? "--resume: " + run_folder(resolved.config) +
                                " holds no checkpoint; name the run's folder, --train.out FOLDER, or start one with "
                                "--config NAME"
                          : "no --config; e.g. --config quickstart.json");
  settle_device(resolved, cuda_available());
  return resolved;
}

// Prepares the text once a host and makes sure that all ranks read the same.
PreparedData prepare_text(const Config& config, World& world) {
  const PreparedData data = prepare_data(config.data, config.model.vocab_size, config.model.seq_len);
  world.control().agree_equal("data",
                              "corpus = " + data.corpus_hash + "\ntokenizer = " + std::to_string(data.tokenizer_hash));
  return data;
}

int train_as_rank(const CommandLine& line, ResolvedConfig& resolved, World& world) {
  for (const std::string& note : validate(resolved, world.size(), line.dry_run)) log::info(note);
  if (!resolved.config.train.init_from.empty())
    find_checkpoint(resolved.config.train.init_from);  // or an error at once
  if (line.dry_run) return world.is_main() ? print(dry_run_report(resolved, world.size())) : kExitOk;

  const auto run = [&] {
    world.control().agree_equal("config", agreed_lines(resolved));
    share_cores(world.local_size());
    const ComputeDevice device = choose_device(resolved.config, world.local_rank());
    const PreparedData data = prepare_text(resolved.config, world);
    return Trainer(resolved, world, device, data).run();
  };
  return with_memory_advice(
      run, [&] { return memory_advice(resolved.config, estimate_memory(resolved.config, world.size())); });
}

int train(const CommandLine& line) {
  ResolvedConfig resolved = read_config(line);
  const auto world = World::join({resolved.config.device == "cuda", resolved.config.parallel.timeout_s});
  log::set_rank(world->rank(), world->size());
  return run_guarded(*world, [&] { return train_as_rank(line, resolved, *world); });
}

}  // namespace

int main(int argc, char** argv) {
  return run_app([&] {
    const CommandLine line = parse_command_line(argc, argv, "train");
    if (line.help) return print(help_text("train", kPurpose));
    if (line.schema) return print(json_schema());
    if (line.option_table) return print(option_table_markdown());
    if (!line.explain.empty()) return print(explain(line.explain));
    return train(line);
  });
}
