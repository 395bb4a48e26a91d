#include "train/gpu_architectures.h"

#include <cctype>
#include <cstdlib>
#include <sstream>

namespace switchyard {
namespace {

bool runs_on(const std::string& architecture, int major, int minor) {
  if (architecture.empty() || !std::isdigit(static_cast<unsigned char>(architecture[0]))) return true;
  char* rest = nullptr;
  const int number = static_cast<int>(std::strtol(architecture.c_str(), &rest, 10));
  const int built_major = number / 10, built_minor = number % 10;
  if (*rest == 'a') return built_major == major && built_minor == minor;
  const bool same_family = built_major == major && built_minor <= minor;
  if (*rest == 'f') return same_family;
  const bool is_real = std::string(rest) == "-real";
  return same_family || (!is_real && built_major < major);
}

}  // namespace

bool has_kernels_for(const std::string& architectures, int major, int minor) {
  std::istringstream list(architectures);
  for (std::string one; std::getline(list, one, ',');) {
    if (runs_on(one, major, minor)) return true;
  }
  return false;
}

}  // namespace switchyard
