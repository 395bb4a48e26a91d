#include "config/field.h"
#include "config/rules.h"

namespace switchyard {
namespace {

void warn_of_unused_sparse_keys(Rules& rules) {
  std::vector<std::string> unused;
  for (const Field& field : fields_of(rules.config())) {
    const bool sparse = field.key.rfind("moe.", 0) == 0 || field.key.rfind("router.", 0) == 0;
    if (sparse && rules.set(field.key) && field.text() != find_field(field.key)->text()) unused.push_back(field.key);
  }
  if (!unused.empty())
    rules.warn("moe.use_moe = false: the model is dense, and without effect are " + join(unused, ", "));
}

void check_experts(Rules& rules) {
  const Config& c = rules.config();
  if (rules.set("moe.d_expert") && rules.set("moe.expert_hidden_mult"))
    rules.fail(
        format("moe.d_expert = %d and moe.expert_hidden_mult = %d (which gives %d) are both set; give one of them",
               c.moe.d_expert, c.moe.expert_hidden_mult, c.moe.expert_hidden_mult * c.model.n_embd));
  if (c.moe.first_dense >= c.model.n_layer)
    rules.fail(format(
        "moe.first_dense = %d leaves no sparse layer of model.n_layer = %d; choose 0 to %d, or moe.use_moe false",
        c.moe.first_dense, c.model.n_layer, c.model.n_layer - 1));
  if (c.moe.backend == "cuda" && c.device == "cpu")
    rules.fail("moe.backend = cuda needs a GPU, and device = cpu; choose auto, cpu or reference");
  if (c.moe.backend == "cpu" && c.device == "cuda")
    rules.fail("moe.backend = cpu computes on a CPU, and device = cuda; choose auto, cuda or reference");
  rules.warn_if_inert("moe.d_shared", c.moe.n_shared_experts > 0, "moe.n_shared_experts");
  rules.warn_if_inert("moe.init_std", c.moe.init == "normal", "moe.init = normal");
}

// derive() expands segments and sets them to 1; what is left of them could not be expanded.
void check_segments(Rules& rules) {
  const Config& c = rules.config();
  const int m = c.moe.segments, top_k = c.router.top_k, shared = c.moe.n_shared_experts;
  if (m == 1) return;
  if (c.moe.d_expert % m != 0)
    rules.fail(
        format("moe.segments = %d does not divide the experts' width %d (moe.d_expert, or moe.expert_hidden_mult "
               "* model.n_embd); choose %s",
               m, c.moe.d_expert, divisors_text(c.moe.d_expert).c_str()));
  rules.fail(
      format("moe.segments = %d times router.top_k = %d less moe.n_shared_experts = %d leaves %d routed experts a "
             "token; choose segments of at least %d, or fewer shared experts",
             m, top_k, shared, m * top_k - shared, shared / top_k + 1));
}

void check_capacity(Rules& rules) {
  const Config& c = rules.config();
  const MoeConfig& m = c.moe;
  if (m.expert_capacity > 0 && m.capacity_factor > 0)
    rules.fail(
        format("moe.expert_capacity = %d and moe.capacity_factor = %g both say how many rows an expert takes; "
               "give one of them",
               m.expert_capacity, m.capacity_factor));
  if (m.capacity_factor == 0 && m.expert_capacity == 0 && m.eval_capacity_factor == 0) {
    for (const char* key :
         {"moe.min_expert_capacity", "moe.max_expert_capacity", "moe.capacity_ramp_steps", "moe.drop_policy",
          "moe.overflow", "moe.null_expert", "moe.reroute_rounds", "moe.renormalize_after_drop"})
      if (rules.set(key))
        rules.fail(std::string(key) + " is set, but no expert is ever full: moe.capacity_factor = 0 and " +
                   "moe.expert_capacity = 0; give one of them (1.25 is usual), or leave the key out");
    return;
  }
  if (m.max_expert_capacity > 0 && m.min_expert_capacity > m.max_expert_capacity)
    rules.fail(format("moe.min_expert_capacity = %d exceeds moe.max_expert_capacity = %d; exchange or drop one",
                      m.min_expert_capacity, m.max_expert_capacity));
  if (m.drop_policy == "importance" && m.token_importance == "none")
    rules.fail(
        "moe.drop_policy = importance needs importances, and moe.token_importance = none; choose norm or learned");
  const double rows = static_cast<double>(c.train.micro_batch) * c.model.seq_len * c.router.top_k;
  const int bound = m.expert_capacity > 0 ? m.expert_capacity : m.max_expert_capacity;
  if (bound > 0 && static_cast<double>(bound) * m.n_experts < rows * 0.5)
    rules.warn(
        format("%s = %d rows: a micro-batch brings an expert %.0f rows on average, so more than half will find no "
               "place",
               m.expert_capacity > 0 ? "moe.expert_capacity" : "moe.max_expert_capacity", bound, rows / m.n_experts));
  for (const char* key : {"moe.min_expert_capacity", "moe.max_expert_capacity", "moe.capacity_ramp_steps"})
    rules.warn_if_inert(key, m.expert_capacity == 0, "moe.capacity_factor, which moe.expert_capacity overrides");
  rules.warn_if_inert("moe.null_expert", m.overflow == "null_expert", "moe.overflow = null_expert");
  rules.warn_if_inert("moe.renormalize_after_drop", m.overflow != "null_expert", "moe.overflow = drop or reroute");
  rules.warn_if_inert("moe.reroute_rounds", m.overflow == "reroute", "moe.overflow = reroute");
}

void check_beside(Rules& rules) {
  const Config& c = rules.config();
  const MoeConfig& m = c.moe;
  if (m.token_importance == "norm")
    rules.warn_if_inert("moe.token_importance", m.drop_policy == "importance", "moe.drop_policy = importance");
  rules.warn_if_inert("moe.zero_expert_tau", router_columns(m) > m.n_experts, "moe.zero_experts");
  rules.warn_if_inert("moe.combine_init", m.flexible_ffn, "moe.flexible_ffn");
  if (m.warmup_steps > 0 && c.train.steps > 0 && m.warmup_steps >= c.train.steps)
    rules.fail(
        format("moe.warmup_steps = %d leaves no step of train.steps = %d with the experts in full; choose 0 to %d",
               m.warmup_steps, c.train.steps, c.train.steps - 1));
  if (m.warmup_mode == "dense_average" && m.warmup_steps > 0) {
    if (m.n_shared_experts == 0 && !m.flexible_ffn)
      rules.fail(
          "moe.warmup_mode = dense_average fades from shared experts to the average of all, and there are none; "
          "set moe.n_shared_experts, moe.flexible_ffn, or warmup_mode blend");
    if (c.train.cuda_graph == "true")
      rules.fail(
          "train.cuda_graph = true cannot keep the steps of moe.warmup_mode = dense_average, which are others "
          "than those after it; choose cuda_graph auto, or warmup_mode blend");
  }
  rules.warn_if_inert("moe.warmup_mode", m.warmup_steps > 0, "moe.warmup_steps");
  const double alive = m.n_experts * (1 - m.expert_dropout);
  if (m.expert_dropout > 0 && alive < c.router.top_k)
    rules.warn(
        format("moe.expert_dropout = %g leaves %.1f of %d experts on average, fewer than router.top_k = %d; the "
               "luckiest %d stay",
               m.expert_dropout, alive, m.n_experts, c.router.top_k, c.router.top_k));
}

}  // namespace

void check_moe(Rules& rules) {
  const Config& c = rules.config();
  if (!c.moe.use_moe && c.moe.flexible_ffn && rules.set("moe.flexible_ffn"))
    rules.fail(
        "moe.flexible_ffn = true mixes experts with a dense MLP, and moe.use_moe = false; set use_moe true, or "
        "leave flexible_ffn out");
  if (!c.moe.use_moe) return warn_of_unused_sparse_keys(rules);
  check_experts(rules);
  check_segments(rules);
  check_capacity(rules);
  check_beside(rules);
  check_router(rules);
}

}  // namespace switchyard
