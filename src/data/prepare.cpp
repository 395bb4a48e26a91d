#include "data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "data/prepared_manifest.h"
#include "data/shards.h"

namespace switchyard {

namespace fs = std::filesystem;

namespace {

// Raised whenever the same corpus and options would give other shards.
constexpr int kPreparationVersion = 1;

// Held by the process that prepares; the others of this host wait for it.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path) : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0)
      throw RunError("cannot write " + path + ": " + std::strerror(errno) + "; choose another data.cache");
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
    log::info("waiting for another process to prepare the data");
    while (::flock(descriptor_, LOCK_EX) != 0) {
      if (errno == EINTR) continue;
      const int reason = errno;
      ::close(descriptor_);
      throw RunError("cannot lock " + path + ": " + std::strerror(reason) + "; choose a data.cache on a local disk");
    }
  }
  ~FolderLock() { ::close(descriptor_); }
  FolderLock(const FolderLock&) = delete;

 private:
  int descriptor_;
};

std::string short_name(const std::string& corpus) {
  std::string name;
  for (const char c : corpus.substr(0, 40)) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

std::string cache_folder(const DataConfig& config, const Corpus& corpus, int vocab_size) {
  const std::string tokenizer =
      config.tokenizer.empty()
          ? format("sample %lld", static_cast<long long>(config.tokenizer_sample_lines))
          : format("%016llx", static_cast<unsigned long long>(Tokenizer::load(config.tokenizer).hash()));
  const std::string key = format("%d|%s|%d|%s|%.17g|%lld", kPreparationVersion, corpus.hash.c_str(), vocab_size,
                                 tokenizer.c_str(), config.holdout_fraction, static_cast<long long>(config.seed));
  return format("%s/%s-%d-%016llx", config.cache.c_str(), short_name(corpus.title).c_str(), vocab_size,
                static_cast<unsigned long long>(fnv1a(key)));
}

void check_split(const PreparedData& data, const std::vector<std::string>& shards, const char* what, int vocab_size,
                 int seq_len, ShardCheck check) {
  const ShardSet set(shards, data.tokenizer_hash, vocab_size, check);
  if (set.size() < seq_len + 1) {
    throw ConfigError(
        format("the %s text has %s tokens, less than one window of model.seq_len + 1 = %d; use a larger "
               "data.corpus%s or a smaller model.seq_len",
               what, with_commas(set.size()).c_str(), seq_len + 1,
               shards == data.heldout_shards ? ", a larger data.holdout_fraction" : ""));
  }
}

// Every way in which shards on disk can be wrong is found here, before anything is trained.
void check_prepared(const PreparedData& data, int vocab_size, int seq_len, ShardCheck check) {
  if (data.vocab_size > vocab_size) {
    throw ConfigError(format("model.vocab_size = %d is below the %d pieces of the tokenizer %s; set it to %d or more",
                             vocab_size, data.vocab_size, data.tokenizer_path.c_str(), data.vocab_size));
  }
  if (Tokenizer::load(data.tokenizer_path).hash() != data.tokenizer_hash) {
    throw RunError(data.tokenizer_path + " is not the tokenizer its shards were written with; tokenize again");
  }
  check_split(data, data.train_shards, "training", vocab_size, seq_len, check);
  if (!data.heldout_shards.empty()) check_split(data, data.heldout_shards, "held-out", vocab_size, seq_len, check);
}

// A cache folder that is complete and sound; else false, with what is wrong where there is one.
bool open_cached(const std::string& folder, PreparedData& data, std::string& damage) {
  if (!has_prepared_manifest(folder)) return false;
  try {
    data = open_prepared(folder);
    const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path);
    ShardSet(data.train_shards, tokenizer.hash(), tokenizer.size(), ShardCheck::kContents);
    if (!data.heldout_shards.empty())
      ShardSet(data.heldout_shards, tokenizer.hash(), tokenizer.size(), ShardCheck::kContents);
    data.from_cache = true;
    return true;
  } catch (const std::exception& error) {
    damage = error.what();
    return false;
  }
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

// Of one builder alone, because the lock may not reach over the hosts that share a cache. Those of killed processes of
// this host go.
std::string new_partial_folder(const std::string& folder) {
  static std::atomic<int> number{0};
  const std::string prefix = folder + ".partial." + host_name() + ".";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(fs::path(folder).parent_path(), ignored)) {
    const std::string path = entry.path().string();
    if (path.rfind(prefix, 0) != 0) continue;
    const int process = std::atoi(path.c_str() + prefix.size());
    if (process > 0 && ::kill(process, 0) != 0 && errno == ESRCH) fs::remove_all(entry.path(), ignored);
  }
  return format("%s%d.%d", prefix.c_str(), static_cast<int>(::getpid()), ++number);
}

// Puts what was built in its place at once. Where another host was first, its folder is as good and this one goes.
PreparedData publish(const std::string& partial, const std::string& folder) {
  PreparedData data;
  std::string damage;
  std::error_code error;
  fs::rename(partial, folder, error);
  if (error && open_cached(folder, data, damage)) {
    fs::remove_all(partial);
    return data;
  }
  if (error) {  // what stands there is damaged
    fs::rename(folder, partial + ".damaged");
    fs::rename(partial, folder);
    fs::remove_all(partial + ".damaged");
  }
  sync_folder(fs::path(folder).parent_path().string());
  return open_prepared(folder);
}

PreparedData build_in_cache(const DataConfig& config, const Corpus& corpus, int vocab_size, int threads,
                            const std::string& folder) {
  const std::string partial = new_partial_folder(folder);
  BuildOptions options;
  options.vocab_size = vocab_size;
  options.tokenizer = config.tokenizer;
  options.sample_lines = config.tokenizer_sample_lines;
  options.holdout_fraction = config.holdout_fraction;
  options.seed = static_cast<std::uint64_t>(config.seed);
  options.threads = threads;
  try {
    build_shards(corpus, options, partial);
    return publish(partial, folder);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    throw;
  }
}

}  // namespace

PreparedData open_prepared(const std::string& folder) {
  const PreparedManifest manifest = read_prepared_manifest(folder);
  PreparedData data;
  data.folder = folder;
  data.corpus = manifest.corpus;
  data.corpus_hash = manifest.corpus_hash;
  data.tokenizer_path = folder + "/tokenizer.model";
  data.tokenizer_hash = manifest.tokenizer_hash;
  data.vocab_size = manifest.vocab_size;
  data.train_shards = manifest.train.shards;
  data.train_documents = manifest.train.documents;
  data.train_bytes = manifest.train.bytes;
  data.train_tokens = manifest.train.tokens;
  data.heldout_shards = manifest.heldout.shards;
  data.heldout_documents = manifest.heldout.documents;
  data.heldout_bytes = manifest.heldout.bytes;
  data.heldout_tokens = manifest.heldout.tokens;
  return data;
}

PreparedData prepare_data(const DataConfig& config, int vocab_size, int seq_len, int threads) {
  if (has_prepared_manifest(config.corpus)) {  // a folder that `tokenize` wrote
    PreparedData data = open_prepared(config.corpus);
    data.from_cache = true;
    check_prepared(data, vocab_size, seq_len, ShardCheck::kContents);
    return data;
  }
  const Corpus corpus = open_corpus(config.corpus, "text", threads);
  const std::string folder = cache_folder(config, corpus, vocab_size);
  std::error_code error;
  fs::create_directories(config.cache, error);
  if (error) throw RunError("cannot create data.cache = " + config.cache + ": " + error.message());

  PreparedData data;
  {
    const FolderLock lock(folder + ".lock");
    std::string damage;
    if (!open_cached(folder, data, damage)) {
      if (!damage.empty()) log::warn("the data cache is damaged and is made again: " + damage);
      data = build_in_cache(config, corpus, vocab_size, threads, folder);
    }
  }
  check_prepared(data, vocab_size, seq_len, ShardCheck::kHeader);  // contents were checked, or just written
  return data;
}

}  // namespace switchyard
