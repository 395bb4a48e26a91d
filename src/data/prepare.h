// From data.corpus to shards on disk: trains the tokenizer, tokenizes, holds documents out, and keeps all of it in
// data.cache under a key of (corpus hash, vocabulary, tokenizer, seed, sample, holdout). The second run only opens it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/corpus.h"
#include "data/tokenizer.h"

namespace switchyard {

struct PreparedData {
  std::string folder;
  std::string corpus;       // data.corpus as given
  std::string corpus_hash;  // 32 hex digits
  std::string tokenizer_path;
  std::uint64_t tokenizer_hash = 0;
  int vocab_size = 0;  // of the tokenizer; at most the model's
  std::vector<std::string> train_shards, heldout_shards;
  std::int64_t train_documents = 0, train_bytes = 0, train_tokens = 0;
  std::int64_t heldout_documents = 0, heldout_bytes = 0, heldout_tokens = 0;
  bool from_cache = false;
};

// What train calls at start. Any number of processes of a host may call it at once: one prepares, the others wait and
// open the result. Hosts that share a cache without locks each build their own, and the first one's is kept.
// data.corpus may also be a folder that `tokenize` wrote. The shards are fully checked here. ConfigError or RunError
// when the corpus is empty, holds less than one window of seq_len + 1 tokens (in training or held out), or the
// tokenizer has more pieces than vocab_size.
PreparedData prepare_data(const DataConfig& config, int vocab_size, int seq_len, int threads = 0);

// A folder that prepare_data or `tokenize` wrote; RunError when it is none.
PreparedData open_prepared(const std::string& folder);

struct BuildOptions {
  int vocab_size = 32768;
  std::string tokenizer = "";  // an existing model; "": trained on a sample of the training documents
  std::int64_t sample_lines = 200000;
  double holdout_fraction = 0.02;
  std::uint64_t seed = 1;
  int threads = 0;  // 0: all cores
  std::int64_t shard_tokens = 100000000;
};
// Tokenizes into `folder` (created; the manifest prepared.json is written last).
PreparedData build_shards(const Corpus& corpus, const BuildOptions& options, const std::string& folder);

}  // namespace switchyard
