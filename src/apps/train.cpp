// train: from a config to a trained model.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>

#include "base/error.h"
#include "base/files.h"
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
#include "train/same_model.h"
#include "train/trainer.h"

using namespace switchyard;

namespace {

constexpr const char* kPurpose = "trains GPT models with mixture-of-experts layers";

// The ConfigError that body ends with; null where there is none.
std::exception_ptr refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const ConfigError&) { return std::current_exception(); }
  return nullptr;
}

int print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  if (text.empty() || text.back() != '\n') std::fputs("\n", stdout);
  return kExitOk;
}

// What is asked for: a config, and the checkpoint that a run starts from.
struct Request {
  ResolvedConfig resolved;
  std::string resumed_from;  // a step folder; "": a new run
};

Request read_request(const CommandLine& line) {
  const char* root = std::getenv("SWITCHYARD_ROOT");  // set by ./train: where configs/ lies
  Request request{load_config(line.config, line.overrides, root ? root : "."), ""};
  const Config& config = request.resolved.config;
  if (config.train.resume) {
    if (const auto resumed = resumed_run(request.resolved, line.overrides))
      request = {resumed->resolved, resumed->checkpoint};
  }
  if (line.config.empty() && request.resumed_from.empty())  // the defaults alone are a model of days: nobody means it
    throw ConfigError(config.train.resume ? "--resume: " + config.train.out +
                                                " holds no checkpoint; name the run's folder, --train.out FOLDER, or "
                                                "start one with --config NAME"
                                          : "no --config; e.g. --config quickstart.json");
  settle_device(request.resolved, cuda_available());
  return request;
}

// All that can be wrong with a request, before anything is made.
void check(Request& request, const World& world, bool dry_run) {
  for (const std::string& note : validate(request.resolved, world.size(), dry_run)) log::info(note);
  const Config& config = request.resolved.config;
  if (!config.train.init_from.empty()) check_same_model(config, find_checkpoint(config.train.init_from));
  if (!request.resumed_from.empty()) check_same_model(config, request.resumed_from);
  const std::string reason = world.is_main() && !dry_run ? cannot_write_below(config.train.out) : "";
  if (!reason.empty())
    throw ConfigError("train.out = \"" + config.train.out + "\" cannot be written: " + reason +
                      "; name another folder, --train.out FOLDER");
}

// Prepares the text once a host and makes sure that all ranks read the same.
PreparedData prepare_text(const Config& config, World& world) {
  PreparedData data;
  world.control().try_together(
      "data", [&] { data = prepare_data(config.data, config.model.vocab_size, config.model.seq_len); });
  world.control().agree_equal("data",
                              "corpus = " + data.corpus_hash + "\ntokenizer = " + std::to_string(data.tokenizer_hash));
  return data;
}

int train_as_rank(const Request& request, World& world) {
  const ResolvedConfig& resolved = request.resolved;
  const auto run = [&] {
    world.control().agree_equal("config", agreed_lines(resolved));
    share_cores(world.local_size());
    ComputeDevice device;
    world.control().try_together("device", [&] { device = choose_device(resolved.config, world.local_rank()); });
    const PreparedData data = prepare_text(resolved.config, world);
    return Trainer(resolved, world, device, data).run();
  };
  return with_memory_advice(
      run, [&] { return memory_advice(resolved.config, estimate_memory(resolved.config, world.size())); });
}

// refused: what is wrong with the command line already. Of several ranks one tells it, so they meet first.
int train(const CommandLine& line, std::exception_ptr refused) {
  Request request;
  if (!refused) refused = refusal([&] { request = read_request(line); });
  const Config& config = request.resolved.config;
  const auto world = World::join({refused ? cuda_available() : config.device == "cuda", config.parallel.timeout_s});
  return run_guarded(*world, [&] {
    world->control().try_together("config", [&] {
      if (refused) std::rethrow_exception(refused);
      check(request, *world, line.dry_run);
    });
    if (!line.dry_run) return train_as_rank(request, *world);
    return world->is_main() ? print(dry_run_report(request.resolved, world->size())) : kExitOk;
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run_app([&] {
    CommandLine line;
    const std::exception_ptr refused = refusal([&] { line = parse_command_line(argc, argv, "train"); });
    if (line.help) return print(help_text("train", kPurpose));
    if (line.schema) return print(json_schema());
    if (line.option_table) return print(option_table_markdown());
    if (!line.explain.empty()) return print(explain(line.explain));
    return train(line, refused);
  });
}
