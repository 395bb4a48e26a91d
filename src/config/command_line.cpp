#include "config/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "config/field.h"
#include "config/hints.h"

namespace switchyard {
namespace {

struct KnownFlag {
  const char* name;
  const char* value_name;  // "": a switch
  const char* help;
};

constexpr KnownFlag kKnownFlags[] = {
    {"config", "NAME", "a JSON file, or the name of one in configs/"},
    {"resume", "", "continue the run in its folder from the latest checkpoint"},
    {"init_from", "PATH", "start from the weights of this checkpoint"},
    {"dry-run", "", "print the resolved config, parameters, FLOPs, memory; then exit"},
    {"explain", "KEY", "all about a key, or the keys of a group"},
    {"schema", "", "print configs/schema.json"},
    {"options", "", "print docs/options.md"},
    {"help", "", "this text"},
};

[[noreturn]] void unknown_option(const std::string& name, const std::vector<AppOption>& own_options) {
  std::vector<std::string> flags;
  for (const KnownFlag& flag : kKnownFlags) flags.emplace_back(flag.name);
  for (const AppOption& option : own_options) flags.push_back(option.name);
  // A name with a dot is meant as a key; one without is a flag if it looks like one.
  const std::string flag = name.find('.') == std::string::npos ? nearest(name, flags) : "";
  const std::string meant = flag.empty() ? key_hint(name) : "did you mean --" + flag + "?";
  throw ConfigError("unknown option --" + name + "; " + (meant.empty() ? "--help lists all keys" : meant));
}

// What CLI11 does not know: "--key value", "--key=value", and a bare "--key" of a true-or-false key.
Overrides read_overrides(const std::vector<std::string>& words, const std::vector<AppOption>& own_options) {
  Overrides overrides;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.rfind("--", 0) != 0 || word.size() == 2)
      throw ConfigError(format("unexpected argument \"%s\"; a config is named by --config %s, a key by --key value",
                               word.c_str(), word.c_str()));
    const std::size_t equals = word.find('=');
    const std::string key = word.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Field* field = find_field(key);
    if (!field) unknown_option(key, own_options);
    if (equals != std::string::npos) {
      overrides.emplace_back(key, word.substr(equals + 1));
    } else if (field->is_bool() && (i + 1 == words.size() || words[i + 1].rfind("--", 0) == 0)) {
      overrides.emplace_back(key, "true");
    } else if (i + 1 < words.size()) {
      overrides.emplace_back(key, words[++i]);
    } else {
      throw ConfigError("--" + key + " lacks its value, " + field->type());
    }
  }
  return overrides;
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv, const std::string& app_name,
                               const std::vector<AppOption>& own_options) {
  CommandLine line;
  bool resume = false;
  std::string init_from;
  CLI::App app(app_name);
  app.set_help_flag("");
  app.allow_extras();
  app.add_option("--config", line.config);
  app.add_option("--explain", line.explain);
  app.add_option("--init_from,--init-from", init_from);
  app.add_flag("--resume", resume);
  app.add_flag("--dry-run,--dry_run", line.dry_run);
  app.add_flag("--schema", line.schema);
  app.add_flag("--options", line.option_table);
  app.add_flag("--help,-h", line.help);
  std::map<std::string, bool> switches;
  for (const AppOption& option : own_options) {
    if (option.value_name.empty()) {
      app.add_flag("--" + option.name, switches[option.name]);
    } else {
      app.add_option("--" + option.name, line.own[option.name] = option.default_value);
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Error& error) { throw ConfigError(app_name + ": " + error.what()); }
  for (const auto& [name, given] : switches) line.own[name] = given ? "true" : "";
  line.overrides = read_overrides(app.remaining(), own_options);
  if (resume) line.overrides.emplace_back("train.resume", "true");
  if (!init_from.empty()) line.overrides.emplace_back("train.init_from", init_from);
  return line;
}

namespace {

std::string flag_line(const std::string& name, const std::string& value_name, const std::string& help) {
  return format("  %-22s %s\n", ("--" + name + (value_name.empty() ? "" : " " + value_name)).c_str(), help.c_str());
}

// The words of `text` after `indent` spaces, wrapped at 110 columns.
std::string wrapped(const std::vector<std::string>& words, std::size_t indent) {
  std::string text, line;
  for (const std::string& word : words) {
    if (indent + line.size() + word.size() + 1 > 110) {
      text += std::string(indent, ' ') + line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return text + std::string(indent, ' ') + line + "\n";
}

}  // namespace

std::string help_text(const std::string& app_name, const std::string& purpose,
                      const std::vector<AppOption>& own_options) {
  std::string text = app_name + ": " + purpose + "\n\nusage: " + app_name + " [--config NAME] [--KEY VALUE]...\n\n";
  for (const AppOption& option : own_options) {
    const std::string usual = option.default_value.empty() ? "" : " (default " + option.default_value + ")";
    text += flag_line(option.name, option.value_name, option.help + usual);
  }
  for (const KnownFlag& flag : kKnownFlags) text += flag_line(flag.name, flag.value_name, flag.help);
  text += "\nEvery key of the config is an option, --router.top_k 2; --explain KEY tells what it does:\n";
  const auto keys_of = [&](const std::string& group) {
    std::vector<std::string> leaves;
    for (const Field& field : default_fields())
      if (field.group() == group) leaves.push_back(field.leaf());
    return wrapped(leaves, 4);
  };
  text += keys_of("");
  for (const Group& group : config_groups())
    text += "  " + group.name + ".  " + group.help + "\n" + keys_of(group.name);
  return text;
}

}  // namespace switchyard
