// Two views of the list of options for other readers: editors (JSON schema) and people (a table in Markdown).
#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "config/explain.h"
#include "config/values.h"

namespace switchyard {
namespace {

Json schema_number(double number) {
  return number == std::floor(number) && std::fabs(number) < 1e18 ? Json(static_cast<std::int64_t>(number))
                                                                  : Json(number);
}

void add_limits(Json& property, const Constraint& limits) {
  switch (limits.kind) {
    case Constraint::Kind::kAny:
      break;
    case Constraint::Kind::kNotEmpty:
      property["minLength"] = 1;
      break;
    case Constraint::Kind::kLetters:
      property["pattern"] = "^[" + join(limits.choices, "") + "]+$";
      break;
    case Constraint::Kind::kOneOf:
      property["enum"] = limits.choices;
      for (const std::string& choice : limits.choices) {
        if (choice != "true" && choice != "false") continue;
        property["enum"].push_back(choice == "true");
        property.erase("type");
      }
      break;
    case Constraint::Kind::kRange:
      property[limits.low_open ? "exclusiveMinimum" : "minimum"] = schema_number(limits.low);
      if (std::isfinite(limits.high))
        property[limits.high_open ? "exclusiveMaximum" : "maximum"] = schema_number(limits.high);
      break;
  }
}

Json schema_of(const Field& field) {
  Json property;
  const std::string type = field.type();
  if (field.key == "comment") {
    property["type"] = {"string", "array"};
    property["items"] = {{"type", "string"}};
  } else if (type == "list of strings") {
    property["type"] = "array";
    property["items"] = {{"type", "string"}};
  } else {
    property["type"] = type == "true or false" ? "boolean" : type;
  }
  property["description"] = field.help;
  property["default"] = to_json(field);
  add_limits(property, field.constraint);
  return property;
}

Json empty_group(const std::string& help) {
  return {{"type", "object"}, {"description", help}, {"additionalProperties", false}, {"properties", Json::object()}};
}

Json& group_at(Json& root, const std::string& name) {
  Json* at = &root;
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    at = &(*at)["properties"][name.substr(begin, end - begin)];
    begin = end + 1;
  }
  return *at;
}

// A cell of a Markdown table: no bar, no line break, nothing read as emphasis.
std::string cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|' || c == '*' || c == '<') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

std::string table_of(const std::string& group) {
  std::string text = "| key | type | default | allowed | what it does | source |\n|---|---|---|---|---|---|\n";
  for (const Field& field : default_fields()) {
    if (field.group() != group) continue;
    text += "| `" + field.key + "` | " + field.type() + " | `" + to_json(field).dump() + "` | " +
            cell(field.constraint.text()) + " | " + cell(field.help) + " | " + cell(field.reference) + " |\n";
  }
  return text;
}

}  // namespace

std::string json_schema() {
  Json root = empty_group("A run of Switchyard");
  root["properties"]["$schema"] = {{"type", "string"}};
  for (const Field& field : default_fields())
    if (field.group().empty()) root["properties"][field.key] = schema_of(field);
  for (const Group& group : config_groups()) group_at(root, group.name) = empty_group(group.help);
  std::vector<std::string> top;
  for (const Field& field : default_fields())
    if (!field.group().empty()) group_at(root, field.group())["properties"][field.leaf()] = schema_of(field);
  for (const Group& group : config_groups())
    if (group.name.find('.') == std::string::npos) top.push_back(group.name);
  root["patternProperties"]["^(" + join(top, "|") + ")\\."] = {
      {"description", "a key written with dots, \"router.top_k\": 2"}};
  Json schema = {{"$schema", "http://json-schema.org/draft-07/schema#"}, {"title", "Switchyard config"}};
  schema.update(root);
  return schema.dump(2) + "\n";
}

std::string option_table_markdown() {
  std::string text =
      "# Every option\n\n"
      "Written by `train --options > docs/options.md` from `src/config/describe_*.h`; a test compares the two. In a "
      "config a key may "
      "be nested (`{\"router\": {\"top_k\": 2}}`) or dotted (`\"router.top_k\": 2`); on the command line it is "
      "`--router.top_k 2`. "
      "`--explain KEY` says the same in the terminal. Under source stand the feature's number in the design and the "
      "paper it follows.\n\n## top level\n\n" +
      table_of("");
  for (const Group& group : config_groups())
    text += "\n## " + group.name + "\n\n" + group.help + "\n\n" + table_of(group.name);
  return text;
}

}  // namespace switchyard
