#include "train/dry_run.h"

#include "base/text.h"
#include "model/accounting.h"
#include "model/linear_layers.h"
#include "model/memory_estimate.h"
#include "optim/schedule.h"

namespace switchyard {

std::string dry_run_report(const ResolvedConfig& resolved, int world_size) {
  const Config& config = resolved.config;
  const Accounting size = account(config);
  const std::int64_t steps =
      resolve_steps(config.train, {size.scaling_parameters, static_cast<double>(size.flops_per_token)});
  const std::int64_t per_rank =
      config.train.batch_tokens / (std::int64_t{config.train.micro_batch} * config.model.seq_len * world_size);
  std::string text = "config\n" + resolved.table() + "\n" + parameter_table(size) + "\n" +
                     memory_table(estimate_memory(config, world_size)) + "\n";
  if (config.precision.mode == "fp8") {
    const Fp8Report report = decide_fp8(linear_layers(config), config.precision);
    text += fp8_table(report);
    for (const std::string& warning : report.warnings) text += "warning: " + warning + "\n";
    text += "\n";
  }
  text += format(
      "would train %s steps of %s tokens = %s tokens, %.3g FLOPs, on %d %s; %lld micro-batches of %d x %d a step and "
      "rank\n",
      with_commas(steps).c_str(), with_commas(config.train.batch_tokens).c_str(),
      with_commas(steps * config.train.batch_tokens).c_str(),
      static_cast<double>(size.flops_per_token) * static_cast<double>(steps) *
          static_cast<double>(config.train.batch_tokens),
      world_size, world_size == 1 ? "rank" : "ranks", static_cast<long long>(per_rank), config.train.micro_batch,
      config.model.seq_len);
  return text;
}

}  // namespace switchyard
