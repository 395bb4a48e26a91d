// What a corpus is: an ordered list of documents, read from files sorted by their name relative to where they were
// asked for. A text file is one document, a line of a .jsonl file is one; either may be compressed (.gz, .zst).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

struct SourceFile {
  std::string name;        // relative to its input, '/' between parts: the sort key, the same on any machine
  std::string path;        // where it lies here
  std::int64_t bytes = 0;  // on disk
};

struct Corpus {
  std::string title;                // "torch_python", or the inputs as they were given
  std::vector<SourceFile> files;    // sorted by name, none twice
  std::string json_field = "text";  // of a .jsonl line
  std::string hash;                 // over (name, size, contents) of every file, 32 hex digits
  std::int64_t bytes = 0;           // of all files, on disk
};

// `spec`: "torch_python", or files, folders, globs and @lists (a file that names one file a line), separated by commas.
// Folders are walked; hidden entries, __pycache__, links and binary files (a NUL in the first 4 KiB) are left out.
// A file named outright is always taken. ConfigError (data.corpus) when something is missing or nothing is found.
Corpus open_corpus(const std::string& spec, const std::string& json_field = "text", int threads = 0);

// The default corpus as torch 2.11.0 ships it; open_corpus warns when the installed one differs.
inline constexpr int kTorchPythonFiles = 2141;
inline constexpr std::int64_t kTorchPythonBytes = 41335867;
extern const char* const kTorchPythonHash;
// How an error about a corpus without text ends.
inline constexpr const char* kEmptyFix = "; give torch_python, or files, folders and globs that hold text";
std::string torch_folder();  // SWITCHYARD_TORCH, else the folder given to CMake; ConfigError if neither holds torch

struct Document {
  std::string id;   // file name, with "#number" for a part of a file: decides whether it is held out
  std::string raw;  // its bytes, or a JSON line
  bool is_json = false;
};

// Calls `visit` for every document that is not empty, in order. RunError names the file (and line) that cannot be read.
void for_each_document(const Corpus& corpus, const std::function<void(Document&&)>& visit);
// The bytes of the document. RunError when a JSON line is malformed or lacks the field.
std::string document_text(Document&& document, const std::string& json_field);

// Whole documents are held out: those whose key, from id and seed, falls below `fraction`.
struct Holdout {
  double fraction = 0;
  std::uint64_t seed = 0;
  double key(std::string_view document_id) const;  // in (0, 1)
  bool contains(std::string_view document_id) const { return key(document_id) < fraction; }
};

}  // namespace switchyard
