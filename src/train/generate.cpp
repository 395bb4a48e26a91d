#include "train/generate.h"

#include <algorithm>

#include "base/philox.h"

namespace switchyard {
namespace {

int choose(const at::Tensor& logits_V, float uniform, const SamplingOptions& options) {
  if (options.temperature <= 0) return static_cast<int>(logits_V.argmax().item<std::int64_t>());
  const std::int64_t vocab = logits_V.size(0);
  const auto [value, token] = at::sort(logits_V / options.temperature, 0, /*descending=*/true);
  const std::int64_t kept = options.top_k > 0 ? std::min<std::int64_t>(options.top_k, vocab) : vocab;
  const at::Tensor p = at::softmax(value.narrow(0, 0, kept).to(at::kDouble), 0), total = at::cumsum(p, 0);
  const double* sum = total.data_ptr<double>();
  const std::int64_t inside = std::lower_bound(sum, sum + kept, std::min(options.top_p, sum[kept - 1])) - sum + 1;
  const double target = uniform * sum[std::min(inside, kept) - 1];
  const std::int64_t chosen = std::lower_bound(sum, sum + std::min(inside, kept), target) - sum;
  return static_cast<int>(token[std::min(chosen, kept - 1)].item<std::int64_t>());
}

}  // namespace

std::vector<int> choose_tokens(const at::Tensor& logits_BV, const std::vector<float>& uniform,
                               const SamplingOptions& options) {
  std::vector<int> tokens;
  for (std::int64_t b = 0; b < logits_BV.size(0); ++b)
    tokens.push_back(choose(logits_BV[b], uniform[static_cast<std::size_t>(b)], options));
  return tokens;
}

std::vector<std::string> generate(Gpt& model, const Tokenizer& tokenizer, const std::string& prompt, int count,
                                  const SamplingOptions& options, at::Device device) {
  std::vector<int> start = tokenizer.encode(prompt);
  start.insert(start.begin(), tokenizer.bos());
  const int limit = model.config().model.seq_len;
  if (static_cast<int>(start.size()) > limit - 1) start.erase(start.begin() + 1, start.end() - (limit - 2));
  const int capacity = std::min<int>(limit, static_cast<int>(start.size()) + options.max_tokens);

  KvCache cache = model.make_cache(count, capacity);
  StepContext context;
  std::vector<std::vector<int>> text(static_cast<std::size_t>(count), start);
  std::vector<bool> done(static_cast<std::size_t>(count), false);
  std::vector<std::int64_t> input;
  for (const auto& row : text) input.insert(input.end(), row.begin(), row.end());
  while (true) {
    context.seq_len = static_cast<int>(input.size()) / count;
    const at::Tensor logits = model.logits_cached(at::tensor(input, at::kLong).to(device), context, cache).cpu();
    if (cache.length >= capacity) break;
    std::vector<float> uniform;
    for (int b = 0; b < count; ++b)
      uniform.push_back(to_uniform(
          philox(mix_key(options.seed, static_cast<std::uint64_t>(b)), static_cast<std::uint64_t>(cache.length), 0).x));
    const std::vector<int> next = choose_tokens(logits, uniform, options);
    input.assign(next.begin(), next.end());
    for (std::size_t b = 0; b < text.size(); ++b) {
      done[b] = done[b] || next[b] == tokenizer.bos();
      if (!done[b]) text[b].push_back(next[b]);
    }
    if (std::all_of(done.begin(), done.end(), [](bool d) { return d; })) break;
  }
  std::vector<std::string> result;
  for (const auto& row : text) result.push_back(tokenizer.decode({row.begin() + 1, row.end()}));
  return result;
}

}  // namespace switchyard
