// The command line of train: its flags, and "--any.key value" for every option; and that of apps without a config,
// which have options of their own.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/load.h"

namespace switchyard {

// An option of an app without a config: {"prompt", "TEXT", "def ", "text to continue"}. value_name "": a switch, "true"
// when given.
struct AppOption {
  std::string name;
  std::string value_name;
  std::string default_value;
  std::string help;
};

struct CommandLine {
  std::string config;  // --config NAME; "": none given
  bool help = false;
  bool dry_run = false;
  bool schema = false;        // print configs/schema.json
  bool option_table = false;  // print docs/options.md
  std::string explain;        // --explain KEY or GROUP; "": not asked
  Overrides overrides;        // --key value, --key=value, --bool_key; --resume and --init_from are among them
  std::map<std::string, std::string> own;  // the app's options, by name; defaults filled in
};

// ConfigError for an unknown option (the nearest named) or a missing value. Values are checked when loaded.
CommandLine parse_command_line(int argc, const char* const* argv, const std::string& app_name,
                               const std::vector<AppOption>& own_options = {});

// The same for an app that reads no config: its own options and --help are all it takes. refusal: what a key gets to
// hear, "a trained model's config cannot be changed".
CommandLine parse_own_options(int argc, const char* const* argv, const std::string& app_name,
                              const std::vector<AppOption>& own_options, const std::string& refusal);
std::string own_help_text(const std::string& app_name, const std::string& purpose,
                          const std::vector<AppOption>& own_options);

// --help: usage, flags, and the keys of each group, a screen long.
std::string help_text(const std::string& app_name, const std::string& purpose);

}  // namespace switchyard
