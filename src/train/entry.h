// What every app's main does around its own work: errors become one line and an exit code.
#pragma once

#include <functional>
#include <string>

namespace switchyard {

// Runs body and returns its code. ConfigError: 2; any other exception: 1; each logged as one line.
int run_app(const std::function<int()>& body);

// Turns torch's out-of-memory exceptions into a RunError that ends in `advice()`: the estimate and the keys that lower
// it.
int with_memory_advice(const std::function<int()>& body, const std::function<std::string()>& advice);

}  // namespace switchyard
