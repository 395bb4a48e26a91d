// attention_backward.
#include <algorithm>

#include "harness.h"
#include "kernels/attention_backward.h"

namespace switchyard::gpu_check {
namespace {

constexpr int kChannels = 64;

struct AttentionCase {
  const char* name;
  int sequences, seq_len, heads, kv_heads, window;
  double size = 1;  // of queries and keys
};
const std::vector<AttentionCase> kAttentionCases = {
    {"one tile", 1, 128, 1, 1, 128},         {"two tiles", 1, 256, 1, 1, 256},
    {"four tokens", 3, 4, 2, 2, 4},          {"half a tile and a bit", 2, 68, 3, 3, 68},
    {"a part tile", 2, 320, 2, 2, 320},      {"many tiles", 1, 1024, 2, 2, 1024},
    {"many items", 150, 132, 3, 3, 132},     {"two queries a key", 2, 260, 4, 2, 260},
    {"one key head", 1, 200, 5, 1, 200},     {"itself alone", 1, 256, 1, 1, 1},
    {"window of two", 1, 140, 2, 2, 2},      {"window of a part", 1, 512, 2, 1, 64},
    {"window of a tile", 2, 512, 1, 1, 128}, {"an odd window", 1, 516, 2, 2, 201},
    {"sharp scores", 1, 384, 2, 2, 384, 3},
};

// Straight from the definition. backward() takes what a forward has stored, rounded as that is.
struct Reference {
  const AttentionCase& c;
  const Input<bf16>& qkv;
  const int width = (c.heads + 2 * c.kv_heads) * kChannels, out_width = c.heads * kChannels;

  std::size_t row(int sequence, int token) const {
    return static_cast<std::size_t>(sequence) * c.seq_len + static_cast<std::size_t>(token);
  }
  int key_head(int head) const { return c.heads + head / (c.heads / c.kv_heads); }
  double dot(std::size_t i, std::size_t j) const {
    double sum = 0;
    for (int k = 0; k < kChannels; ++k) sum += qkv[i + k] * qkv[j + k];
    return sum;
  }
  // visit(sequence, head, query, first seen key, scores of the keys seen)
  template <class Visit>
  void each_query(Visit visit) const {
    for (int s = 0; s < c.sequences; ++s)
      for (int h = 0; h < c.heads; ++h)
        for (int q = 0; q < c.seq_len; ++q) {
          const int first = std::max(0, q - c.window + 1);
          Values scores;
          for (int k = first; k <= q; ++k)
            scores.push_back(dot(row(s, q) * width + h * kChannels, row(s, k) * width + key_head(h) * kChannels) / 8);
          visit(s, h, q, first, scores);
        }
  }
  void forward(Values& out, Values& log_sums) const {
    out.assign(static_cast<std::size_t>(c.sequences) * c.seq_len * out_width, 0);
    log_sums.assign(static_cast<std::size_t>(c.sequences) * c.heads * c.seq_len, 0);
    each_query([&](int s, int h, int q, int first, const Values& scores) {
      const double most = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (const double score : scores) sum += std::exp(score - most);
      log_sums[(static_cast<std::size_t>(s) * c.heads + h) * c.seq_len + q] = most + std::log(sum);
      double* o = &out[row(s, q) * out_width + h * kChannels];
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const double chance = std::exp(scores[i] - most) / sum;
        const std::size_t v = row(s, first + static_cast<int>(i)) * width + (key_head(h) + c.kv_heads) * kChannels;
        for (int k = 0; k < kChannels; ++k) o[k] += chance * qkv[v + k];
      }
    });
  }
  Values backward(const Input<bf16>& out, const Input<bf16>& d_out, const Input<float>& log_sums) const {
    Values d(qkv.host.size());
    each_query([&](int s, int h, int q, int first, const Values& scores) {
      const std::size_t query = row(s, q) * width + h * kChannels, own = row(s, q) * out_width + h * kChannels;
      double dot = 0;
      for (int k = 0; k < kChannels; ++k) dot += out[own + k] * d_out[own + k];
      const double log_sum = log_sums[(static_cast<std::size_t>(s) * c.heads + h) * c.seq_len + q];
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const std::size_t key = row(s, first + static_cast<int>(i)) * width + key_head(h) * kChannels,
                          value = key + c.kv_heads * kChannels;
        const double chance = std::exp(scores[i] - log_sum);
        double d_chance = 0;
        for (int k = 0; k < kChannels; ++k) d_chance += d_out[own + k] * qkv[value + k];
        const double d_score = chance * (d_chance - dot) / 8;
        for (int k = 0; k < kChannels; ++k) {
          d[query + k] += d_score * qkv[key + k];
          d[key + k] += d_score * qkv[query + k];
          d[value + k] += chance * d_out[own + k];
        }
      }
    });
    return d;
  }
};

// What qkv_rope() did, and the gradient's way back through it.
enum class Rotated { kNo, kYes, kWithNorm };
struct Rotation {
  Rotated how;
  Input<float> cos, sin, inverse_rms;
  Rotation(Rotated how, const AttentionCase& c, Random& random)
      : how(how),
        cos(table(c, [](double angle) { return std::cos(angle); })),
        sin(table(c, [](double angle) { return std::sin(angle); })),
        inverse_rms(
            positive(random.normal(static_cast<std::size_t>(c.sequences) * c.seq_len * (c.heads + c.kv_heads)))) {}

  template <class Of>
  static Values table(const AttentionCase& c, Of of) {
    Values t;
    for (int i = 0; i < c.seq_len; ++i)
      for (int k = 0; k < kChannels / 2; ++k) t.push_back(of(i * std::pow(1000, -k / 32.0) + k));
    return t;
  }
  static Values positive(Values v) {
    for (double& x : v) x = 0.5 + std::abs(x);
    return v;
  }
  // d of a head of token `token` (of all sequences), y its channels.
  void turn_back(const AttentionCase& c, std::size_t token, int head, const double* y, double* d) const {
    if (how == Rotated::kNo) return;
    if (how == Rotated::kWithNorm) {
      double along = 0;
      for (int k = 0; k < kChannels; ++k) along += d[k] * y[k] / kChannels;
      for (int k = 0; k < kChannels; ++k)
        d[k] = (d[k] - along * y[k]) * inverse_rms[token * (c.heads + c.kv_heads) + head];
    }
    for (int k = 0; k < kChannels / 2; ++k) {
      const std::size_t at = token % c.seq_len * (kChannels / 2) + k;
      const double low = d[k], high = d[k + kChannels / 2];
      d[k] = low * cos[at] - high * sin[at];
      d[k + kChannels / 2] = high * cos[at] + low * sin[at];
    }
  }
};

void check_backward(Report& report, const AttentionCase& c, Rotated how) {
  Random random(13);
  const std::size_t tokens = static_cast<std::size_t>(c.sequences) * c.seq_len;
  const int width = (c.heads + 2 * c.kv_heads) * kChannels, out_width = c.heads * kChannels;
  Values values = random.normal(tokens * width);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (static_cast<int>(i % width) < (c.heads + c.kv_heads) * kChannels) values[i] *= c.size;
  const Input<bf16> qkv(values), d_out(random.normal(tokens * out_width));
  const Reference reference{c, qkv};
  Values out_values, log_sum_values;
  reference.forward(out_values, log_sum_values);
  const Input<bf16> out(out_values);
  const Input<float> log_sums(log_sum_values);
  const Rotation rotation(how, c, random);

  Buffer<bf16> d_qkv(tokens * width), again(tokens * width);
  Buffer<float> scratch(kernels::attention_backward_scratch(c.sequences, c.seq_len, c.heads));
  for (const Buffer<bf16>* to : {&d_qkv, &again})
    run_captured([&](Stream s) {
      kernels::attention_backward(
          {qkv.get(), out.get(), d_out.get(), log_sums.get(), to->get(), scratch.get(), c.sequences, c.seq_len, c.heads,
           c.kv_heads, c.window, how == Rotated::kNo ? nullptr : rotation.cos.get(), rotation.sin.get(),
           how == Rotated::kWithNorm ? rotation.inverse_rms.get() : nullptr},
          s);
    });

  // Chances and the scores' gradients are rounded to bf16 on their way into the products, each off by 1/512 at most;
  // what they are summed with is about one, at most five.
  const double grown = how == Rotated::kNo ? 1 : how == Rotated::kYes ? 1.5 : 5;  // a norm's factor is 4 at most
  const Bound bound{1.0 / 100, grown * 0.02 * c.size * std::sqrt(static_cast<double>(c.heads) / c.kv_heads)};
  const Values got = values_of(d_qkv);
  Values want = reference.backward(out, d_out, log_sums);
  for (std::size_t t = 0; t < tokens; ++t)
    for (int head = 0; head < c.heads + c.kv_heads; ++head) {
      const std::size_t at = t * width + static_cast<std::size_t>(head) * kChannels;
      rotation.turn_back(c, t, head, &qkv.host[at], &want[at]);
    }
  const std::string name = std::string(c.name) + (how == Rotated::kNo    ? ""
                                                  : how == Rotated::kYes ? ", rotated"
                                                                         : ", normed and rotated");
  const char* names[] = {", queries", ", keys", ", values"};
  const int ends[] = {0, c.heads * kChannels, (c.heads + c.kv_heads) * kChannels, width};
  for (int part = 0; part < 3; ++part) {
    Values own, wanted;
    for (std::size_t i = 0; i < got.size(); ++i)
      if (const int column = static_cast<int>(i % width); column >= ends[part] && column < ends[part + 1])
        own.push_back(got[i]), wanted.push_back(want[i]);
    report.compare("attention_backward", name + names[part], own, wanted, bound);
  }
  report.compare("attention_backward", name + ", the same bits", values_of(again), got, kExact);
  report.expect("attention_backward", name + ", nothing past the end", d_qkv.guard_intact() && scratch.guard_intact());
}

}  // namespace

void check_attention(Report& report) {
  for (const AttentionCase& c : kAttentionCases)
    for (const Rotated how : {Rotated::kNo, Rotated::kYes, Rotated::kWithNorm}) check_backward(report, c, how);
}

}  // namespace switchyard::gpu_check
