// From a file and the command line to a ResolvedConfig. Every failure is a ConfigError of one line that names the file,
// the key, its value, and what would be right.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "config/resolved.h"

namespace switchyard {

using Overrides = std::vector<std::pair<std::string, std::string>>;  // key, text; the last of equal keys wins

// Where a config of this name lies: the path itself, then configs/ below the working folder, then configs/ below
// source_root; each also with ".json" appended. ConfigError lists the places looked at.
std::string find_config(const std::string& path_or_name, const std::string& source_root);

// Reads, overrides, derives. path_or_name "" means all defaults. validate() (validate.h) is a step of its own,
// because it needs the number of ranks.
ResolvedConfig load_config(const std::string& path_or_name, const Overrides& overrides, const std::string& source_root);

// The same from JSON text, as a checkpoint stores it. `origin` is the file's name for messages.
ResolvedConfig parse_config(const std::string& json_text, const std::string& origin, const Overrides& overrides);

}  // namespace switchyard
