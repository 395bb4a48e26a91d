#include "config/values.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>

#include "base/error.h"
#include "base/text.h"

namespace switchyard {
namespace {

struct Reader {
  Field& field;
  std::string shown;  // the value as it stands in the message
  std::string where;

  [[noreturn]] void fail(const std::string& problem) const {
    throw ConfigError(field.key + " = " + shown + " (" + where + ") " + problem + "; give " + wanted(field));
  }
  template <class Integer>
  void store_integer(Integer* at, std::int64_t number) const {
    if (number < std::numeric_limits<Integer>::min() || number > std::numeric_limits<Integer>::max() ||
        !field.constraint.accepts(static_cast<double>(number)))
      fail("is out of range");
    *at = static_cast<Integer>(number);
  }
  void store(int* at, std::int64_t number) const { store_integer(at, number); }
  void store(std::int64_t* at, std::int64_t number) const { store_integer(at, number); }
  void store(double* at, double number) const {
    if (!std::isfinite(number)) fail("is not a finite number");
    if (!field.constraint.accepts(number)) fail("is out of range");
    *at = number;
  }
  void store(std::string* at, const std::string& text) const {
    if (!field.constraint.accepts(text)) fail(problem_with(text));
    *at = text;
  }
  std::string problem_with(const std::string& text) const {
    if (field.constraint.kind == Constraint::Kind::kNotEmpty || text.empty()) return "is empty";
    if (field.constraint.kind == Constraint::Kind::kLetters) return "has other letters";
    const std::string near = field.key == "device" && text == "gpu" ? "cuda" : nearest(text, field.constraint.choices);
    return near.empty() ? "is not a choice" : "is not a choice (did you mean " + near + "?)";
  }
};

// A whole number, also when written 1e6 or 512.0.
std::optional<std::int64_t> whole(double number) {
  if (!(std::fabs(number) < 9.2e18) || number != std::floor(number)) return std::nullopt;
  return static_cast<std::int64_t>(number);
}

std::optional<std::int64_t> json_integer(const Json& value) {
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    return std::nullopt;
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) return whole(value.get<double>());
  return std::nullopt;
}

void read_json(const Reader& reader, const Json& value) {
  const auto wrong_type = [&] {
    reader.fail(std::string("is ") + (value.is_null() ? "null" : std::string("a JSON ") + value.type_name()));
  };
  if (auto* at = std::get_if<bool*>(&reader.field.value)) {
    if (!value.is_boolean()) wrong_type();
    **at = value.get<bool>();
  } else if (auto* small = std::get_if<int*>(&reader.field.value)) {
    const auto number = json_integer(value);
    if (!number) value.is_number() ? reader.fail("is not a whole number") : wrong_type();
    reader.store(*small, *number);
  } else if (auto* large = std::get_if<std::int64_t*>(&reader.field.value)) {
    const auto number = json_integer(value);
    if (!number) value.is_number() ? reader.fail("is not a whole number") : wrong_type();
    reader.store(*large, *number);
  } else if (auto* real = std::get_if<double*>(&reader.field.value)) {
    if (!value.is_number()) wrong_type();
    reader.store(*real, value.get<double>());
  } else if (auto* text = std::get_if<std::string*>(&reader.field.value)) {
    // A choice between auto, true and false is naturally written with JSON's own true and false.
    const bool choice_of_bool = value.is_boolean() && reader.field.constraint.kind == Constraint::Kind::kOneOf;
    if (!value.is_string() && !choice_of_bool) wrong_type();
    reader.store(*text, value.is_string() ? value.get<std::string>() : value.dump());
  } else {
    if (!value.is_array()) wrong_type();
    for (const Json& item : value)
      if (!item.is_string()) reader.fail("holds something that is not a string");
    *std::get<std::vector<std::string>*>(reader.field.value) = value.get<std::vector<std::string>>();
  }
}

std::optional<double> text_number(const std::string& text) {
  if (text.empty() || std::isspace(static_cast<unsigned char>(text[0]))) return std::nullopt;
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (*end != '\0') return std::nullopt;
  return number;
}

std::int64_t text_integer(const Reader& reader, const std::string& text) {
  const auto number = text_number(text);
  if (!number) reader.fail("is not an integer");
  errno = 0;
  char* end = nullptr;
  const long long exact = std::strtoll(text.c_str(), &end, 10);
  if (*end == '\0' && errno == 0) return exact;
  const auto rounded = whole(*number);
  if (!rounded) reader.fail(std::fabs(*number) < 9.2e18 ? "is not a whole number" : "is out of range");
  return *rounded;
}

std::vector<std::string> text_list(const Reader& reader, const std::string& text) {
  if (!text.empty() && text[0] == '[') {
    const Json list = Json::parse(text, nullptr, false);
    if (list.is_discarded()) reader.fail("is not a JSON list");
    read_json(reader, list);
    return *std::get<std::vector<std::string>*>(reader.field.value);
  }
  std::vector<std::string> items;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) items.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

}  // namespace

void assign_json(Field& field, const Json& value, const std::string& where) {
  std::string shown = value.dump();
  if (shown.size() > 80) shown = shown.substr(0, 77) + "...";
  read_json({field, shown, where}, value);
}

void assign_text(Field& field, const std::string& text, const std::string& where) {
  const bool textual = std::holds_alternative<std::string*>(field.value) || text.empty();
  const Reader reader{field, textual ? '"' + text + '"' : text, where};
  if (auto* at = std::get_if<bool*>(&field.value)) {
    const bool on = text == "true" || text == "1", off = text == "false" || text == "0";
    if (!on && !off) reader.fail("is neither true nor false");
    **at = on;
  } else if (auto* small = std::get_if<int*>(&field.value)) {
    reader.store(*small, text_integer(reader, text));
  } else if (auto* large = std::get_if<std::int64_t*>(&field.value)) {
    reader.store(*large, text_integer(reader, text));
  } else if (auto* real = std::get_if<double*>(&field.value)) {
    const auto number = text_number(text);
    if (!number) reader.fail("is not a number");
    reader.store(*real, *number);
  } else if (auto* string = std::get_if<std::string*>(&field.value)) {
    reader.store(*string, text);
  } else {
    *std::get<std::vector<std::string>*>(field.value) = text_list(reader, text);
  }
}

Json to_json(const Field& field) {
  return std::visit([](const auto* value) { return Json(*value); }, field.value);
}

std::string wanted(const Field& field) {
  const Field* declared = find_field(field.key);
  const std::string type = field.type(), limits = field.constraint.text();
  std::string text = type == "true or false" ? type : (type[0] == 'i' ? "an " : "a ") + type;
  const auto kind = field.constraint.kind;
  if (kind == Constraint::Kind::kOneOf)
    text = limits;
  else if (kind == Constraint::Kind::kLetters)
    text += " of " + limits;
  else if (!limits.empty())
    text += ", " + limits;
  const std::string usual = declared ? declared->text() : "";
  return usual.empty() ? text : text + " (default " + usual + ")";
}

}  // namespace switchyard
