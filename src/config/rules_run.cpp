#include <algorithm>
#include <filesystem>

#include "config/field.h"
#include "config/rules.h"

namespace switchyard {
namespace {

void check_schedule(Rules& rules) {
  const Config& c = rules.config();
  const ScheduleConfig& s = c.optim.schedule;
  if (c.train.steps > 0 && s.warmup_steps >= c.train.steps)
    rules.fail(format("optim.schedule.warmup_steps = %d leaves nothing of train.steps = %d; choose 0 to %d",
                      s.warmup_steps, c.train.steps, c.train.steps - 1));
  if (c.train.steps > 0 && s.shape == "linear" && s.warmup_steps + s.warmdown_fraction * c.train.steps > c.train.steps)
    rules.warn(
        format("optim.schedule: warmup_steps = %d and warmdown_fraction = %s of train.steps = %d overlap; the peak "
               "rate is not reached",
               s.warmup_steps, number_text(s.warmdown_fraction).c_str(), c.train.steps));
  rules.warn_if_inert("optim.schedule.warmdown_fraction", s.shape == "linear", "optim.schedule.shape = linear");
  rules.warn_if_inert("optim.schedule.final_fraction", s.shape != "constant", "a schedule.shape that falls");
}

void check_micro_batches(Rules& rules) {
  const Config& c = rules.config();
  const std::int64_t sequences = static_cast<std::int64_t>(rules.world_size) * c.train.micro_batch;
  const std::int64_t unit = sequences * c.model.seq_len, batch = c.train.batch_tokens;
  if (batch % unit == 0) return;
  const std::int64_t below = batch / unit * unit;
  const std::string near =
      below > 0 ? std::to_string(below) + " or " + std::to_string(below + unit) : std::to_string(unit);
  rules.fail(
      format("train.batch_tokens = %lld is not a multiple of %d rank%s * train.micro_batch %d * model.seq_len %d = "
             "%lld; choose %s, or another micro_batch",
             static_cast<long long>(batch), rules.world_size, rules.world_size == 1 ? "" : "s", c.train.micro_batch,
             c.model.seq_len, static_cast<long long>(unit), near.c_str()));
}

void check_train(Rules& rules) {
  const TrainConfig& t = rules.config().train;
  if (t.resume && !t.init_from.empty())
    rules.fail("train.resume = true continues a run and train.init_from = \"" + t.init_from +
               "\" starts one; give one of them");
  if (t.steps > 0 && t.target_flops > 0 && !rules.overridden("train.target_flops", "train.steps"))
    rules.warn(format("train.steps = %d decides; train.target_flops is set too and not used", t.steps));
  const char* length = t.steps > 0 ? "train.steps" : "train.target_flops";  // what decides in the ratio's place
  if (!rules.overridden("train.target_param_data_ratio", length))
    rules.warn_if_inert("train.target_param_data_ratio", t.steps == 0 && t.target_flops == 0,
                        "train.steps and train.target_flops both 0");
  if (t.steps > 0 && t.profile_step > t.steps)
    rules.warn(format("train.profile_step = %d is after the last step, train.steps = %d; nothing is recorded",
                      t.profile_step, t.steps));
  if (t.profile_step > 0 && t.profile_step < 4 && rules.config().device == "cuda" && t.cuda_graph != "false")
    rules.warn(format("train.profile_step = %d: the first 3 steps record CUDA graphs and are slow; choose 4 or more",
                      t.profile_step));
  const std::string& name = rules.config().name;
  if (name.find('/') != std::string::npos || name == "." || name == "..")
    rules.fail("name = \"" + name + "\" is the name of the run's folder; choose one without /, or give train.out");
}

void check_device(Rules& rules) {
  const Config& c = rules.config();
  const bool cpu = c.device == "cpu";
  if (c.train.cuda_graph == "true" && cpu)
    rules.fail("train.cuda_graph = true needs a GPU, and device = cpu; choose auto or false");
  if (c.train.cuda_graph == "true" && c.moe.use_moe && c.moe.backend == "reference")
    rules.fail(
        "train.cuda_graph = true cannot capture moe.backend = reference, which reads counts on the host; choose "
        "another backend, or cuda_graph auto or false");
  if (c.train.cuda_graph == "true" && c.train.debug == "tensors")
    rules.fail(
        "train.cuda_graph = true cannot capture train.debug = tensors, which writes files; choose cuda_graph auto, "
        "or debug stats");
  if (cpu && c.precision.mode == "bf16")
    rules.warn("precision.mode = bf16 on a CPU is far slower than fp32 unless the CPU has bf16 units");
  if (cpu && c.precision.mode == "fp8") {
    const std::string message =
        "precision.mode = fp8 needs a GPU with fp8 units, and device = cpu; choose fp32 or bf16";
    if (!rules.dry_run) rules.fail(message);
    rules.warn(message);
  }
}

void check_precision(Rules& rules) {
  const PrecisionConfig& p = rules.config().precision;
  for (const char* key :
       {"precision.fp8_recipe", "precision.fp8_gradient", "precision.fp8_exclude", "precision.fp8_min_align"})
    rules.warn_if_inert(key, p.mode == "fp8", "precision.mode = fp8");
  if (p.fp8_min_align % 16 != 0)
    rules.fail(format("precision.fp8_min_align = %d is not a multiple of 16, which fp8 products need; choose %d or %d",
                      p.fp8_min_align, p.fp8_min_align / 16 * 16, (p.fp8_min_align / 16 + 1) * 16));
}

void check_data(Rules& rules) {
  const DataConfig& d = rules.config().data;
  std::error_code ignored;
  if (!d.tokenizer.empty() && !std::filesystem::is_regular_file(d.tokenizer, ignored))
    rules.fail("data.tokenizer = \"" + d.tokenizer +
               "\" is not a file; give a sentencepiece model, or leave it empty to train one");
  if (d.corpus != "torch_python") {
    for (std::size_t begin = 0; begin <= d.corpus.size();) {
      const std::size_t end = std::min(d.corpus.find(',', begin), d.corpus.size());
      const std::string path = d.corpus.substr(begin, end - begin);
      const bool pattern = path.find_first_of("*?[") != std::string::npos;
      if (!path.empty() && path[0] != '@' && !pattern && !std::filesystem::exists(path, ignored))
        rules.fail("data.corpus = \"" + d.corpus + "\": there is no " + path +
                   "; give torch_python, or files, folders and globs separated by commas");
      begin = end + 1;
    }
  }
  if (d.holdout_fraction == 0 && rules.set("train.eval_every") && rules.config().train.eval_every > 0)
    rules.warn("train.eval_every is set, but data.holdout_fraction = 0 leaves nothing to evaluate on");
}

}  // namespace

void check_optim(Rules& rules) {
  const OptimConfig& o = rules.config().optim;
  const bool muon_is_used =
      o.matrix_optimizer == "muon" || (rules.config().moe.use_moe && o.router_optimizer == "muon");
  for (const Field& field : default_fields())
    if (field.group() == "optim.muon") rules.warn_if_inert(field.key, muon_is_used, "optim.matrix_optimizer = muon");
  rules.warn_if_inert("optim.matrix_lr", o.matrix_optimizer == "adamw", "optim.matrix_optimizer = adamw");
  if (muon_is_used) rules.warn_if_inert("optim.muon.beta2", o.muon.variance_reduction, "optim.muon.variance_reduction");
  check_schedule(rules);
}

void check_run(Rules& rules) {
  check_micro_batches(rules);
  check_train(rules);
  check_device(rules);
  check_precision(rules);
  check_data(rules);
}

}  // namespace switchyard
