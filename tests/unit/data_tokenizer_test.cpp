#include <sentencepiece_trainer.h>

#include "base/error.h"
#include "base/files.h"
#include "data/corpus.h"
#include "data_fixture.h"

namespace switchyard {
namespace {

std::string repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

std::string random_bytes(unsigned seed, std::size_t size, const std::string& alphabet = "") {
  std::mt19937 random(seed);
  std::string bytes;
  for (std::size_t i = 0; i < size; ++i)
    bytes += alphabet.empty() ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
  return bytes;
}

// Both ways to encode agree, every byte comes back, and the byte counts of the tokens add up to the text's.
void expect_lossless(const Tokenizer& tokenizer, Tokenizer::Encoder& encoder, const std::string& text) {
  std::vector<int> cached;
  encoder.encode(text, cached);
  ASSERT_EQ(tokenizer.encode(text), cached);
  ASSERT_EQ(tokenizer.decode(cached), text);
  std::size_t bytes = 0;
  for (const int id : cached) {
    ASSERT_NE(id, tokenizer.bos());
    bytes += tokenizer.bytes_of()[static_cast<std::size_t>(id)];
  }
  ASSERT_EQ(bytes, text.size());
}

TEST(Tokenizer, GivesBackEveryByte) {
  struct Case {
    const char* what;
    std::string text;
  };
  const std::string nul(1, '\0');
  const std::vector<Case> cases = {
      {"nothing", ""},
      {"one space", " "},
      {"leading and trailing spaces", "   def f():   "},
      {"newlines", "\n\n\nx\n\n"},
      {"tabs and carriage returns", "\tif x:\r\n\t\ty\t\r\n"},
      {"other white space",
       "a\v\f\x1c b\xc2\xa0"
       "c\xe2\x80\x83"
       "d\xe3\x80\x80"
       "e\xe2\x80\xa8"},
      {"NUL", "a" + nul + nul + "b " + nul},
      {"the space marker",
       "a\xe2\x96\x81"
       "b \xe2\x96\x81 \xe2\x96\x81\xe2\x96\x81"},
      {"the replacement character", "\xef\xbf\xbd and \xef\xbf\xbd"},
      {"names of pieces", "<s></s><unk><0x0A><0x00> \xe2\x81\x87 "},
      {"accents, both forms", "na\xc3\xafve nai\xcc\x88ve \xef\xac\x81ne \xe2\x84\xab"},
      {"other scripts",
       "\xe4\xb8\xad\xe6\x96\x87 \xd0\xbf\xd1\x80\xd0\xb8 \xe3\x81\x8b\xe3\x81\xaa \xf0\x9f\x9a\x82\xf0\x9f\x9a\x83"},
      {"byte order mark", "\xef\xbb\xbfimport x"},
      {"cut characters", "a\xe4\xb8 b\xf0\x9f\x9a c\xc3"},
      {"overlong, surrogate, too large", "\xc0\xaf \xe0\x80\xaf \xed\xa0\x80 \xf4\x90\x80\x80 \xff\xfe"},
      {"lone continuation bytes", "\x80\xbf\x80 x\x80"},
      {"noncharacters and private use", "\xef\xbf\xbe\xef\xbf\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"},
      {"a long word", repeat("x", 20000)},
      {"a long line", repeat("expert = router(top_k) ", 3000)},
      {"long spaces", "a" + repeat(" ", 5000) + "b"},
      {"long newlines", repeat("\n", 3000)},
      {"long word of wide characters", repeat("\xe4\xb8\xad", 2000)},
      {"long word of broken characters", repeat("\xe4\xb8", 2000)},
  };
  Tokenizer::Encoder encoder(some_tokenizer());
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    expect_lossless(some_tokenizer(), encoder, c.text);
  }
}

TEST(Tokenizer, GivesBackRandomBytes) {
  const std::vector<std::string> alphabets = {
      "", " \n\t\rx(", "\xe2\x96\x81 a", "ab \n_.(0", std::string("\0 a\n", 4), "\xf0\x9f\x9a\x82\xc3\xa9 "};
  Tokenizer::Encoder encoder(some_tokenizer());
  for (unsigned seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(seed);
    expect_lossless(some_tokenizer(), encoder, random_bytes(seed, 1 + seed * 7, alphabets[seed % alphabets.size()]));
  }
}

TEST(Tokenizer, GivesBackEveryFileOfTheDefaultCorpus) {
  const Corpus corpus = open_corpus("torch_python");
  Tokenizer::Encoder encoder(some_tokenizer());
  for (const auto& file : corpus.files) {
    const std::string text = read_file(file.path);
    std::vector<int> ids;
    encoder.encode(text, ids);
    ASSERT_TRUE(some_tokenizer().decode(ids) == text) << file.name;
  }
}

TEST(Tokenizer, TrainingRepeats) {
  EXPECT_EQ(some_model(), some_model());
  EXPECT_EQ(Tokenizer::from_bytes(some_model()).hash(), some_tokenizer().hash());
}

TEST(Tokenizer, LearnsIndentationAndWords) {
  const Tokenizer& tokenizer = some_tokenizer();
  EXPECT_EQ(tokenizer.encode("return router").size(), 2u);
  EXPECT_LE(tokenizer.encode("        return router").size(), 3u);
  EXPECT_EQ(tokenizer.bytes_of()[static_cast<std::size_t>(tokenizer.bos())], 0);
  EXPECT_EQ(tokenizer.decode({tokenizer.bos(), -1, tokenizer.size()}), "");
}

TEST(Tokenizer, ErrorsSayWhatToChange) {
  EXPECT_NE(message_of<ConfigError>([] { Tokenizer::train({"a b\n"}, {100}); }).find("model.vocab_size = 100"),
            std::string::npos);
  EXPECT_NE(message_of<ConfigError>([] { Tokenizer::train({}, {600}); }).find("no text to learn from"),
            std::string::npos);
  EXPECT_NE(message_of<ConfigError>([] { Tokenizer::from_bytes("not a model", "x.model"); }).find("x.model"),
            std::string::npos);
  EXPECT_THROW(Tokenizer::load("/nonexistent/x.model"), RunError);
}

// A model of another making: refused when it would lose text, used when it would not.
TEST(Tokenizer, ModelsOfOthers) {
  const auto train = [](const std::string& more) {
    TemporaryFolder folder;
    const std::string input = folder.write("text", some_code(1, 2000));
    const auto status = sentencepiece::SentencePieceTrainer::Train(
        "--model_type=bpe --vocab_size=500 --minloglevel=3 --input=" + input + " --model_prefix=" + (folder / "m") +
        " " + more);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return read_file(folder / "m.model");
  };
  const std::string no_bytes = train("");
  EXPECT_NE(message_of<ConfigError>([&] { Tokenizer::from_bytes(no_bytes); }).find("byte_fallback"), std::string::npos);
  const std::string prefix = train("--byte_fallback");
  EXPECT_NE(message_of<ConfigError>([&] { Tokenizer::from_bytes(prefix); }).find("add_dummy_prefix=false"),
            std::string::npos);
  const Tokenizer across = Tokenizer::from_bytes(train(
      "--byte_fallback --add_dummy_prefix=false --remove_extra_whitespaces=false --normalization_rule_name=identity "
      "--split_by_unicode_script=false --split_by_whitespace=false"));
  Tokenizer::Encoder encoder(across);
  expect_lossless(across, encoder, some_code(3) + random_bytes(5, 500));
}

}  // namespace
}  // namespace switchyard
