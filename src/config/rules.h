// What the files of rules share. Each rule says what is wrong, the values, and what to change.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "config/resolved.h"

namespace switchyard {

struct Rules {
  const ResolvedConfig& resolved;
  int world_size;
  bool dry_run;
  std::vector<std::string> messages;

  const Config& config() const { return resolved.config; }
  bool set(const std::string& key) const { return resolved.was_set(key); }
  // Set in the file, and superseded by another key on the command line: what a command line is for.
  bool overridden(const std::string& key, const std::string& by) const {
    return resolved.source(key) == Source::kFile && resolved.source(by) == Source::kCommandLine;
  }
  void warn(const std::string& message) { messages.push_back(message); }
  // A key that was set although nothing reads its value.
  void warn_if_inert(const std::string& key, bool is_read, const std::string& what_it_needs) {
    if (set(key) && !is_read) warn(key + " is set but has no effect without " + what_it_needs);
  }
  [[noreturn]] void fail(const std::string& message) const { throw ConfigError(message); }
};

void check_model(Rules& rules);
void check_moe(Rules& rules);     // experts, their capacity, what stands beside them
void check_router(Rules& rules);  // of sparse models
void check_optim(Rules& rules);
void check_run(Rules& rules);  // batch, precision, device, data, folder

// "1, 2, 3, 4, 6 or 12": the divisors of n.
std::string divisors_text(int n);
// "a, b or c"
std::string choices_text(const std::vector<std::string>& choices);

}  // namespace switchyard
