// The rules that span keys. Ranges of single keys are checked while reading.
#pragma once

#include <string>
#include <vector>

#include "config/resolved.h"

namespace switchyard {

// Derives once more, now with the number of ranks, then checks every rule. Throws ConfigError for the first that is
// broken: key, value, what to change. Returns warnings and notes for the log. dry_run: what only a missing device
// forbids (fp8 without a GPU) is a warning.
std::vector<std::string> validate(ResolvedConfig& resolved, int world_size, bool dry_run = false);

// The rules of the model alone, for programs that train nothing: text, batch, folder and optimizer are not looked at.
std::vector<std::string> validate_model(ResolvedConfig& resolved);

}  // namespace switchyard
