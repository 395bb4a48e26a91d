// What a key may hold. A constraint knows how to say itself: "one of softmax, sigmoid", "at least 1".
#pragma once

#include <limits>
#include <string>
#include <vector>

namespace switchyard {

struct Constraint {
  enum class Kind { kAny, kOneOf, kRange, kNotEmpty, kLetters };
  Kind kind = Kind::kAny;
  std::vector<std::string> choices;  // kOneOf; kLetters: the letters, one a string
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;  // low itself is not allowed
  bool high_open = false;

  bool accepts(double number) const;            // numbers: kRange
  bool accepts(const std::string& text) const;  // strings: kOneOf, kNotEmpty, kLetters
  std::string text() const;                     // "" for kAny
};

std::string number_text(double number);  // the shortest that reads back the same; integers in full

Constraint any();
Constraint one_of(std::vector<std::string> choices);
Constraint at_least(double low);
Constraint positive();                           // more than 0
Constraint between(double low, double high);     // both ends allowed
Constraint from_up_to(double low, double high);  // low allowed, high not
Constraint not_empty();                          // a string with at least one character
Constraint letters(const std::string& allowed);  // a string of these letters, at least one

}  // namespace switchyard
