#include "config/explain.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "config/hints.h"
#include "config/values.h"

namespace switchyard {
namespace {

std::string shown_default(const Field& field) { return to_json(field).dump(); }

// Help texts are prose of several sentences; the terminal gets them wrapped at 100 columns.
std::string wrap(const std::string& prose, const std::string& indent) {
  std::string text, line;
  for (std::size_t begin = 0; begin < prose.size();) {
    const std::size_t end = std::min(prose.find(' ', begin), prose.size());
    const std::string word = prose.substr(begin, end - begin);
    if (!line.empty() && indent.size() + line.size() + 1 + word.size() > 100)
      text += indent + line + "\n", line.clear();
    line += (line.empty() ? "" : " ") + word;
    begin = end + 1;
  }
  return text + indent + line + "\n";
}

std::string explain_field(const Field& field) {
  std::string text = field.key + "\n" + wrap(field.help, "  ") + "\n";
  text += "  type     " + field.type() + "\n";
  text += "  default  " + shown_default(field) + "\n";
  if (!field.constraint.text().empty()) text += "  allowed  " + field.constraint.text() + "\n";
  if (!field.reference.empty()) text += "  source   " + field.reference + "\n";
  text += "  set it   --" + field.key + (field.is_bool() ? " true|false" : " VALUE") + ", or in JSON \"" + field.key +
          "\": ...\n";
  return text;
}

std::string first_sentence(const std::string& help) {
  for (std::size_t i = 0; i + 1 < help.size(); ++i)
    if ((help[i] == '.' || help[i] == ':') && help[i + 1] == ' ') return help.substr(0, i) + ".";
  return help;
}

std::string explain_group(const Group& group) {
  std::string text = group.name + ": " + group.help + "\n";
  std::size_t key_width = 0, default_width = 0;
  const auto belongs = [&](const Field& field) { return field.key.rfind(group.name + ".", 0) == 0; };
  for (const Field& field : default_fields()) {
    if (!belongs(field)) continue;
    key_width = std::max(key_width, field.key.size());
    default_width = std::max(default_width, shown_default(field).size());
  }
  for (const Field& field : default_fields()) {
    if (belongs(field))
      text += format("  %-*s  %-*s  %s\n", static_cast<int>(key_width), field.key.c_str(),
                     static_cast<int>(default_width), shown_default(field).c_str(), first_sentence(field.help).c_str());
  }
  return text + "--explain KEY tells all of one.\n";
}

}  // namespace

std::string explain(const std::string& key_or_group) {
  if (const Field* field = find_field(key_or_group)) return explain_field(*field);
  for (const Group& group : config_groups())
    if (group.name == key_or_group) return explain_group(group);
  std::vector<std::string> same_leaf;
  for (const Field& field : default_fields())
    if (field.leaf() == key_or_group) same_leaf.push_back(explain_field(field));
  if (!same_leaf.empty()) return join(same_leaf, "\n");
  const std::string hint = key_hint(key_or_group);
  throw ConfigError("--explain " + key_or_group + ": no such key or group; " +
                    (hint.empty() ? "--help lists all keys" : hint));
}

}  // namespace switchyard
