// Token shards: a 64-byte header and the ids, two bytes each up to 65,536 pieces, four above. Written beside the final
// name and renamed; read through a memory mapping.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "base/files.h"

namespace switchyard {

struct ShardHeader {  // little-endian, as it lies in the file
  char magic[8];      // "SYTOKENS"
  std::uint32_t version;
  std::uint32_t token_bytes;  // 2 or 4
  std::uint64_t tokenizer_hash;
  std::uint64_t count;  // tokens, each document's BOS included
  std::uint64_t source_bytes;
  std::uint64_t checksum;  // FNV-1a of the token bytes
  std::uint32_t largest_token;
  std::uint32_t vocab_size;
  std::uint64_t documents;
};
static_assert(sizeof(ShardHeader) == 64);

class ShardWriter {
 public:
  ShardWriter(std::string path, std::uint64_t tokenizer_hash, int vocab_size);
  ~ShardWriter();  // without finish(): removes what was written
  ShardWriter(const ShardWriter&) = delete;
  // One document: its ids with BOS in front, and its source bytes. RunError when the disk is full.
  void add(const std::vector<int>& ids, std::uint64_t source_bytes);
  std::uint64_t count() const { return header_.count; }
  void finish();  // checksum, fsync, rename

 private:
  void flush();

  std::string path_, temporary_;
  std::FILE* file_ = nullptr;
  ShardHeader header_{};
  std::string buffer_;
};

enum class ShardCheck { kHeader, kContents };  // kContents also reads every token: checksum and vocabulary

// Several shards as one sequence of tokens.
class ShardSet {
 public:
  // RunError, each naming the file: not a shard, another version, another tokenizer, truncated, damaged, a token beyond
  // `vocab_size`, or no tokens at all.
  ShardSet(const std::vector<std::string>& paths, std::uint64_t tokenizer_hash, int vocab_size,
           ShardCheck check = ShardCheck::kHeader);

  std::int64_t size() const { return starts_.back(); }  // tokens
  std::int64_t source_bytes() const { return source_bytes_; }
  std::int64_t documents() const { return documents_; }
  // Tokens [first, first + count) into `out`; across shards. Within size(), else it is a bug.
  void read(std::int64_t first, std::int64_t count, std::int32_t* out) const;

 private:
  std::vector<MappedFile> files_;
  std::vector<std::int64_t> starts_{0};
  std::vector<int> token_bytes_;
  std::int64_t source_bytes_ = 0, documents_ = 0;
};

}  // namespace switchyard
