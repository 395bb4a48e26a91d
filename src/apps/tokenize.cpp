// tokenize: text in, a tokenizer and token shards out. The folder it writes is a data.corpus for train.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>

#include "base/error.h"
#include "base/log.h"
#include "base/run_app.h"
#include "base/text.h"
#include "data/corpus.h"
#include "data/prepare.h"

namespace {

using namespace switchyard;

struct Arguments {
  std::string input, out, json_field = "text";
  BuildOptions build;
};

void declare(CLI::App& app, Arguments& arguments) {
  app.add_option("--input", arguments.input,
                 "torch_python, or files, folders, globs and @lists of files, separated by commas")
      ->required();
  app.add_option("--out", arguments.out, "folder for tokenizer.model, the shards and prepared.json")->required();
  app.add_option("--vocab_size", arguments.build.vocab_size, "pieces of the tokenizer")->capture_default_str();
  app.add_option("--tokenizer", arguments.build.tokenizer, "an existing sentencepiece model, instead of training one")
      ->check(CLI::ExistingFile);
  app.add_option("--sample_lines", arguments.build.sample_lines, "lines the tokenizer learns from")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--holdout", arguments.build.holdout_fraction, "share of the documents held out")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.9));
  app.add_option("--seed", arguments.build.seed, "of the sample and of the held-out documents")->capture_default_str();
  app.add_option("--text_field", arguments.json_field, "field of a .jsonl line that holds the text")
      ->capture_default_str();
  app.add_option("--threads", arguments.build.threads, "0: all cores")->capture_default_str();
}

// The library speaks of train's keys; here they are options.
std::string in_own_words(std::string message) {
  const std::pair<const char*, const char*> names[] = {{"model.vocab_size", "--vocab_size"},
                                                       {"data.corpus", "--input"},
                                                       {"data.tokenizer_sample_lines", "--sample_lines"},
                                                       {"data.tokenizer", "--tokenizer"},
                                                       {"data.holdout_fraction", "--holdout"},
                                                       {"data.seed", "--seed"}};
  for (const auto& [key, option] : names) {
    for (std::size_t at = message.find(key); at != std::string::npos; at = message.find(key))
      message.replace(at, std::strlen(key), option);
  }
  return message;
}

void report(const PreparedData& data, double seconds) {
  const auto line = [](const char* name, std::int64_t documents, std::int64_t bytes, std::int64_t tokens) {
    log::info(format("  %-9s %12s documents %16s bytes %15s tokens  %.2f bytes/token", name,
                     with_commas(documents).c_str(), with_commas(bytes).c_str(), with_commas(tokens).c_str(),
                     tokens > 0 ? static_cast<double>(bytes) / static_cast<double>(tokens) : 0.0));
  };
  log::info(format("%s: vocabulary %s, corpus hash %s", data.folder.c_str(), with_commas(data.vocab_size).c_str(),
                   data.corpus_hash.c_str()));
  line("training", data.train_documents, data.train_bytes, data.train_tokens);
  line("held out", data.heldout_documents, data.heldout_bytes, data.heldout_tokens);
  log::info(format("%.1f s, %s/s", seconds,
                   human_bytes(static_cast<double>(data.train_bytes + data.heldout_bytes) / seconds).c_str()));
}

void run(const Arguments& arguments) {
  const auto start = std::chrono::steady_clock::now();
  const Corpus corpus = open_corpus(arguments.input, arguments.json_field, arguments.build.threads);
  log::info(format("%s: %s files, %s", corpus.title.c_str(),
                   with_commas(static_cast<std::int64_t>(corpus.files.size())).c_str(),
                   human_bytes(static_cast<double>(corpus.bytes)).c_str()));
  const PreparedData data = build_shards(corpus, arguments.build, arguments.out);
  report(data, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a tokenizer on text and writes token shards.");
  Arguments arguments;
  declare(app, arguments);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) { return app.exit(error) == 0 ? kExitOk : kExitConfigError; }
  return run_app([&] {
    try {
      run(arguments);
    } catch (const ConfigError& error) { throw ConfigError(in_own_words(error.what())); }
    return kExitOk;
  });
}
