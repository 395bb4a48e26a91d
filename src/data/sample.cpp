#include "data/sample.h"

#include <algorithm>

#include "base/philox.h"
#include "data/words.h"

namespace switchyard {
namespace {

// Keeps the lines with the `size` smallest keys.
class LineSample {
 public:
  LineSample(std::int64_t size, std::uint64_t seed)
      : size_(static_cast<std::size_t>(size)), key_(mix_key(seed, 0x6c696e65)) {}

  void add_text(const std::string& text) {
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = line_end(text, begin);
      add(text, begin, end);
      begin = end;
    }
  }

  std::vector<std::string> take() {
    shrink();
    std::sort(kept_.begin(), kept_.end(), [](const Line& a, const Line& b) { return a.number < b.number; });
    std::vector<std::string> lines;
    for (Line& line : kept_) lines.push_back(std::move(line.text));
    return lines;
  }

 private:
  struct Line {
    std::uint64_t key;
    std::uint64_t number;
    std::string text;
  };

  void add(const std::string& text, std::size_t begin, std::size_t end) {
    const Words4 words = philox(key_, number_, 0);
    const std::uint64_t key = static_cast<std::uint64_t>(words.x) << 32 | words.y;
    if (key < limit_) kept_.push_back({key, number_, text.substr(begin, end - begin)});
    ++number_;
    if (kept_.size() >= 2 * size_ + 1024) shrink();
  }

  void shrink() {
    if (kept_.size() <= size_) return;
    const auto middle = kept_.begin() + static_cast<std::ptrdiff_t>(size_);
    std::nth_element(kept_.begin(), middle, kept_.end(), [](const Line& a, const Line& b) { return a.key < b.key; });
    limit_ = middle->key;
    kept_.erase(middle, kept_.end());
  }

  const std::size_t size_;
  const std::uint64_t key_;
  std::uint64_t number_ = 0, limit_ = ~0ull;
  std::vector<Line> kept_;
};

}  // namespace

Survey survey_corpus(const Corpus& corpus, const Holdout& holdout, std::int64_t sample_lines) {
  Survey survey;
  LineSample sample(sample_lines, holdout.seed);
  for_each_document(corpus, [&](Document&& document) {
    const double key = holdout.key(document.id);
    survey.lowest_key = std::min(survey.lowest_key, key);
    survey.bytes += static_cast<std::int64_t>(document.raw.size());
    ++survey.documents;
    if (key < holdout.fraction) {
      ++survey.heldout_documents;
    } else if (sample_lines > 0) {
      sample.add_text(document_text(std::move(document), corpus.json_field));
    }
  });
  survey.lines = sample.take();
  return survey;
}

}  // namespace switchyard
