#include "config/resolved.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "config/hints.h"
#include "config/values.h"

namespace switchyard {
namespace {

// "a.b.c" becomes nested objects.
void put(Json& root, const std::string& key, Json value) {
  Json* at = &root;
  std::size_t begin = 0;
  for (std::size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', begin)) {
    at = &(*at)[key.substr(begin, dot - begin)];
    begin = dot + 1;
  }
  (*at)[key.substr(begin)] = std::move(value);
}

// Of this start of the run only: a later resume must not read them back.
bool says_how_it_started(const std::string& key) { return key == "train.resume" || key == "train.init_from"; }

bool may_differ_between_ranks(const std::string& key) {
  return key == "comment" || key == "train.out" || key.rfind("log.", 0) == 0;
}

std::string text_of(const Config& config, const std::string& key) {
  for (const Field& field : fields_of(config))
    if (field.key == key) return field.text();
  return "";
}

}  // namespace

std::string source_name(Source source) {
  switch (source) {
    case Source::kDefault:
      return "default";
    case Source::kFile:
      return "file";
    case Source::kCommandLine:
      return "command line";
    case Source::kDerived:
      return "derived";
  }
  return "";
}

Source ResolvedConfig::source(const std::string& key) const {
  SWITCHYARD_ASSERT(find_field(key) != nullptr, "no such key: " + key);
  const auto found = sources_.find(key);
  return found == sources_.end() ? Source::kDefault : found->second;
}

bool ResolvedConfig::was_set(const std::string& key) const {
  if (replaced_.count(key)) return true;
  const Source from = source(key);
  return from == Source::kFile || from == Source::kCommandLine;
}

void ResolvedConfig::set(const std::string& key, const std::string& text, Source from) {
  for (Field& field : fields_of(config)) {
    if (field.key != key) continue;
    assign_text(field, text, from == Source::kCommandLine ? "on the command line" : source_name(from));
    return mark(key, from);
  }
  const std::string hint = key_hint(key);
  throw ConfigError("unknown option --" + key + (hint.empty() ? "; --help lists all keys" : "; " + hint));
}

void ResolvedConfig::mark(const std::string& key, Source from) {
  SWITCHYARD_ASSERT(find_field(key) != nullptr, "no such key: " + key);
  sources_[key] = from;
}

void ResolvedConfig::replace(const std::string& key, const std::string& text) {
  if (was_set(key)) replaced_.try_emplace(key, Given{text_of(config, key), source(key)});
  set(key, text, Source::kDerived);
}

void ResolvedConfig::restore_given() {
  for (const auto& [key, given] : std::exchange(replaced_, {})) set(key, given.text, given.source);
}

void ResolvedConfig::forget_derived() {
  restore_given();
  for (Field& field : fields_of(config)) {
    // The run's name and its device are settled once, from the file's name and the machine.
    if (field.key == "name" || field.key == "device" || source(field.key) != Source::kDerived) continue;
    std::visit([&](auto* value) { *value = *std::get<std::decay_t<decltype(value)>>(find_field(field.key)->value); },
               field.value);
    sources_.erase(field.key);
  }
  notes.clear();
}

std::vector<std::string> ResolvedConfig::given_keys() const {
  std::vector<std::string> keys;
  for (const Field& field : default_fields())
    if (was_set(field.key)) keys.push_back(field.key);
  return keys;
}

std::string ResolvedConfig::given_json() const {
  ResolvedConfig given = *this;
  given.restore_given();
  Json root = Json::object();
  for (const Field& field : fields_of(given.config)) {
    if (says_how_it_started(field.key)) continue;
    if (was_set(field.key) || (field.key == "name" && !config.name.empty())) put(root, field.key, to_json(field));
  }
  return root.dump(2) + "\n";
}

std::string ResolvedConfig::resolved_json() const {
  Json root = Json::object();
  for (const Field& field : fields_of(config)) put(root, field.key, to_json(field));
  return root.dump(2) + "\n";
}

std::string ResolvedConfig::table() const {
  std::string text;
  std::size_t key_width = 0, value_width = 0;
  std::vector<std::pair<Field, std::string>> rows;
  for (const Field& field : fields_of(config)) {
    if (field.key == "comment") continue;
    rows.emplace_back(field, to_json(field).dump());
    key_width = std::max(key_width, field.key.size());
    value_width = std::max(value_width, std::min<std::size_t>(rows.back().second.size(), 24));
  }
  for (const auto& [field, value] : rows) {
    text += format("  %-*s  %-*s  %s\n", static_cast<int>(key_width), field.key.c_str(), static_cast<int>(value_width),
                   value.c_str(), source_name(source(field.key)).c_str());
  }
  return text;
}

std::string agreed_lines(const ResolvedConfig& resolved) {
  std::string lines;
  for (const Field& field : fields_of(resolved.config))
    if (!may_differ_between_ranks(field.key)) lines += field.key + " = " + to_json(field).dump() + "\n";
  return lines;
}

}  // namespace switchyard
