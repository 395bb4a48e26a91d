#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "data/utf8.h"
#include "data/words.h"

namespace switchyard {
namespace {

constexpr std::size_t kLongestCachedWord = 64;
constexpr std::size_t kCachedWords = 500000;  // about 60 MB a thread

std::string text_of_piece(const sentencepiece::SentencePieceProcessor& model, int id) {
  if (model.IsControl(id) || model.IsUnknown(id) || model.IsUnused(id)) return "";
  std::string piece = model.IdToPiece(id);
  if (model.IsByte(id)) return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
  for (std::size_t at; (at = piece.find(kSpaceMarker)) != std::string::npos;)
    piece.replace(at, kSpaceMarker.size(), " ");
  return piece;
}

}  // namespace

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const std::string& path) { return from_bytes(read_file(path), path); }

Tokenizer Tokenizer::from_bytes(std::string model, const std::string& name) {
  Tokenizer tokenizer;
  tokenizer.processor_ = std::make_unique<sentencepiece::SentencePieceProcessor>();
  auto& processor = *tokenizer.processor_;
  const auto status = processor.LoadFromSerializedProto(model);
  if (!status.ok()) throw ConfigError(name + " is no sentencepiece model: " + status.ToString());
  tokenizer.bos_ = processor.bos_id();
  if (tokenizer.bos_ < 0)
    throw ConfigError(name + " has no BOS piece, which separates documents; train it with a bos_id");

  tokenizer.byte_id_.assign(256, -1);
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    tokenizer.text_of_.push_back(text_of_piece(processor, id));
    tokenizer.bytes_of_.push_back(static_cast<std::uint16_t>(tokenizer.text_of_.back().size()));
    if (processor.IsByte(id)) tokenizer.byte_id_[static_cast<unsigned char>(tokenizer.text_of_.back()[0])] = id;
  }
  // Pieces of another trainer may reach across our cuts: such a model gets whole lines.
  const auto is_whole = [](const std::string& piece) { return piece.empty() || word_end(piece, 0) == piece.size(); };
  tokenizer.by_words_ = std::all_of(tokenizer.text_of_.begin(), tokenizer.text_of_.end(), is_whole);
  for (const int id : tokenizer.byte_id_) {
    if (id < 0)
      throw ConfigError(name + " lacks byte pieces, so it cannot hold every text; train it with byte_fallback");
  }
  std::vector<int> ids;
  const std::string probe = "if x:  return (x)";
  if (!processor.Encode(probe, &ids).ok() || tokenizer.decode(ids) != probe) {
    throw ConfigError(name +
                      " changes white space; train it with add_dummy_prefix=false, remove_extra_whitespaces=false and "
                      "normalization_rule_name=identity, or let tokenize train one");
  }
  tokenizer.hash_ = fnv1a(model);
  tokenizer.model_ = std::move(model);
  return tokenizer;
}

std::size_t Tokenizer::unit_end(std::string_view text, std::size_t begin) const {
  return by_words_ ? word_end(text, begin) : line_end(text, begin);
}

void Tokenizer::encode_word(std::string_view word, std::vector<int>& ids) const {
  const auto as_bytes = [&](std::string_view text) {
    for (const char c : text) ids.push_back(byte_id_[static_cast<unsigned char>(c)]);
  };
  const auto through_model = [&](std::string_view text) {
    if (text.empty()) return;
    std::vector<int> given;
    // Checked here, once a word, so that no version or setting of the library can lose a byte.
    if (processor_->Encode(text, &given).ok() && decode(given) == text) {
      ids.insert(ids.end(), given.begin(), given.end());
    } else {
      as_bytes(text);
    }
  };
  std::size_t begin = 0, at = 0;
  while (at < word.size()) {
    if (const std::size_t length = plain_length(word, at)) {
      at += length;
      continue;
    }
    through_model(word.substr(begin, at - begin));
    const std::size_t length = std::max<std::size_t>(utf8_length(word, at), 1);
    as_bytes(word.substr(at, length));
    begin = at += length;
  }
  through_model(word.substr(begin));
}

std::vector<int> Tokenizer::encode(std::string_view text) const {
  std::vector<int> ids;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = unit_end(text, begin);
    encode_word(text.substr(begin, end - begin), ids);
    begin = end;
  }
  return ids;
}

void Tokenizer::Encoder::encode(std::string_view text, std::vector<int>& ids) {
  std::string key;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = tokenizer_.unit_end(text, begin);
    key.assign(text, begin, end - begin);
    begin = end;
    if (key.size() > kLongestCachedWord) {
      tokenizer_.encode_word(key, ids);
      continue;
    }
    const auto [entry, is_new] = words_.try_emplace(key);
    if (is_new) tokenizer_.encode_word(key, entry->second);
    ids.insert(ids.end(), entry->second.begin(), entry->second.end());
    if (words_.size() > kCachedWords) words_.clear();
  }
}

std::string Tokenizer::decode(const std::vector<int>& ids) const {
  std::string text;
  for (const int id : ids) {
    if (id >= 0 && id < size()) text += text_of_[static_cast<std::size_t>(id)];
  }
  return text;
}

}  // namespace switchyard
