// What the program says about its own options.
#pragma once

#include <string>

namespace switchyard {

// A key: type, default, allowed values, what it does, where it comes from. A group ("router"): a line for each key.
// ConfigError names the nearest key of an unknown one.
std::string explain(const std::string& key_or_group);
std::string json_schema();            // configs/schema.json, for editors
std::string option_table_markdown();  // docs/options.md

}  // namespace switchyard
