#include "config/constraint.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/text.h"

namespace switchyard {

bool Constraint::accepts(double number) const {
  if (kind != Kind::kRange) return true;
  return (low_open ? number > low : number >= low) && (high_open ? number < high : number <= high);
}

bool Constraint::accepts(const std::string& text) const {
  const auto is_choice = [&](const std::string& word) {
    return std::find(choices.begin(), choices.end(), word) != choices.end();
  };
  switch (kind) {
    case Kind::kOneOf:
      return is_choice(text);
    case Kind::kNotEmpty:
      return !text.empty();
    case Kind::kLetters:
      return !text.empty() &&
             std::all_of(text.begin(), text.end(), [&](char c) { return is_choice(std::string(1, c)); });
    default:
      return true;
  }
}

std::string Constraint::text() const {
  switch (kind) {
    case Kind::kOneOf:
      return choices.size() == 1 ? "only " + choices[0] : "one of " + join(choices, ", ");
    case Kind::kNotEmpty:
      return "not empty";
    case Kind::kLetters:
      return "the letters " + join(choices, " and ");
    case Kind::kRange:
      break;
    case Kind::kAny:
      return "";
  }
  const bool has_high = high != std::numeric_limits<double>::infinity();
  std::string from = (low_open ? "more than " : "at least ") + number_text(low);
  if (!has_high) return from;
  if (high_open) return from + ", less than " + number_text(high);
  return number_text(low) + " to " + number_text(high);
}

std::string number_text(double number) {
  if (number == std::floor(number) && std::fabs(number) < 1e15) return format("%.0f", number);
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, number).ptr};
}

namespace {
Constraint range(double low, double high) {
  Constraint c;
  c.kind = Constraint::Kind::kRange, c.low = low, c.high = high;
  return c;
}
}  // namespace

Constraint any() { return {}; }

Constraint one_of(std::vector<std::string> choices) {
  Constraint c;
  c.kind = Constraint::Kind::kOneOf, c.choices = std::move(choices);
  return c;
}

Constraint at_least(double low) { return range(low, std::numeric_limits<double>::infinity()); }

Constraint positive() {
  Constraint c = at_least(0);
  c.low_open = true;
  return c;
}

Constraint between(double low, double high) { return range(low, high); }

Constraint from_up_to(double low, double high) {
  Constraint c = range(low, high);
  c.high_open = true;
  return c;
}

Constraint not_empty() {
  Constraint c;
  c.kind = Constraint::Kind::kNotEmpty;
  return c;
}

Constraint letters(const std::string& allowed) {
  Constraint c;
  c.kind = Constraint::Kind::kLetters;
  for (const char letter : allowed) c.choices.emplace_back(1, letter);
  return c;
}

}  // namespace switchyard
