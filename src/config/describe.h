// Every option, declared once: key, value, what it may hold, what it does. Reading, writing, the command line,
// --explain, the JSON schema and the option table all come from here. To add one: a member in config.h, a field() in
// describe_*.h.
#pragma once

#include "config/config.h"
#include "config/describe_model.h"
#include "config/describe_moe.h"
#include "config/describe_optim.h"
#include "config/describe_router.h"
#include "config/describe_run.h"

namespace switchyard {

template <class V>
void describe(V& v, Config& c) {
  v.field("name", c.name, any(), "The run's name, and that of its folder. Empty: the config file's, without .json.");
  v.field("comment", c.comment, any(), "For readers: what the file is for. A string, or a list of lines.");
  v.field("device", c.device, one_of({"auto", "cpu", "cuda"}), "Where to compute. auto: a GPU if there is one.");
  v.group("model", c.model, "the transformer: dimensions, MLP, norms, attention");
  v.group("moe", c.moe, "the sparse layer: which layers, how many experts, how wide");
  v.group("router", c.router, "which experts a token goes to, and what keeps their load even");
  v.group("optim", c.optim, "optimizers, learning rates, schedule");
  v.group("precision", c.precision, "number formats, and which layers are fp8");
  v.group("parallel", c.parallel, "several ranks");
  v.group("train", c.train, "length, batch, evaluation, checkpoints, the run's folder");
  v.group("data", c.data, "the text and its tokenizer");
  v.group("log", c.log, "what is logged");
}

}  // namespace switchyard
