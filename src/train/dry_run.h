// What --dry-run says: the resolved config, parameters, FLOPs, memory, precision, and what would run.
#pragma once

#include <string>

#include "config/resolved.h"

namespace switchyard {

// Nothing is built and nothing written. world_size: ranks that would train.
std::string dry_run_report(const ResolvedConfig& resolved, int world_size);

}  // namespace switchyard
