// A Config that remembers where each value came from. Rules that span keys ask was_set(): what a user wrote conflicts
// and is an error, an untouched default yields.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"

namespace switchyard {

enum class Source { kDefault, kFile, kCommandLine, kDerived };
std::string source_name(Source source);  // "default", "file", "command line", "derived"

class ResolvedConfig {
 public:
  Config config;
  std::vector<std::string> notes;  // which defaults yielded to what, for the log

  bool was_set(const std::string& key) const;  // in the file or on the command line
  Source source(const std::string& key) const;
  // Sets a key from its command-line text. ConfigError names an unknown key, a wrong type, a value out of range.
  void set(const std::string& key, const std::string& text, Source source = Source::kCommandLine);
  void mark(const std::string& key, Source source);
  // Puts a derived value in a given one's place; was_set() and given_json() keep to what was given.
  void replace(const std::string& key, const std::string& text);
  // Puts every derived value back to what was given, or its default, so that derive() can start again.
  void forget_derived();

  std::vector<std::string> given_keys() const;  // was_set(), in the order of declaration
  // Only what was set, and the name: what a checkpoint stores and resume parses. Without train.resume and init_from.
  std::string given_json() const;
  std::string resolved_json() const;  // every key
  std::string table() const;          // "router.top_k  2  (file)" a line, for --dry-run

 private:
  void restore_given();

  struct Given {
    std::string text;
    Source source;
  };
  std::map<std::string, Source> sources_;  // absent: default
  std::map<std::string, Given> replaced_;  // what replace() took the place of
};

// What must be equal on all ranks of a run, as "key = value" lines for them to compare: every key but the comment,
// train.out and log.
std::string agreed_lines(const ResolvedConfig& resolved);

}  // namespace switchyard
