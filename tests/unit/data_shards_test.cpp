#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "data/prepare.h"
#include "data/prepared_manifest.h"
#include "data/shards.h"
#include "data_fixture.h"

namespace switchyard {
namespace {

constexpr std::uint64_t kHash = 0x1234;

std::string write_shard(const std::string& path, const std::vector<int>& ids, int vocab_size = 1000) {
  ShardWriter writer(path, kHash, vocab_size);
  writer.add(ids, 10 * ids.size());
  writer.finish();
  return path;
}

TEST(Shards, RoundTripAcrossFilesAndWidths) {
  const TemporaryFolder folder;
  struct Case {
    const char* what;
    int vocab_size;
    int largest;
    std::size_t bytes;
  };
  for (const Case& c : {Case{"two bytes", 65536, 65535, 2}, Case{"four bytes", 65537, 65536, 4}}) {
    SCOPED_TRACE(c.what);
    const std::vector<std::string> paths = {write_shard(folder / "a", {0, 1, c.largest}, c.vocab_size),
                                            write_shard(folder / "b", {3}, c.vocab_size),
                                            write_shard(folder / "c", {4, 5}, c.vocab_size)};
    EXPECT_EQ(std::filesystem::file_size(paths[0]), sizeof(ShardHeader) + 3 * c.bytes);
    const ShardSet set(paths, kHash, c.vocab_size, ShardCheck::kContents);
    EXPECT_EQ(set.size(), 6);
    EXPECT_EQ(set.source_bytes(), 60);
    EXPECT_EQ(set.documents(), 3);
    std::vector<std::int32_t> tokens(6);
    set.read(0, 6, tokens.data());
    EXPECT_EQ(tokens, (std::vector<std::int32_t>{0, 1, c.largest, 3, 4, 5}));
    set.read(2, 3, tokens.data());
    EXPECT_EQ(tokens[0], c.largest);
    EXPECT_EQ(tokens[2], 4);
    set.read(6, 0, tokens.data());
  }
}

TEST(Shards, UnfinishedLeavesNothing) {
  const TemporaryFolder folder;
  { ShardWriter(folder / "a", kHash, 1000).add({1, 2}, 2); }
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
}

TEST(Shards, ErrorsBeforeTraining) {
  const TemporaryFolder folder;
  const std::string good = read_file(write_shard(folder / "good", {1, 2, 3, 999}));
  struct Case {
    const char* expected;
    std::uint64_t hash;
    int vocab_size;
    std::string contents;
  };
  std::string flipped = good, other_version = good;
  flipped[sizeof(ShardHeader)] ^= 2;
  other_version[8] = 9;
  const std::vector<Case> cases = {
      {"another tokenizer", kHash + 1, 1000, good},
      {"token 999, beyond the vocabulary of 999", kHash, 999, good},
      {"truncated", kHash, 1000, good.substr(0, good.size() - 2)},
      {"truncated", kHash, 1000, good.substr(0, 40)},
      {"truncated", kHash, 1000, ""},
      {"truncated or damaged", kHash, 1000, good + "xx"},
      {"checksum", kHash, 1000, flipped},
      {"version", kHash, 1000, other_version},
      {"no token shard", kHash, 1000, std::string(100, 'x')},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.expected);
    const std::string path = folder.write("bad.tokens", c.contents);
    const std::string message =
        message_of<RunError>([&] { ShardSet({path}, c.hash, c.vocab_size, ShardCheck::kContents); });
    EXPECT_NE(message.find(c.expected), std::string::npos) << message;
    EXPECT_NE(message.find("bad.tokens"), std::string::npos) << message;
  }
  EXPECT_NE(message_of<RunError>([] { ShardSet({}, kHash, 10); }).find("no token shards"), std::string::npos);
  const std::string empty = folder / "empty.tokens";
  ShardWriter(empty, kHash, 1000).finish();
  EXPECT_NE(message_of<RunError>([&] { ShardSet({empty}, kHash, 1000); }).find("corpus is empty"), std::string::npos);
  EXPECT_THROW(ShardSet({folder / "absent"}, kHash, 1000), RunError);
}

// ---- preparation: corpus to shards, through the cache ----

class Preparation : public ::testing::Test {
 protected:
  Preparation() {
    for (unsigned i = 0; i < 30; ++i) folder_.write("corpus/" + std::to_string(i) + ".py", some_code(i));
    config_.corpus = folder_ / "corpus";
    config_.cache = folder_ / "cache";
    config_.holdout_fraction = 0.2;
  }
  PreparedData prepare(int vocab_size = 600, int seq_len = 32, int threads = 2) {
    return prepare_data(config_, vocab_size, seq_len, threads);
  }

  TemporaryFolder folder_;
  DataConfig config_;
};

std::string text_of(const PreparedData& data, const std::vector<std::string>& shards) {
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path);
  const ShardSet set(shards, tokenizer.hash(), tokenizer.size());
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(set.size()));
  set.read(0, set.size(), tokens.data());
  std::string text;
  for (const std::int32_t token : tokens) text += token == tokenizer.bos() ? "|" : tokenizer.piece(token);
  return text;
}

TEST_F(Preparation, HoldsWholeDocumentsOut) {
  const PreparedData data = prepare();
  EXPECT_EQ(data.train_documents + data.heldout_documents, 30);
  EXPECT_GT(data.heldout_documents, 0);
  const Holdout holdout{config_.holdout_fraction, static_cast<std::uint64_t>(config_.seed)};
  std::string train, held_out;
  for_each_document(open_corpus(config_.corpus), [&](Document&& document) {
    (holdout.contains(document.id) ? held_out : train) += "|" + document.raw;
  });
  EXPECT_EQ(text_of(data, data.train_shards), train);
  EXPECT_EQ(text_of(data, data.heldout_shards), held_out);
  EXPECT_EQ(data.train_bytes + data.train_documents, static_cast<std::int64_t>(train.size()));
}

TEST_F(Preparation, CacheIsUsedAndKeyed) {
  const PreparedData first = prepare();
  EXPECT_FALSE(first.from_cache);
  const PreparedData second = prepare();
  EXPECT_TRUE(second.from_cache);
  EXPECT_EQ(second.folder, first.folder);
  EXPECT_EQ(second.train_tokens, first.train_tokens);
  EXPECT_NE(prepare(500).folder, first.folder);
  config_.seed = 2;
  EXPECT_NE(prepare().folder, first.folder);
  config_.seed = 1;
  folder_.write("corpus/new.py", "x = 1\n");
  EXPECT_NE(prepare().folder, first.folder);
}

TEST_F(Preparation, DoesNotDependOnThreads) {
  const std::string one = read_file(prepare(600, 32, 1).train_shards[0]);
  std::filesystem::remove_all(config_.cache);
  EXPECT_EQ(read_file(prepare(600, 32, 4).train_shards[0]), one);
}

TEST_F(Preparation, DamagedCacheIsMadeAgain) {
  const PreparedData first = prepare();
  std::filesystem::resize_file(first.train_shards[0], 100);
  EXPECT_FALSE(prepare().from_cache);
  std::filesystem::remove(first.folder + "/prepared.json");
  EXPECT_FALSE(prepare().from_cache);
  EXPECT_TRUE(prepare().from_cache);
}

TEST_F(Preparation, SeveralAtOncePrepareOnce) {
  std::vector<PreparedData> data(4);
  std::vector<std::thread> threads;
  for (PreparedData& one : data) threads.emplace_back([&] { one = prepare(); });
  for (std::thread& thread : threads) thread.join();
  int built = 0;
  for (const PreparedData& one : data) built += !one.from_cache;
  EXPECT_EQ(built, 1);
}

// Hosts that share a folder over a file system without locks: here the lock's file is taken away all the time.
TEST_F(Preparation, SeveralWithoutALockDoNotDisturbEachOther) {
  namespace fs = std::filesystem;
  std::vector<PreparedData> data(6);
  std::atomic<int> running{static_cast<int>(data.size())};
  std::vector<std::thread> threads;
  for (PreparedData& one : data)
    threads.emplace_back([&] {
      EXPECT_NO_THROW(one = prepare(600, 32, 1));
      --running;
    });
  while (running > 0) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(config_.cache, ignored))
      if (entry.path().extension() == ".lock") fs::remove(entry.path(), ignored);
  }
  for (std::thread& thread : threads) thread.join();
  for (const PreparedData& one : data) EXPECT_EQ(one.train_tokens, data[0].train_tokens);
  EXPECT_TRUE(prepare().from_cache);
  for (const auto& entry : fs::directory_iterator(config_.cache))
    EXPECT_EQ(entry.path().string().find(".partial"), std::string::npos) << entry.path();
}

TEST_F(Preparation, LeavesNothingOfAKilledOrFailedOne) {
  const std::string folder = prepare().folder;
  std::filesystem::remove_all(folder);
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  const std::string killed = folder + ".partial." + host + ".999999999.1";
  std::filesystem::create_directories(killed);
  prepare();
  EXPECT_FALSE(std::filesystem::exists(killed));
}

TEST_F(Preparation, FolderOfShardsIsACorpus) {
  BuildOptions options;
  options.vocab_size = 600;
  options.shard_tokens = 500;
  const PreparedData built = build_shards(open_corpus(config_.corpus), options, folder_ / "shards");
  EXPECT_GT(built.train_shards.size(), 2u);
  config_.corpus = folder_ / "shards";
  EXPECT_EQ(prepare().train_tokens, built.train_tokens);
  EXPECT_NE(message_of<ConfigError>([&] { prepare(400); }).find("model.vocab_size = 400"), std::string::npos);

  std::filesystem::resize_file(built.train_shards[0], std::filesystem::file_size(built.train_shards[0]) - 2);
  EXPECT_NE(message_of<RunError>([&] { prepare(); }).find("truncated"), std::string::npos);
  folder_.write("shards/tokenizer.model", some_model(500));
  EXPECT_NE(message_of<RunError>([&] { prepare(); }).find("not the tokenizer"), std::string::npos);
}

TEST_F(Preparation, GivenTokenizer) {
  config_.tokenizer = folder_.write("mine.model", some_model(500));
  const PreparedData data = prepare();
  EXPECT_EQ(data.vocab_size, Tokenizer::load(config_.tokenizer).size());
  EXPECT_EQ(read_file(data.tokenizer_path), read_file(config_.tokenizer));
}

TEST_F(Preparation, TooLittleText) {
  EXPECT_NE(message_of<ConfigError>([&] { prepare(600, 1000000); }).find("less than one window of model.seq_len"),
            std::string::npos);
  config_.corpus = folder_ / "corpus/0.py";
  config_.holdout_fraction = 0.9999999;
  EXPECT_THROW(prepare(), ConfigError);
  // Chance holds nothing out of two documents: one is taken all the same.
  folder_.write("two/a.py", some_code(1));
  folder_.write("two/b.py", some_code(2));
  config_.corpus = folder_ / "two";
  config_.holdout_fraction = 1e-5;
  EXPECT_EQ(prepare().heldout_documents, 1);
  config_.holdout_fraction = 0;
  EXPECT_TRUE(prepare().heldout_shards.empty());
}

TEST_F(Preparation, CacheThatCannotBeWritten) {
  config_.cache = folder_.write("file", "x") + "/cache";
  EXPECT_NE(message_of<RunError>([&] { prepare(); }).find("data.cache"), std::string::npos);
}

}  // namespace
}  // namespace switchyard
