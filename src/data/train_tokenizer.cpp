#include <sentencepiece_trainer.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "data/tokenizer.h"
#include "data/utf8.h"

namespace switchyard {
namespace {

constexpr std::size_t kLongestLine = 8192;      // bytes; longer lines are data rather than text, and slow to learn from
constexpr int kFewestPieces = 320;              // BOS, unknown, 256 bytes, and some characters

class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) { skip(); }
  bool done() const override { return at_ == lines_.size(); }
  void Next() override {
    ++at_;
    skip();
  }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  // What encode() keeps from the model, training keeps from it too.
  void skip() {
    while (at_ < lines_.size() && (lines_[at_].empty() || lines_[at_].size() > kLongestLine || !is_plain(lines_[at_]))) ++at_;
  }
  const std::vector<std::string>& lines_;
  std::size_t at_ = 0;
};

}  // namespace

std::string Tokenizer::train(const std::vector<std::string>& lines, const TokenizerOptions& options) {
  if (options.vocab_size < kFewestPieces) {
    throw ConfigError(format("model.vocab_size = %d leaves no room beside the 256 byte pieces; choose %d or more",
                             options.vocab_size, kFewestPieces));
  }
  Lines iterator(lines);
  if (iterator.done()) throw ConfigError("the tokenizer has no text to learn from: the corpus is empty or not text");
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
          {"max_sentence_length", std::to_string(kLongestLine)},
          {"minloglevel", "3"},
      },
      &iterator, &model);
  if (!status.ok()) {
    throw ConfigError(format("cannot train a tokenizer of %d pieces on this text (sentencepiece: %s); choose another "
                             "model.vocab_size or a larger corpus",
                             options.vocab_size, status.ToString().c_str()));
  }
  return model;
}

}  // namespace switchyard
