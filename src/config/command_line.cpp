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

const Group* find_group(const std::string& name) {
  for (const Group& group : config_groups())
    if (group.name == name) return &group;
  return nullptr;
}

std::string first_key_of(const Group& group) {
  for (const Field& field : default_fields())
    if (field.key.rfind(group.name + ".", 0) == 0) return field.key;
  return group.name;
}

[[noreturn]] void unknown_option(const std::string& name) {
  std::vector<std::string> flags;
  for (const KnownFlag& flag : kKnownFlags) flags.emplace_back(flag.name);
  if (const Group* group = find_group(name)) {
    const std::string key = first_key_of(*group);
    throw ConfigError("--" + name + " is a group of keys, " + group->help + "; write --" + key +
                      " VALUE, say; --explain " + name + " lists them");
  }
  // A name with a dot is meant as a key; one without is a flag if it looks like one.
  const std::string flag = name.find('.') == std::string::npos ? nearest(name, flags) : "";
  const std::string meant = flag.empty() ? key_hint(name) : "did you mean --" + flag + "?";
  throw ConfigError("unknown option --" + name + "; " + (meant.empty() ? "--help lists all keys" : meant));
}

// What CLI11 does not know: "--key value", "--key=value", and a bare "--key" of a true-or-false key.
Overrides read_overrides(const std::vector<std::string>& words) {
  Overrides overrides;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.rfind("--", 0) != 0 || word.size() == 2)
      throw ConfigError(format("unexpected argument \"%s\"; a config is named by --config %s, a key by --key value",
                               word.c_str(), word.c_str()));
    const std::size_t equals = word.find('=');
    const std::string key = word.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Field* field = find_field(key);
    if (!field) unknown_option(key);
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

// Parses into what `app` declares, and the options of its own into line.own.
void parse(CLI::App& app, int argc, const char* const* argv, const std::vector<AppOption>& own_options,
           CommandLine& line) {
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
  } catch (const CLI::ArgumentMismatch& error) {  // "--config: 1 required TEXT missing"
    const std::string text = error.what(), name = text.substr(2, text.find_first_of(": ,") - 2);
    for (const KnownFlag& flag : kKnownFlags)
      if (flag.name == name) throw ConfigError("--" + name + " lacks its value, " + flag.value_name);
    for (const AppOption& option : own_options)
      if (option.name == name) throw ConfigError("--" + name + " lacks its value, " + option.value_name);
    throw ConfigError(text);
  } catch (const CLI::Error& error) { throw ConfigError(error.what()); }
  for (const auto& [name, given] : switches) line.own[name] = given ? "true" : "";
}

}  // namespace

CommandLine parse_own_options(int argc, const char* const* argv, const std::string& app_name,
                              const std::vector<AppOption>& own_options, const std::string& refusal) {
  CommandLine line;
  CLI::App app(app_name);
  app.set_help_flag("");
  app.allow_extras();
  app.add_flag("--help,-h", line.help);
  parse(app, argc, argv, own_options, line);
  for (const std::string& word : app.remaining()) {
    if (word.rfind("--", 0) != 0) throw ConfigError("unexpected argument \"" + word + "\"; --help lists all options");
    const std::string name = word.substr(2, word.find('=') - 2);
    if (find_field(name)) throw ConfigError("--" + name + ": " + refusal + "; --help lists all options");
    std::vector<std::string> names = {"help"};
    for (const AppOption& option : own_options) names.emplace_back(option.name);
    const std::string near = nearest(name, names);
    throw ConfigError("unknown option --" + name + "; " +
                      (near.empty() ? "--help lists all options" : "did you mean --" + near + "?"));
  }
  return line;
}

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
  parse(app, argc, argv, own_options, line);
  for (const auto& [name, value] :
       {std::pair{"config", line.config}, {"explain", line.explain}, {"init_from", init_from}})
    if (value.rfind("--", 0) == 0)
      throw ConfigError("--" + std::string(name) + " lacks its value; next comes " + value);
  line.overrides = read_overrides(app.remaining());
  if (resume) line.overrides.emplace_back("train.resume", "true");
  if (!init_from.empty()) line.overrides.emplace_back("train.init_from", init_from);
  return line;
}

namespace {

std::string flag_line(const std::string& name, const std::string& value_name, const std::string& help) {
  return format("  %-22s %s\n", ("--" + name + (value_name.empty() ? "" : " " + value_name)).c_str(), help.c_str());
}

std::string own_line(const AppOption& option) {
  const std::string usual = option.default_value.empty() ? "" : " (default " + option.default_value + ")";
  return flag_line(option.name, option.value_name, option.help + usual);
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

std::string own_help_text(const std::string& app_name, const std::string& purpose,
                          const std::vector<AppOption>& own_options) {
  std::string text = app_name + ": " + purpose + "\n\nusage: " + app_name + " [--OPTION VALUE]...\n\n";
  for (const AppOption& option : own_options) text += own_line(option);
  return text + flag_line("help", "", "this text");
}

std::string help_text(const std::string& app_name, const std::string& purpose) {
  std::string text = app_name + ": " + purpose + "\n\nusage: " + app_name + " [--config NAME] [--KEY VALUE]...\n\n";
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
