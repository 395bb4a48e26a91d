// One value in and out of a Field: JSON, command-line text. Only files that read or write JSON include this.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "config/field.h"

namespace switchyard {

using Json = nlohmann::ordered_json;

// Checks type and constraint, then stores. `where` says where the value stands: "in configs/a.json", "on the command
// line". ConfigError: key, value, where, and what to give.
void assign_json(Field& field, const Json& value, const std::string& where);
void assign_text(Field& field, const std::string& text, const std::string& where);

Json to_json(const Field& field);
// "an integer, at least 1 (default 2)"
std::string wanted(const Field& field);

}  // namespace switchyard
