// Text from the model, token by token, with cached keys and values (moe_spec T7).
#pragma once

#include "data/tokenizer.h"
#include "model/gpt.h"

namespace switchyard {

struct SamplingOptions {
  int max_tokens = 96;
  double temperature = 0.8;  // 0: the most likely token
  int top_k = 0;             // 0: all
  double top_p = 1.0;        // the smallest set of tokens whose probability reaches it
  std::uint64_t seed = 0;    // draws depend on (seed, sequence, position) alone
};

// Continues each of `count` copies of the prompt; stops a sequence at BOS, all at the model's seq_len. Returns prompt
// and continuation. An empty prompt starts from BOS.
std::vector<std::string> generate(Gpt& model, const Tokenizer& tokenizer, const std::string& prompt, int count,
                                  const SamplingOptions& options, at::Device device);

// One token of each row of logits [B, V] fp32 on the CPU; uniform[b] in (0, 1).
std::vector<int> choose_tokens(const at::Tensor& logits_BV, const std::vector<float>& uniform,
                               const SamplingOptions& options);

}  // namespace switchyard
