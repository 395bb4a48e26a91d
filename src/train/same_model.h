// Whether a checkpoint's weights are those of the model that a config describes. Reads names and shapes alone.
#pragma once

#include <string>

#include "config/config.h"

namespace switchyard {

// ConfigError where a tensor is missing or has another shape: the first key that differs, both values, the tensor.
void check_same_model(const Config& config, const std::string& checkpoint);

}  // namespace switchyard
