// evaluate: a trained model on text: loss, bits per byte, perplexity, how its experts are used.
#include "train/evaluate.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.h"
#include "base/run_app.h"
#include "base/text.h"
#include "comm/world.h"
#include "config/command_line.h"
#include "data/prepare.h"
#include "train/load_model.h"

using namespace switchyard;

namespace {

const std::vector<AppOption> kOptions = {
    {"checkpoint", "PATH", "", "a run folder (its best checkpoint) or a step folder"},
    {"device", "NAME", "auto", "where to compute: auto, cpu or cuda"},
    {"text", "PATHS", "", "files, folders or globs to evaluate on; empty: the run's held-out text"},
};

// The run's own held-out text, or other text cut into tokens by the run's tokenizer.
PreparedData text_for(const LoadedModel& loaded, const std::string& text) {
  DataConfig data = loaded.resolved.config.data;
  const ModelConfig& model = loaded.resolved.config.model;
  if (text.empty()) return prepare_data(data, model.vocab_size, model.seq_len);
  BuildOptions options;
  options.vocab_size = model.vocab_size;
  options.tokenizer = tokenizer_path_of_run(run_of(loaded.checkpoint));
  options.holdout_fraction = 0;
  PreparedData all = build_shards(open_corpus(text), options, data.cache + "/evaluate." + std::to_string(::getpid()));
  all.heldout_shards = all.train_shards;
  return all;
}

int evaluate_app(const CommandLine& line) {
  const LoadedModel loaded = load_model(line);
  const Config& config = loaded.resolved.config;
  const PreparedData data = text_for(loaded, line.own.at("text"));
  if (data.tokenizer_hash != loaded.tokenizer->hash())
    throw ConfigError(
        "data.tokenizer: the held-out text was cut by another tokenizer than this model's; give --text instead");
  if (data.heldout_shards.empty()) throw ConfigError("data.holdout_fraction: this run held no text out; give --text");
  const auto shards =
      std::make_shared<const ShardSet>(data.heldout_shards, data.tokenizer_hash, config.model.vocab_size);
  if (!line.own.at("text").empty()) std::filesystem::remove_all(data.folder);  // mapped, and of no use to another
  const HeldOut text(shards, config.train.micro_batch, config.model.seq_len, loaded.tokenizer->bytes_of(),
                     loaded.tokenizer->bos());
  const auto world = World::join({});
  const auto never = [] { return false; };  // a signal ends this process: there is nothing to save
  const Evaluation result = evaluate(*loaded.model, text, loaded.device.device, world->control(), never).value();
  std::printf(
      "checkpoint      %s\ntokens          %s of %s source bytes\nloss            %.5f nats a token\nbits per byte   "
      "%.5f\nperplexity      %.3f\n",
      loaded.checkpoint.c_str(), with_commas(result.targets).c_str(), with_commas(result.source_bytes).c_str(),
      result.loss, result.bits_per_byte, std::exp(result.loss));
  if (result.count_LE.defined()) std::printf("%s", routing_table(layers_of(config, result.count_LE)).c_str());
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  return run_app([&] {
    const CommandLine line = parse_own_options(argc, argv, "evaluate", kOptions, kNoKeys);
    if (!line.help) return evaluate_app(line);
    std::fputs(own_help_text("evaluate", "measures a trained model on text", kOptions).c_str(), stdout);
    return kExitOk;
  });
}
