// Text to token ids and back, over a sentencepiece BPE model with byte fallback. Lossless for any bytes: what the model
// would not give back (invalid UTF-8, NUL, its own space marker U+2581, characters it does not know) goes through byte
// pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace switchyard {

struct TokenizerOptions {
  int vocab_size = 32768;  // at least kFewestPieces (config.h); a small text may give fewer pieces
};

class Tokenizer {
 public:
  // Trains a model on `lines` (each with its newline) and returns the serialized model. The same lines, options and
  // library version give the same bytes. ConfigError when the vocabulary does not fit the text.
  static std::string train(const std::vector<std::string>& lines, const TokenizerOptions& options);

  static Tokenizer load(const std::string& path);  // ConfigError when it is no usable model
  static Tokenizer from_bytes(std::string model, const std::string& name = "model");
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  int size() const { return static_cast<int>(bytes_of_.size()); }  // number of pieces
  int bos() const { return bos_; }                                 // stands before every document; holds no text
  std::uint64_t hash() const { return hash_; }                     // of the model's bytes: a shard remembers it
  const std::string& model() const { return model_; }              // the serialized model

  std::vector<int> encode(std::string_view text) const;  // no BOS added
  // A word cache for one thread: text repeats itself, and a repeated word costs a look-up. Ids are appended.
  class Encoder {
   public:
    explicit Encoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
    void encode(std::string_view text, std::vector<int>& ids);

   private:
    const Tokenizer& tokenizer_;
    std::unordered_map<std::string, std::vector<int>> words_;
  };

  std::string decode(const std::vector<int>& ids) const;  // every byte back; BOS and unknown ids give nothing
  const std::string& piece(int id) const { return text_of_[static_cast<std::size_t>(id)]; }  // the bytes of one token
  // Source bytes of each token, 0 for BOS: what bits per byte divides by. [size()]
  const std::vector<std::uint16_t>& bytes_of() const { return bytes_of_; }

 private:
  Tokenizer();
  std::size_t unit_end(std::string_view text, std::size_t begin) const;
  void encode_word(std::string_view word, std::vector<int>& ids) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  std::string model_;
  std::uint64_t hash_ = 0;
  int bos_ = -1;
  bool by_words_ = true;      // else by lines
  std::vector<int> byte_id_;  // [256]
  std::vector<std::string> text_of_;
  std::vector<std::uint16_t> bytes_of_;
};

}  // namespace switchyard
