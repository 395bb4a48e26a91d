// Which optimizer updates a parameter, and with what rates (moe_spec O1, O2; defaults of section 2.1).
#pragma once

#include <string>
#include <vector>

#include "config/config.h"
#include "ops/parameter.h"

namespace switchyard {

struct GroupRule {
  bool muon = false;        // else AdamW
  double lr = 0;            // before the schedule's factor
  double beta1 = 0;         // AdamW
  double weight_decay = 0;  // before Muon's decay schedule
};

// Muon: block matrices, routers among them unless optim.router_optimizer is adamw. AdamW: tables, head, gates, scalars,
// norm weights; rates of tables and head times (n_embd / 768)^-0.5 with optim.adamw.scale_lr_with_width.
GroupRule group_rule(const Parameter& parameter, const Config& config);

// A line a group: optimizer, rates, number of parameters and matrices.
std::string group_table(const ParameterStore& store, const Config& config);

}  // namespace switchyard
