// sample: text from a trained model.
#include <cstdio>

#include "base/error.h"
#include "base/run_app.h"
#include "config/command_line.h"
#include "train/generate.h"
#include "train/load_model.h"

using namespace switchyard;

namespace {

const std::vector<AppOption> kOptions = {
    {"checkpoint", "PATH", "", "a run folder (its best checkpoint) or a step folder"},
    {"device", "NAME", "auto", "where to compute: auto, cpu or cuda"},
    {"prompt", "TEXT", "", "text to continue; empty: from the beginning of a document"},
    {"tokens", "N", "128", "tokens to add, up to the model's seq_len in all"},
    {"count", "N", "1", "samples, generated as one batch"},
    {"temperature", "X", "0.8", "0: always the most likely token"},
    {"top_k", "N", "0", "draw from the N most likely tokens; 0: all"},
    {"top_p", "X", "1.0", "draw from the smallest set whose probability reaches X"},
    {"sample_seed", "N", "0", "another seed, another text"},
};

double number(const CommandLine& line, const std::string& name, double least, double most) {
  const std::string& text = line.own.at(name);
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || value < least || value > most)
    throw ConfigError("--" + name + " = " + text + " is no number from " + std::to_string(least) + " to " +
                      std::to_string(most));
  return value;
}

int sample(const CommandLine& line) {
  SamplingOptions options;
  options.max_tokens = static_cast<int>(number(line, "tokens", 1, 1e6));
  options.temperature = number(line, "temperature", 0, 100);
  options.top_k = static_cast<int>(number(line, "top_k", 0, 1e9));
  options.top_p = number(line, "top_p", 0, 1);
  options.seed = static_cast<std::uint64_t>(number(line, "sample_seed", 0, 1e15));
  const int count = static_cast<int>(number(line, "count", 1, 4096));

  const LoadedModel loaded = load_model(line);
  const auto texts =
      generate(*loaded.model, *loaded.tokenizer, line.own.at("prompt"), count, options, loaded.device.device);
  for (const std::string& text : texts) std::printf("%s%s\n", count > 1 ? "----\n" : "", text.c_str());
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  return run_app([&] {
    const CommandLine line = parse_own_options(argc, argv, "sample", kOptions, kNoKeys);
    if (!line.help) return sample(line);
    std::fputs(own_help_text("sample", "continues a prompt with a trained model", kOptions).c_str(), stdout);
    return kExitOk;
  });
}
