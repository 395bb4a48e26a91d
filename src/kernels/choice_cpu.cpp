#include "base/error.h"
#include "kernels/choice.h"
#include "kernels/token_scores.h"

namespace switchyard::kernels {
namespace {

template <class T>
void add_noise(const ChoiceScores<T>& p, std::uint64_t key, std::int64_t t, T* logits) {
  const std::uint64_t place = noise_place(p.noise, t);
  for (int c = 0; c < p.columns; c += 4) {
    const Draw4 draw = draw_noise(p.noise.kind, philox(key, place, static_cast<std::uint64_t>(c / 4)));
    for (int j = 0; j < std::min(4, p.columns - c); ++j) logits[c + j] += static_cast<T>(p.noise_scale * draw.value[j]);
  }
}

template <class T>
void limit_to_groups(const ChoiceScores<T>& p, std::int64_t t, T* q, std::vector<T>& score) {
  const int size = p.experts / p.groups, first = first_group(p, t);
  for (int g = 0; g < p.groups; ++g) score[g] = group_score(q + g * size, size, p.sum_of_two);
  for (int g = 0; g < p.groups; ++g)
    if (group_rank(score.data(), p.groups, g, first) >= p.kept)
      std::fill_n(q + g * size, size, -std::numeric_limits<T>::infinity());
}

}  // namespace

template <class T>
void choice_scores_cpu(const ChoiceScores<T>& p, Range tokens) {
  SWITCHYARD_ASSERT(p.groups >= 1 && p.kept >= 1 && p.kept <= p.groups && p.experts % p.groups == 0,
                    "groups divide the experts, and some are kept");
  const std::uint64_t key = p.noise_scale > 0 ? dropout_key(p.noise.seed, *p.noise.step, p.noise.site) : 0;
  TokenScores<T> scores(p.columns, p.score);
  std::vector<T> noisy(p.columns), of_group(p.groups);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const T* logits = p.logits + t * p.columns;
    if (p.noise_scale > 0) {
      std::copy_n(logits, p.columns, noisy.data());
      add_noise(p, key, t, noisy.data());
      logits = noisy.data();
    }
    scores.read(logits);
    T* q = p.q + t * p.columns;
    std::copy_n(scores.score(), p.columns, q);
    for (int c = 0; c < p.columns && p.bias; ++c) q[c] += static_cast<T>(p.bias[c]);
    for (int e = 0; e < p.experts && p.dropped; ++e)
      if (p.dropped[e]) q[e] = -std::numeric_limits<T>::infinity();
    if (p.kept < p.groups) limit_to_groups(p, t, q, of_group);
  }
}

template void choice_scores_cpu(const ChoiceScores<float>&, Range);
template void choice_scores_cpu(const ChoiceScores<double>&, Range);

}  // namespace switchyard::kernels
