#include "data/shards.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr char kMagic[8] = {'S', 'Y', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kBuffer = 1 << 20;

template <class Token>
void append(std::string& buffer, const std::vector<int>& ids) {
  for (const int id : ids) {
    const auto token = static_cast<Token>(id);
    buffer.append(reinterpret_cast<const char*>(&token), sizeof(token));
  }
}

template <class Token>
std::uint32_t largest(const char* data, std::uint64_t count) {
  const auto* tokens = reinterpret_cast<const Token*>(data);
  return count == 0 ? 0 : *std::max_element(tokens, tokens + count);
}

template <class Token>
void copy_tokens(const char* data, std::int64_t first, std::int64_t count, std::int32_t* out) {
  const auto* tokens = reinterpret_cast<const Token*>(data) + first;
  for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<std::int32_t>(tokens[i]);
}

constexpr const char* kFix = "; delete the folder and let it be made again";

void check_header(const ShardHeader& header, std::size_t file_size, const std::string& path,
                  std::uint64_t tokenizer_hash) {
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) throw RunError(path + " is no token shard");
  if (header.version != kVersion || (header.token_bytes != 2 && header.token_bytes != 4)) {
    throw RunError(format("%s has shard version %u with %u-byte tokens, this program reads version %u%s", path.c_str(),
                          header.version, header.token_bytes, kVersion, kFix));
  }
  if (header.tokenizer_hash != tokenizer_hash) {
    throw RunError(
        format("%s was written with another tokenizer (hash %016llx, this one is %016llx); use the tokenizer.model "
               "beside it, or tokenize again",
               path.c_str(), static_cast<unsigned long long>(header.tokenizer_hash),
               static_cast<unsigned long long>(tokenizer_hash)));
  }
  const std::uint64_t expected = sizeof(ShardHeader) + header.count * header.token_bytes;
  if (file_size != expected) {
    throw RunError(format("%s is truncated or damaged: %zu bytes, %llu expected%s", path.c_str(), file_size,
                          static_cast<unsigned long long>(expected), kFix));
  }
}

void check_vocabulary(std::uint32_t largest_token, int vocab_size, const std::string& path) {
  if (static_cast<std::int64_t>(largest_token) < vocab_size) return;
  throw RunError(format("%s holds token %u, beyond the vocabulary of %d; model.vocab_size must be at least %u",
                        path.c_str(), largest_token, vocab_size, largest_token + 1));
}

void check_contents(const ShardHeader& header, const char* data, int vocab_size, const std::string& path) {
  if (fnv1a({data, header.count * header.token_bytes}) != header.checksum) {
    throw RunError(path + " is damaged: its checksum does not match" + kFix);
  }
  const std::uint32_t found =
      header.token_bytes == 2 ? largest<std::uint16_t>(data, header.count) : largest<std::uint32_t>(data, header.count);
  check_vocabulary(found, vocab_size, path);
}

}  // namespace

ShardWriter::ShardWriter(std::string path, std::uint64_t tokenizer_hash, int vocab_size)
    : path_(std::move(path)),
      temporary_(path_ + ".tmp." + std::to_string(::getpid())),
      file_(std::fopen(temporary_.c_str(), "wb")) {
  if (!file_) throw RunError("cannot write " + temporary_ + ": " + std::strerror(errno));
  std::memcpy(header_.magic, kMagic, sizeof(kMagic));
  header_.version = kVersion;
  header_.token_bytes = vocab_size <= 65536 ? 2 : 4;
  header_.tokenizer_hash = tokenizer_hash;
  header_.vocab_size = static_cast<std::uint32_t>(vocab_size);
  header_.checksum = fnv1a("");
  buffer_.assign(sizeof(ShardHeader), '\0');  // the place of the header, which is known at the end
  flush();
}

ShardWriter::~ShardWriter() {
  if (!file_) return;
  std::fclose(file_);
  std::remove(temporary_.c_str());
}

void ShardWriter::flush() {
  if (std::fwrite(buffer_.data(), 1, buffer_.size(), file_) != buffer_.size()) {
    throw RunError("cannot write " + temporary_ + ": " + std::strerror(errno));
  }
  buffer_.clear();
}

void ShardWriter::add(const std::vector<int>& ids, std::uint64_t source_bytes) {
  const std::size_t before = buffer_.size();
  if (header_.token_bytes == 2) {
    append<std::uint16_t>(buffer_, ids);
  } else {
    append<std::uint32_t>(buffer_, ids);
  }
  header_.checksum = fnv1a({buffer_.data() + before, buffer_.size() - before}, header_.checksum);
  for (const int id : ids) header_.largest_token = std::max(header_.largest_token, static_cast<std::uint32_t>(id));
  header_.count += ids.size();
  header_.source_bytes += source_bytes;
  ++header_.documents;
  if (buffer_.size() > kBuffer) flush();
}

void ShardWriter::finish() {
  flush();
  if (std::fseek(file_, 0, SEEK_SET) != 0) throw RunError("cannot write " + temporary_ + ": " + std::strerror(errno));
  buffer_.assign(reinterpret_cast<const char*>(&header_), sizeof(header_));
  flush();
  const int closed = std::fclose(file_);
  file_ = nullptr;
  if (closed != 0) throw RunError("cannot write " + temporary_ + ": " + std::strerror(errno));
  sync_file(temporary_);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0)
    throw RunError("cannot rename to " + path_ + ": " + std::strerror(errno));
  sync_folder(std::filesystem::path(path_).parent_path().string());
}

ShardSet::ShardSet(const std::vector<std::string>& paths, std::uint64_t tokenizer_hash, int vocab_size,
                   ShardCheck check) {
  for (const std::string& path : paths) {
    files_.emplace_back(path);
    const MappedFile& file = files_.back();
    ShardHeader header;
    if (file.size() < sizeof(header)) throw RunError(path + " is truncated: it holds no shard header" + kFix);
    std::memcpy(&header, file.data(), sizeof(header));
    check_header(header, file.size(), path, tokenizer_hash);
    if (check == ShardCheck::kContents) check_contents(header, file.data() + sizeof(header), vocab_size, path);
    check_vocabulary(header.largest_token, vocab_size, path);
    starts_.push_back(starts_.back() + static_cast<std::int64_t>(header.count));
    token_bytes_.push_back(static_cast<int>(header.token_bytes));
    source_bytes_ += static_cast<std::int64_t>(header.source_bytes);
    documents_ += static_cast<std::int64_t>(header.documents);
  }
  if (size() == 0)
    throw RunError(paths.empty() ? "there are no token shards to read"
                                 : paths[0] + " holds no tokens: the corpus is empty; tokenize one that holds text");
}

void ShardSet::read(std::int64_t first, std::int64_t count, std::int32_t* out) const {
  SWITCHYARD_ASSERT(first >= 0 && count >= 0 && first + count <= size(), "tokens beyond the shards");
  auto shard = static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin()) - 1;
  while (count > 0) {
    const std::int64_t inside = first - starts_[shard], taken = std::min(count, starts_[shard + 1] - first);
    const char* data = files_[shard].data() + sizeof(ShardHeader);
    if (token_bytes_[shard] == 2) {
      copy_tokens<std::uint16_t>(data, inside, taken, out);
    } else {
      copy_tokens<std::uint32_t>(data, inside, taken, out);
    }
    first += taken;
    out += taken;
    count -= taken;
    ++shard;
  }
}

}  // namespace switchyard
