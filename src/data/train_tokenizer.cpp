#include <sentencepiece_trainer.h>

#include <unordered_map>

#include "base/error.h"
#include "base/text.h"
#include "config/config.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "data/words.h"

namespace switchyard {
namespace {

// "word<tab>count" of every word, in order of first appearance: the same merges as from the lines themselves, since
// none reaches across a word, at a tenth of the time.
std::vector<std::string> count_words(const std::vector<std::string>& lines) {
  std::vector<std::pair<std::string, std::int64_t>> counts;
  std::unordered_map<std::string, std::size_t> place;
  for (const std::string& line : lines) {
    for (std::size_t begin = 0; begin < line.size();) {
      const std::size_t end = word_end(line, begin);
      const auto [entry, is_new] = place.try_emplace(line.substr(begin, end - begin), counts.size());
      if (is_new) counts.emplace_back(entry->first, 0);
      ++counts[entry->second].second;
      begin = end;
    }
  }
  std::vector<std::string> rows;
  for (const auto& [word, count] : counts) {
    // What encode() keeps from the model, training keeps from it too.
    if (word != "\t" && is_plain(word)) rows.push_back(word + "\t" + std::to_string(count));
  }
  return rows;
}

class Rows : public sentencepiece::SentenceIterator {
 public:
  explicit Rows(const std::vector<std::string>& rows) : rows_(rows) {}
  bool done() const override { return at_ == rows_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return rows_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& rows_;
  std::size_t at_ = 0;
};

}  // namespace

std::string Tokenizer::train(const std::vector<std::string>& lines, const TokenizerOptions& options) {
  if (options.vocab_size < kFewestPieces) {
    throw ConfigError(format("model.vocab_size = %d leaves no room beside the 256 byte pieces; choose %d or more",
                             options.vocab_size, kFewestPieces));
  }
  const std::vector<std::string> rows = count_words(lines);
  Rows iterator(rows);
  if (iterator.done())
    throw ConfigError(
        "data.corpus: the tokenizer has no text to learn from, the corpus is empty or not text; name files that hold "
        "some");
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {
          {"model_type", "bpe"},
          {"vocab_size", std::to_string(options.vocab_size)},
          {"hard_vocab_limit", "false"},
          {"byte_fallback", "true"},
          {"bos_id", "0"},
          {"unk_id", "1"},
          {"eos_id", "-1"},
          {"pad_id", "-1"},
          // White space and every other character stay as they are; runs of spaces (indentation) become pieces.
          {"normalization_rule_name", "identity"},
          {"add_dummy_prefix", "false"},
          {"remove_extra_whitespaces", "false"},
          {"allow_whitespace_only_pieces", "true"},
          {"max_sentencepiece_length", "32"},
          {"character_coverage", "0.9995"},
          {"input_format", "tsv"},
          {"minloglevel", "3"},
      },
      &iterator, &model);
  if (!status.ok()) {
    throw ConfigError(
        format("cannot train a tokenizer of %d pieces on this text (sentencepiece: %s); choose another "
               "model.vocab_size or a larger corpus",
               options.vocab_size, status.ToString().c_str()));
  }
  return model;
}

}  // namespace switchyard
