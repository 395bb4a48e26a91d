// Shared by the tests of src/data: a folder of its own for each test, some text, and a small tokenizer.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "data/words.h"

namespace switchyard {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() / (std::string("switchyard_") + test->test_suite_name() + "_" +
                                                      test->name() + "_" + std::to_string(::getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

  std::string write(const std::string& name, const std::string& contents) const {
    const std::filesystem::path path = path_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << contents;
    return path.string();
  }

 private:
  std::filesystem::path path_;
};

// Something like code: a few words, indentation, punctuation; other numbers give other text.
inline std::string some_code(unsigned number, int lines = 40) {
  static const std::vector<std::string> kWords = {"router", "expert", "top_k", "balance", "loss",
                                                  "gate",   "wagon",  "track", "hump",    "yard"};
  std::mt19937 random(number);
  const auto word = [&] {
    return kWords[random() % kWords.size()] + (random() % 4 == 0 ? std::to_string(random() % 100) : "");
  };
  std::string text;
  for (int i = 0; i < lines; ++i) {
    text += std::string(4 * (random() % 4), ' ');
    switch (random() % 4) {
      case 0:
        text += "def " + word() + "(" + word() + ", " + word() + "):";
        break;
      case 1:
        text += "return " + word() + " + " + word();
        break;
      case 2:
        text += word() + "[" + word() + "] = '" + word() + "'  # " + word() + " " + word();
        break;
      default:
        text += "";
    }
    text += "\n";
  }
  return text;
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = line_end(text, begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return lines;
}

inline std::string some_model(int vocab_size = 600) {
  return Tokenizer::train(lines_of(some_code(1, 2000)), {vocab_size});
}
inline const Tokenizer& some_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::from_bytes(some_model());
  return tokenizer;
}

// The message of the exception of type Error that `action` throws; a failure when it throws none.
template <class Error, class Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) { return error.what(); }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace switchyard
