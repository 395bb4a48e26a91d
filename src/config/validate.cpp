#include "config/validate.h"

#include "config/derive.h"
#include "config/rules.h"

namespace switchyard {

std::vector<std::string> validate(ResolvedConfig& resolved, int world_size, bool dry_run) {
  SWITCHYARD_ASSERT(world_size >= 1, "a run has at least one rank");
  derive(resolved, world_size);
  Rules rules{resolved, world_size, dry_run, resolved.notes};
  check_model(rules);
  check_moe(rules);
  check_optim(rules);
  check_run(rules);
  return rules.messages;
}

std::vector<std::string> validate_model(ResolvedConfig& resolved) {
  derive(resolved);
  Rules rules{resolved, /*world_size=*/1, /*dry_run=*/false, resolved.notes};
  check_model(rules);
  check_moe(rules);
  return rules.messages;
}

}  // namespace switchyard
