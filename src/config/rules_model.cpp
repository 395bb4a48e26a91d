#include <algorithm>
#include <cmath>
#include <tuple>

#include "config/field.h"
#include "config/rules.h"

namespace switchyard {

std::string choices_text(const std::vector<std::string>& choices) {
  if (choices.size() < 2) return join(choices, "");
  return join({choices.begin(), choices.end() - 1}, ", ") + " or " + choices.back();
}

std::string divisors_text(int n) {
  std::vector<std::string> divisors;
  for (int d = 1; d <= n; ++d)
    if (n % d == 0) divisors.push_back(std::to_string(d));
  return choices_text(divisors);
}

namespace {

void check_shorthand(Rules& rules) {
  const ModelConfig& m = rules.config().model;
  if (m.depth == 0) return rules.warn_if_inert("model.aspect_ratio", false, "model.depth");
  if (rules.set("model.n_layer") && m.n_layer != m.depth)
    rules.fail(format("model.depth = %d and model.n_layer = %d disagree; give one of them", m.depth, m.n_layer));
  if (rules.set("model.n_embd") && rules.set("model.aspect_ratio")) {
    const int width = width_of_depth(m);
    if (width != m.n_embd)
      rules.fail(
          format("model.n_embd = %d disagrees with model.depth = %d * model.aspect_ratio = %d, which gives %d; give "
                 "n_embd or aspect_ratio",
                 m.n_embd, m.depth, m.aspect_ratio, width));
  }
}

void check_heads(Rules& rules) {
  const ModelConfig& m = rules.config().model;
  if (!rules.set("model.n_head") && m.n_embd % m.head_dim != 0) {
    const int below = m.n_embd / m.head_dim * m.head_dim;
    const std::string near = below > 0 ? format("%d or %d", below, below + m.head_dim) : std::to_string(m.head_dim);
    rules.fail(
        format("model.n_embd = %d is not a multiple of model.head_dim = %d; choose n_embd %s, or give model.n_head",
               m.n_embd, m.head_dim, near.c_str()));
  }
  if (rules.set("model.n_head") && !rules.set("model.head_dim") && m.n_embd % m.n_head != 0)
    rules.fail(format("model.n_head = %d does not divide model.n_embd = %d; choose %s, or give model.head_dim",
                      m.n_head, m.n_embd, divisors_text(m.n_embd).c_str()));
  if (m.head_dim % 2 != 0)
    rules.fail(format("model.head_dim = %d is odd, and rotary embeddings turn pairs of channels; choose %d or %d",
                      m.head_dim, m.head_dim - 1, m.head_dim + 1));
  if (m.n_head % m.n_kv_head != 0)
    rules.fail(format("model.n_kv_head = %d does not divide model.n_head = %d; choose %s", m.n_kv_head, m.n_head,
                      divisors_text(m.n_head).c_str()));
}

void check_attention(Rules& rules) {
  const ModelConfig& m = rules.config().model;
  if (m.qk_norm_weight && !m.qk_norm)
    rules.fail(
        "model.qk_norm_weight = true has nothing to weigh, because model.qk_norm = false; set qk_norm true or "
        "qk_norm_weight false");
  if (m.value_embeds && m.value_gate_channels > m.n_embd)
    rules.fail(format("model.value_gate_channels = %d exceeds model.n_embd = %d; choose 1 to %d", m.value_gate_channels,
                      m.n_embd, m.n_embd));
  rules.warn_if_inert("model.value_gate_channels", m.value_embeds, "model.value_embeds");
  if (m.window_pattern.find('S') != std::string::npos && m.seq_len < 2)
    rules.fail(
        format("model.window_pattern = \"%s\" has a window of seq_len / 2, and model.seq_len = %d; choose a seq_len of "
               "at least 2",
               m.window_pattern.c_str(), m.seq_len));
  if (static_cast<int>(m.window_pattern.size()) > m.n_layer)
    rules.warn(format("model.window_pattern = \"%s\" has more letters than model.n_layer = %d; the rest is not used",
                      m.window_pattern.c_str(), m.n_layer));
}

void check_inl(Rules& rules) {
  const InlConfig& inl = rules.config().model.inl;
  if (!inl.enabled) {
    for (const Field& field : default_fields())
      if (field.group() == "model.inl") rules.warn_if_inert(field.key, field.leaf() == "enabled", "model.inl.enabled");
    return;
  }
  if (inl.dt * inl.beta_max > 2)
    rules.fail(
        format("model.inl is unstable: dt = %g times beta_max = %g is %g, more than 2; choose a beta_max of at "
               "most %g",
               inl.dt, inl.beta_max, inl.dt * inl.beta_max, 2 / inl.dt));
  for (const auto& [key, value, high] :
       {std::tuple{"init_alpha", inl.init_alpha, 1.0}, std::tuple{"init_beta", inl.init_beta, inl.beta_max},
        std::tuple{"init_gate", inl.init_gate, 1.0}})
    if (value <= 0 || value >= high) rules.fail(format("model.inl.%s = %g is not inside 0 to %g", key, value, high));
  if ((inl.mu_min != 0 || inl.mu_max != 0) && inl.mu_min >= inl.mu_max)
    rules.fail(format("model.inl.mu_min = %g is not below model.inl.mu_max = %g; give both, or neither", inl.mu_min,
                      inl.mu_max));
  if (inl.mode == "lite") rules.warn_if_inert("model.inl.controller_hidden", false, "model.inl.mode = adaptive");
  if (inl.carry_velocity && !inl.shared)
    rules.fail(
        "model.inl.carry_velocity = true with model.inl.shared = false: a velocity belongs to one module; leave one of "
        "them out");
  if (inl.carry_velocity)
    rules.fail(
        "model.inl.carry_velocity = true needs text that is read in order, and training reads windows in random "
        "order; leave it out");
}

}  // namespace

void check_model(Rules& rules) {
  const Config& c = rules.config();
  check_shorthand(rules);
  check_heads(rules);
  check_attention(rules);
  check_inl(rules);
  rules.warn_if_inert("model.init_std", c.model.init == "llama", "model.init = llama");
  rules.warn_if_inert("optim.adamw.head_lr", !c.model.tie_head, "a head of its own (model.tie_head = false)");
  if (c.data.tokenizer.empty() && c.model.vocab_size < kFewestPieces)
    rules.fail(format(
        "model.vocab_size = %d is too small for a trained tokenizer, whose byte pieces alone take 256; choose at "
        "least %d, or give data.tokenizer",
        c.model.vocab_size, kFewestPieces));
}

}  // namespace switchyard
