// Corpus -> tokenizer and shards. One thread reads documents and writes ids, the others encode batches in between; what
// is written does not depend on their number.
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <future>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/text.h"
#include "data/prepare.h"
#include "data/prepared_manifest.h"
#include "data/sample.h"
#include "data/shards.h"
#include "data/workers.h"

namespace switchyard {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kBatchBytes = 1 << 20;

struct Encoded {
  std::vector<int> ids;  // BOS first
  std::size_t source_bytes = 0;
  bool held_out = false;
};

struct EncodedBatch {
  std::vector<Encoded> documents;
  std::size_t raw_bytes = 0;
};

class EncoderPool {
 public:
  EncoderPool(const Tokenizer& tokenizer, const Holdout& holdout, std::string json_field, int threads)
      : tokenizer_(tokenizer), holdout_(holdout), json_field_(std::move(json_field)) {
    for (int t = 0; t < threads; ++t) threads_.emplace_back([this] { run(); });
  }
  ~EncoderPool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.clear();
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  EncoderPool(const EncoderPool&) = delete;

  std::future<EncodedBatch> submit(std::vector<Document> documents) {
    Task task([this, moved = std::move(documents)](Tokenizer::Encoder& encoder) mutable {
      return encode(encoder, std::move(moved));
    });
    std::future<EncodedBatch> result = task.get_future();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
    return result;
  }

 private:
  using Task = std::packaged_task<EncodedBatch(Tokenizer::Encoder&)>;

  EncodedBatch encode(Tokenizer::Encoder& encoder, std::vector<Document> documents) const {
    EncodedBatch batch;
    for (Document& document : documents) {
      Encoded encoded;
      encoded.held_out = holdout_.contains(document.id);
      batch.raw_bytes += document.raw.size();
      const std::string text = document_text(std::move(document), json_field_);
      if (text.empty()) continue;
      encoded.source_bytes = text.size();
      encoded.ids.push_back(tokenizer_.bos());
      encoder.encode(text, encoded.ids);
      batch.documents.push_back(std::move(encoded));
    }
    return batch;
  }

  void run() {
    Tokenizer::Encoder encoder(tokenizer_);
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      Task task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task(encoder);
    }
  }

  const Tokenizer& tokenizer_;
  const Holdout holdout_;
  const std::string json_field_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// The shards of one split, a new file whenever one is full.
class SplitWriter {
 public:
  SplitWriter(std::string folder, const char* name, const Tokenizer& tokenizer, std::int64_t shard_tokens)
      : folder_(std::move(folder)),
        name_(name),
        tokenizer_(tokenizer),
        shard_tokens_(static_cast<std::uint64_t>(shard_tokens)) {}

  void add(const Encoded& document) {
    if (!writer_) {
      split_.shards.push_back(folder_ + "/" + format("%s_%05zu.tokens", name_, split_.shards.size()));
      writer_ = std::make_unique<ShardWriter>(split_.shards.back(), tokenizer_.hash(), tokenizer_.size());
    }
    writer_->add(document.ids, document.source_bytes);
    ++split_.documents;
    split_.bytes += static_cast<std::int64_t>(document.source_bytes);
    split_.tokens += static_cast<std::int64_t>(document.ids.size());
    if (writer_->count() >= shard_tokens_) close();
  }
  Split finish() {
    close();
    return std::move(split_);
  }

 private:
  void close() {
    if (writer_) writer_->finish();
    writer_.reset();
  }
  const std::string folder_;
  const char* name_;
  const Tokenizer& tokenizer_;
  const std::uint64_t shard_tokens_;
  std::unique_ptr<ShardWriter> writer_;
  Split split_;
};

// When chance holds nothing out of a small corpus, the document with the lowest key is taken.
Survey survey_for(const Corpus& corpus, Holdout& holdout, std::int64_t sample_lines) {
  Survey survey = survey_corpus(corpus, holdout, sample_lines);
  if (holdout.fraction <= 0 || survey.heldout_documents > 0 || survey.documents < 2) return survey;
  holdout.fraction = survey.lowest_key + 1e-7;
  return survey_corpus(corpus, holdout, sample_lines);
}

Tokenizer make_tokenizer(const BuildOptions& options, const Survey& survey) {
  if (!options.tokenizer.empty()) return Tokenizer::load(options.tokenizer);
  log::info(format("training a tokenizer of %s pieces on %s lines", with_commas(options.vocab_size).c_str(),
                   with_commas(static_cast<std::int64_t>(survey.lines.size())).c_str()));
  Progress progress("tokenizer", 0);
  Tokenizer tokenizer = Tokenizer::from_bytes(Tokenizer::train(survey.lines, {options.vocab_size}));
  progress.finish();
  if (tokenizer.size() < options.vocab_size) {
    log::warn(format("the text gives only %d pieces of the %d asked for", tokenizer.size(), options.vocab_size));
  }
  return tokenizer;
}

void encode_corpus(const Corpus& corpus, const Tokenizer& tokenizer, const Holdout& holdout, std::int64_t total_bytes,
                   int threads, SplitWriter& train, SplitWriter& held_out) {
  EncoderPool pool(tokenizer, holdout, corpus.json_field, threads);
  Progress progress("tokenizing", total_bytes, Progress::Unit::kBytes);
  std::deque<std::future<EncodedBatch>> running;
  std::int64_t done = 0;
  const auto write_oldest = [&] {
    const EncodedBatch batch = running.front().get();
    running.pop_front();
    for (const Encoded& document : batch.documents) (document.held_out ? held_out : train).add(document);
    progress.update(done += static_cast<std::int64_t>(batch.raw_bytes));
  };

  std::vector<Document> documents;
  std::size_t bytes = 0;
  const auto submit = [&] {
    running.push_back(pool.submit(std::move(documents)));
    documents.clear();
    bytes = 0;
    while (running.size() > static_cast<std::size_t>(3 * threads)) write_oldest();  // bounds what is in memory
  };
  for_each_document(corpus, [&](Document&& document) {
    bytes += document.raw.size();
    documents.push_back(std::move(document));
    if (bytes >= kBatchBytes) submit();
  });
  if (!documents.empty()) submit();
  while (!running.empty()) write_oldest();
}

// Shards of an earlier run would be taken for this one's if it stopped half-way.
void clear_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw RunError("cannot create " + folder + ": " + error.message());
  fs::remove(folder + "/prepared.json");
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".tokens") old.push_back(entry.path());
  }
  for (const fs::path& path : old) fs::remove(path);
}

}  // namespace

PreparedData build_shards(const Corpus& corpus, const BuildOptions& options, const std::string& folder) {
  const int threads = worker_count(options.threads);
  Holdout holdout{options.holdout_fraction, options.seed};
  const Survey survey = survey_for(corpus, holdout, options.tokenizer.empty() ? options.sample_lines : 0);
  if (survey.documents == survey.heldout_documents) {
    throw ConfigError(format(
        "data.corpus = %s leaves no training text: %s of its %s documents are held out (data.holdout_fraction = %g); "
        "lower that, or give more text",
        corpus.title.c_str(), with_commas(survey.heldout_documents).c_str(), with_commas(survey.documents).c_str(),
        options.holdout_fraction));
  }
  const Tokenizer tokenizer = make_tokenizer(options, survey);

  clear_folder(folder);
  SplitWriter train(folder, "train", tokenizer, options.shard_tokens),
      held_out(folder, "heldout", tokenizer, options.shard_tokens);
  encode_corpus(corpus, tokenizer, holdout, survey.bytes, threads, train, held_out);

  PreparedManifest manifest;
  manifest.corpus = corpus.title;
  manifest.corpus_hash = corpus.hash;
  manifest.tokenizer_hash = tokenizer.hash();
  manifest.vocab_size = tokenizer.size();
  manifest.train = train.finish();
  manifest.heldout = held_out.finish();
  if (manifest.train.tokens == 0)
    throw ConfigError("data.corpus = " + corpus.title + " holds no text: every document is empty" + kEmptyFix);
  write_file_atomic(folder + "/tokenizer.model", tokenizer.model());
  write_prepared_manifest(manifest, folder);
  return open_prepared(folder);
}

}  // namespace switchyard
