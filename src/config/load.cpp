#include "config/load.h"

#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "config/derive.h"
#include "config/hints.h"
#include "config/values.h"

namespace switchyard {
namespace fs = std::filesystem;
namespace {

std::string line_and_column(const std::string& text, std::size_t byte) {
  std::size_t line = 1, column = 1;
  for (std::size_t i = 0; i + 1 < byte && i < text.size(); ++i) {
    if (text[i] == '\n')
      ++line, column = 1;
    else
      ++column;
  }
  return format("%zu:%zu", line, column);
}

// JSON keeps the last of equal keys without a word; here each is an error, noticed while parsing.
class DuplicateKeys {
 public:
  bool operator()(int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) open_.emplace_back();
    if (event == Json::parse_event_t::object_end) open_.pop_back();
    if (event == Json::parse_event_t::key && !open_.back().insert(parsed.get<std::string>()).second)
      found_ = parsed.get<std::string>();
    return true;
  }
  const std::string& found() const { return found_; }

 private:
  std::vector<std::set<std::string>> open_;
  std::string found_;
};

Json parse_json(const std::string& text, const std::string& origin) {
  DuplicateKeys duplicates;
  Json root;
  try {
    root = Json::parse(
        text, [&](int depth, Json::parse_event_t event, Json& parsed) { return duplicates(depth, event, parsed); });
  } catch (const Json::parse_error& error) {
    std::string reason = error.what();  // "[json...101] parse error at line 1, column 2: reason"
    const std::size_t after_place = reason.find(": ", reason.find("parse error"));
    if (after_place != std::string::npos) reason = reason.substr(after_place + 2);
    throw ConfigError(origin + ":" + line_and_column(text, error.byte) + ": malformed JSON: " + reason);
  }
  if (!duplicates.found().empty())
    throw ConfigError(origin + ": \"" + duplicates.found() + "\" stands twice in one object; keep one");
  if (!root.is_object())
    throw ConfigError(origin + ": a config is a JSON object, { ... }; this is " + root.type_name());
  return root;
}

// Walks an object whose keys may be nested or dotted, and stores what it finds.
class ObjectReader {
 public:
  ObjectReader(ResolvedConfig& resolved, const std::string& origin)
      : resolved_(resolved), fields_(fields_of(resolved.config)), origin_(origin) {}

  void read(const Json& object, const std::string& prefix) {
    for (const auto& [name, value] : object.items()) {
      const std::string key = prefix + name;
      if (key == "$schema") continue;
      if (Field* field = find(key))
        store(*field, value);
      else if (is_group(key))
        read_group(key, value);
      else
        unknown(key, value);
    }
  }

 private:
  void store(Field& field, const Json& value) {
    if (resolved_.was_set(field.key))
      throw ConfigError(origin_ + ": " + field.key + " is given twice, nested and dotted; keep one");
    assign_json(field, field.key == "comment" ? joined(value) : value, "in " + origin_);
    resolved_.mark(field.key, Source::kFile);
  }
  void read_group(const std::string& name, const Json& value) {
    if (!value.is_object())
      throw ConfigError(origin_ + ": " + name + " = " + value.dump() + " is a group of keys; write \"" + name +
                        "\": { ... }");
    read(value, name + ".");
  }
  [[noreturn]] void unknown(const std::string& key, const Json& value) const {
    const std::string hint = key_hint(key, value.is_object());
    throw ConfigError(origin_ + ": unknown key " + key + (hint.empty() ? "; --help lists all keys" : "; " + hint));
  }
  // A comment may be a list of lines.
  static Json joined(const Json& value) {
    if (!value.is_array()) return value;
    std::vector<std::string> lines;
    for (const Json& line : value) {
      if (!line.is_string()) return value;
      lines.push_back(line.get<std::string>());
    }
    return join(lines, "\n");
  }
  Field* find(const std::string& key) {
    for (Field& field : fields_)
      if (field.key == key) return &field;
    return nullptr;
  }
  static bool is_group(const std::string& key) {
    for (const Group& group : config_groups())
      if (group.name == key) return true;
    return false;
  }

  ResolvedConfig& resolved_;
  std::vector<Field> fields_;
  const std::string origin_;
};

// Their names without .json.
std::vector<std::string> configs_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(folder, missing))
    if (entry.path().extension() == ".json" && entry.path().stem() != "schema")
      names.push_back(entry.path().stem().string());
  return names;
}

}  // namespace

std::string find_config(const std::string& path_or_name, const std::string& source_root) {
  std::vector<std::string> tried;
  for (const fs::path& folder : {fs::path(), fs::path("configs"), fs::path(source_root) / "configs"}) {
    for (const char* ending : {"", ".json"}) {
      const fs::path path = folder / (path_or_name + ending);
      std::error_code ignored;
      if (fs::is_regular_file(path, ignored)) return path.string();
      tried.push_back(path.string());
    }
    if (fs::path(path_or_name).is_absolute()) break;
  }
  std::error_code missing;
  if (fs::is_directory(path_or_name, missing))
    throw ConfigError("--config " + path_or_name + ": is a folder; name a JSON file in it");
  std::vector<std::string> known = configs_in("configs");
  for (const std::string& name : configs_in(fs::path(source_root) / "configs")) known.push_back(name);
  const std::string near = nearest(fs::path(path_or_name).stem().string(), known);
  throw ConfigError("--config " + path_or_name + ": no such file; looked at " + join(tried, ", ") +
                    (near.empty() ? "" : "; did you mean " + near + "?"));
}

ResolvedConfig load_config(const std::string& path_or_name, const Overrides& overrides,
                           const std::string& source_root) {
  if (path_or_name.empty()) return parse_config("{}", "", overrides);
  const std::string path = find_config(path_or_name, source_root);
  std::string text;
  try {
    text = read_file(path);
  } catch (const RunError& error) { throw ConfigError("--config " + path_or_name + ": " + error.what()); }
  return parse_config(text, path, overrides);
}

ResolvedConfig parse_config(const std::string& json_text, const std::string& origin, const Overrides& overrides) {
  ResolvedConfig resolved;
  ObjectReader(resolved, origin).read(parse_json(json_text, origin), "");
  for (const auto& [key, text] : overrides) resolved.set(key, text);
  if (resolved.config.name.empty()) {
    resolved.config.name = origin.empty() ? "run" : fs::path(origin).stem().string();
    resolved.mark("name", Source::kDerived);
  }
  derive(resolved);
  return resolved;
}

}  // namespace switchyard
