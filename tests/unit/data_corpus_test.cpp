#include <cstdlib>

#include "base/error.h"
#include "data/corpus.h"
#include "data/digest.h"
#include "data/sample.h"
#include "data_fixture.h"

#ifdef SWITCHYARD_WITH_ZLIB
#include <zlib.h>
#endif
#ifdef SWITCHYARD_WITH_ZSTD
#include <zstd.h>
#endif

namespace switchyard {
namespace {

std::vector<std::string> names(const Corpus& corpus) {
  std::vector<std::string> all;
  for (const SourceFile& file : corpus.files) all.push_back(file.name);
  return all;
}

std::vector<std::string> texts(const Corpus& corpus) {
  std::vector<std::string> all;
  for_each_document(corpus,
                    [&](Document&& document) { all.push_back(document_text(std::move(document), corpus.json_field)); });
  return all;
}

using Names = std::vector<std::string>;

// The published vectors of FNV-1a, 128 bits.
TEST(Digest, MatchesPublishedVectors) {
  Digest empty, a, foobar;
  a.add("a");
  foobar.add("foobar");
  EXPECT_EQ(empty.hex(), "6c62272e07bb014262b821756295c58d");
  EXPECT_EQ(a.hex(), "d228cb696f1a8caf78912b704e4a8964");
  EXPECT_EQ(foobar.hex(), "343e1662793c64bf6f0d3597ba446f18");
}

TEST(Corpus, FoldersGlobsAndLists) {
  const TemporaryFolder folder;
  folder.write("b/two.txt", "two");
  folder.write("b/deep/three.py", "three");
  folder.write("b/.hidden/x.txt", "hidden");
  folder.write("b/__pycache__/y.py", "cache");
  folder.write("b/picture.png", std::string("\x89PNG\0\0", 6));
  const std::string one = folder.write("a.txt", "one");
  const std::string list = folder.write("list", one + "\n" + (folder / "b/two.txt") + "\n");

  EXPECT_EQ(names(open_corpus(folder / "b")), (Names{"b/deep/three.py", "b/two.txt"}));
  EXPECT_EQ(names(open_corpus(folder / "b/")), (Names{"b/deep/three.py", "b/two.txt"}));
  EXPECT_EQ(names(open_corpus(one + ", " + (folder / "b"))), (Names{"a.txt", "b/deep/three.py", "b/two.txt"}));
  EXPECT_EQ(names(open_corpus(one + "," + one)), (Names{"a.txt"}));
  EXPECT_EQ(open_corpus("@" + list).files.size(), 2u);
  EXPECT_EQ(open_corpus(folder / "b/*.txt").files.size(), 1u);
  EXPECT_EQ(open_corpus(folder / "*/two.???").files.size(), 1u);
  EXPECT_EQ(texts(open_corpus(folder / "b")), (Names{"three", "two"}));
}

TEST(Corpus, HashSeesNamesAndContentsOnly) {
  const TemporaryFolder folder;
  folder.write("1/c/x.txt", "same");
  folder.write("2/c/x.txt", "same");
  folder.write("3/c/y.txt", "same");
  folder.write("4/c/x.txt", "other");
  const std::string first = open_corpus(folder / "1/c").hash;
  EXPECT_EQ(first.size(), 32u);
  EXPECT_EQ(first, open_corpus(folder / "2/c").hash);
  EXPECT_NE(first, open_corpus(folder / "3/c").hash);
  EXPECT_NE(first, open_corpus(folder / "4/c").hash);
}

TEST(Corpus, JsonLines) {
  const TemporaryFolder folder;
  const std::string path =
      folder.write("a.jsonl", "{\"text\": \"one\\n\"}\n\n{\"text\": \"\\u00e9\", \"x\": 1}\n{\"text\": \"\"}");
  EXPECT_EQ(texts(open_corpus(path)), (Names{"one\n", "\xc3\xa9", ""}));
  const Corpus other_field = open_corpus(path, "body");
  EXPECT_NE(message_of<RunError>([&] { texts(other_field); }).find("a.jsonl#1"), std::string::npos);
  const Corpus broken = open_corpus(folder.write("b.jsonl", "{\"text\": \"ok\"}\n{\"text\": \n"));
  EXPECT_NE(message_of<RunError>([&] { texts(broken); }).find("b.jsonl#2"), std::string::npos);
}

#ifdef SWITCHYARD_WITH_ZLIB
TEST(Corpus, Gzip) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.jsonl.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  for (int i = 0; i < 20000; ++i) gzputs(file, "{\"text\": \"wagon\"}\n");
  gzclose(file);
  EXPECT_EQ(texts(open_corpus(path)), Names(20000, "wagon"));
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  const Corpus cut = open_corpus(path);
  EXPECT_NE(message_of<RunError>([&] { texts(cut); }).find("cannot unpack"), std::string::npos);
}
#endif

#ifdef SWITCHYARD_WITH_ZSTD
TEST(Corpus, Zstd) {
  const TemporaryFolder folder;
  std::string lines;
  for (int i = 0; i < 20000; ++i) lines += "{\"text\": \"wagon " + std::to_string(i) + "\"}\n";
  std::string packed(ZSTD_compressBound(lines.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), lines.data(), lines.size(), 3));
  const std::vector<std::string> given = texts(open_corpus(folder.write("a.jsonl.zst", packed)));
  ASSERT_EQ(given.size(), 20000u);
  EXPECT_EQ(given.back(), "wagon 19999");
  const Corpus cut = open_corpus(folder.write("b.jsonl.zst", packed.substr(0, packed.size() / 2)));
  EXPECT_NE(message_of<RunError>([&] { texts(cut); }).find("cannot unpack"), std::string::npos);
}
#endif

TEST(Corpus, OneLongTextIsCutAtLineEnds) {
  const TemporaryFolder folder;
  const std::string text = some_code(2, 5000) + "no newline at the end";
  const std::vector<std::string> parts = texts(open_corpus(folder.write("a.txt", text)));
  EXPECT_GT(parts.size(), 10u);
  std::string all;
  for (const std::string& part : parts) all += part;
  EXPECT_EQ(all, text);
}

TEST(Corpus, ErrorsNameWhatIsMissing) {
  const TemporaryFolder folder;
  const std::string empty = folder.write("empty/a.txt", "");
  std::filesystem::create_directories(folder / "nothing");
  EXPECT_NE(message_of<ConfigError>([&] { open_corpus(folder / "absent.txt"); }).find("absent.txt does not exist"),
            std::string::npos);
  EXPECT_NE(message_of<ConfigError>([&] { open_corpus(folder / "*.jsonl"); }).find("nothing matches"),
            std::string::npos);
  EXPECT_NE(message_of<ConfigError>([&] { open_corpus(folder / "nothing"); }).find("no text files"), std::string::npos);
  EXPECT_NE(message_of<ConfigError>([&] { open_corpus(folder / "empty"); }).find("is empty"), std::string::npos);
  EXPECT_THROW(open_corpus(""), ConfigError);
}

TEST(Corpus, DefaultIsWhatTorchShips) {
  const Corpus corpus = open_corpus("torch_python");
  EXPECT_EQ(corpus.files.size(), static_cast<std::size_t>(kTorchPythonFiles));
  EXPECT_EQ(corpus.bytes, kTorchPythonBytes);
  EXPECT_EQ(corpus.hash, kTorchPythonHash);
}

TEST(Corpus, DefaultElsewhere) {
  const TemporaryFolder folder;
  const std::string before = std::getenv("SWITCHYARD_TORCH") ? std::getenv("SWITCHYARD_TORCH") : "";
  ::setenv("SWITCHYARD_TORCH", (folder / "gone").c_str(), 1);
  EXPECT_NE(message_of<ConfigError>([] { torch_folder(); }).find("SWITCHYARD_TORCH"), std::string::npos);
  folder.write("torch/version.py", "x");
  ::setenv("SWITCHYARD_TORCH", (folder / "torch").c_str(), 1);
  EXPECT_EQ(open_corpus("torch_python").files.size(), 1u);  // with a warning
  if (before.empty()) {
    ::unsetenv("SWITCHYARD_TORCH");
  } else {
    ::setenv("SWITCHYARD_TORCH", before.c_str(), 1);
  }
}

TEST(Holdout, TakesItsShareAndDependsOnTheSeed) {
  const Holdout holdout{0.1, 1}, other{0.1, 2};
  int held = 0, differing = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::string id = "file" + std::to_string(i);
    EXPECT_EQ(holdout.contains(id), holdout.contains(id));
    held += holdout.contains(id);
    differing += holdout.contains(id) != other.contains(id);
  }
  EXPECT_NEAR(held, 1000, 120);
  EXPECT_GT(differing, 1000);
}

TEST(Survey, SamplesTrainingLinesOnly) {
  const TemporaryFolder folder;
  for (int i = 0; i < 50; ++i)
    folder.write("c/" + std::to_string(i), std::to_string(i) + " first\n" + std::to_string(i) + " second\n\n");
  const Corpus corpus = open_corpus(folder / "c");
  const Holdout holdout{0.2, 3};
  const Survey all = survey_corpus(corpus, holdout, 1000), some = survey_corpus(corpus, holdout, 20);
  EXPECT_EQ(all.documents, 50);
  EXPECT_GT(all.heldout_documents, 0);
  EXPECT_EQ(static_cast<std::int64_t>(all.lines.size()), 2 * (50 - all.heldout_documents));
  EXPECT_EQ(some.lines.size(), 20u);
  EXPECT_EQ(some.lines, survey_corpus(corpus, holdout, 20).lines);
  for (const std::string& line : some.lines) {
    EXPECT_EQ(line.back(), '\n');
    EXPECT_FALSE(holdout.contains("c/" + line.substr(0, line.find(' '))));
  }
}

}  // namespace
}  // namespace switchyard
