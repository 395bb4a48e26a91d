#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace switchyard {

void assertion_failed(const char* expression, const char* file, int line, const std::string& message) {
  std::fprintf(stderr, "switchyard: internal error at %s:%d: %s (%s)\n", file, line, message.c_str(), expression);
  std::abort();
}

}  // namespace switchyard
