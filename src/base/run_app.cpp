#include "base/run_app.h"

#include <exception>

#include "base/error.h"
#include "base/log.h"

namespace switchyard {

int run_app(const std::function<int()>& body) {
  try {
    return body();
  } catch (const ConfigError& error) {
    log::error(error.what());
    return kExitConfigError;
  } catch (const std::exception& error) {
    log::error(error.what());
    return kExitRunError;
  }
}

}  // namespace switchyard
