// Two kinds of failure: what a user can fix (ConfigError, exit code 2) and what stops a run (RunError, exit code 1).
// A broken invariant of our own is neither: SWITCHYARD_ASSERT aborts with file, line and message.
#pragma once

#include <stdexcept>
#include <string>

namespace switchyard {

// Says the key, its value, and what would be right: "router.top_k = 9 exceeds moe.n_experts = 8; choose 1 to 8".
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Something outside the program failed: a file, the network, a device, another rank.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline constexpr int kExitOk = 0;
inline constexpr int kExitRunError = 1;
inline constexpr int kExitConfigError = 2;

[[noreturn]] void assertion_failed(const char* expression, const char* file, int line, const std::string& message);

}  // namespace switchyard

#define SWITCHYARD_ASSERT(expression, message)                                                     \
  do {                                                                                             \
    if (!(expression)) ::switchyard::assertion_failed(#expression, __FILE__, __LINE__, (message)); \
  } while (false)
