// prepared.json: what a folder of shards holds. Written last, so a folder that has it is complete.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

struct Split {
  std::vector<std::string> shards;  // paths; the file keeps their names only, so a folder can be moved
  std::int64_t documents = 0, bytes = 0, tokens = 0;
};

struct PreparedManifest {
  std::string corpus, corpus_hash;
  std::uint64_t tokenizer_hash = 0;
  int vocab_size = 0;
  Split train, heldout;
};

bool has_prepared_manifest(const std::string& folder);
void write_prepared_manifest(const PreparedManifest& manifest, const std::string& folder);
PreparedManifest read_prepared_manifest(const std::string& folder);  // RunError when missing or unreadable

}  // namespace switchyard
