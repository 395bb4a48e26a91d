// What every app's main does around its own work: errors become one line and an exit code.
#pragma once

#include <functional>

namespace switchyard {

// Runs body and returns its code. ConfigError: 2; any other exception: 1; each logged as one line.
int run_app(const std::function<int()>& body);

}  // namespace switchyard
