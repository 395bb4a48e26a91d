// Out of memory, told so that something can be done about it.
#pragma once

#include <functional>
#include <string>

namespace switchyard {

// Runs body and returns its code. Turns torch's out-of-memory exceptions into a RunError that ends in `advice()`: the
// estimate and the keys that lower it; torch's other errors into one without a backtrace.
int with_memory_advice(const std::function<int()>& body, const std::function<std::string()>& advice);

}  // namespace switchyard
