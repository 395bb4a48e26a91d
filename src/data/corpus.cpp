#include "data/corpus.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text.h"
#include "data/digest.h"
#include "data/workers.h"

namespace switchyard {

namespace fs = std::filesystem;

const char* const kTorchPythonHash = "33066dcd5c35dfaea8ee0629ab0788ab";

namespace {

constexpr const char* kTorchPython = "torch_python";

bool is_binary(const std::string& path) {
  char start[4096];
  std::ifstream stream(path, std::ios::binary);
  stream.read(start, sizeof(start));
  return std::find(start, start + stream.gcount(), '\0') != start + stream.gcount();
}

bool is_packed(const std::string& name) { return matches_glob("*.gz", name) || matches_glob("*.zst", name); }

void add_file(const fs::path& path, const std::string& name, std::vector<SourceFile>& files) {
  files.push_back({name, path.string(), static_cast<std::int64_t>(fs::file_size(path))});
}

// Every file below `root` whose name matches `pattern`; its name in the corpus begins with `prefix`.
void add_folder(const fs::path& root, const std::string& prefix, const std::string& pattern,
                std::vector<SourceFile>& files) {
  std::error_code error;
  fs::recursive_directory_iterator walk(root, fs::directory_options::skip_permission_denied, error);
  if (error) throw ConfigError("data.corpus: cannot list " + root.string() + ": " + error.message());
  for (; walk != fs::recursive_directory_iterator(); walk.increment(error)) {
    const std::string name = walk->path().filename().string();
    if (name.empty() || name[0] == '.' || name == "__pycache__" || walk->is_symlink()) {
      if (walk->is_directory()) walk.disable_recursion_pending();
      continue;
    }
    if (!walk->is_regular_file() || !matches_glob(pattern, name)) continue;
    if (!is_packed(name) && is_binary(walk->path().string())) continue;
    add_file(walk->path(), prefix + fs::relative(walk->path(), root).generic_string(), files);
  }
}

void add_input(const std::string& input, std::vector<SourceFile>& files);

// "@files.txt" names one file a line: their names in the corpus are the lines themselves.
void add_list(const std::string& list, std::vector<SourceFile>& files) {
  std::istringstream lines(read_file(list));
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    if (!fs::is_regular_file(line)) throw ConfigError("data.corpus: " + list + " names " + line + ", which is no file");
    add_file(line, line, files);
  }
}

// Each part of the pattern between slashes is matched on its own; hidden entries only by a part that begins with a dot.
void add_glob(const std::string& pattern, std::vector<SourceFile>& files) {
  std::vector<fs::path> found = {fs::path(pattern).is_absolute() ? fs::path("/") : fs::path("")};
  for (const fs::path& part_path : fs::path(pattern).relative_path()) {
    const std::string part = part_path.string();
    std::vector<fs::path> next;
    for (const fs::path& base : found) {
      if (part.find_first_of("*?") == std::string::npos) {
        if (fs::exists(base / part)) next.push_back(base / part);
        continue;
      }
      std::error_code error;
      for (const auto& entry : fs::directory_iterator(base.empty() ? fs::path(".") : base, error)) {
        const std::string name = entry.path().filename().string();
        if ((name[0] != '.' || part[0] == '.') && matches_glob(part, name)) next.push_back(base / name);
      }
    }
    found = std::move(next);
  }
  if (found.empty()) throw ConfigError("data.corpus: nothing matches " + pattern);
  for (const fs::path& path : found) {
    if (fs::is_directory(path)) add_folder(path, path.generic_string() + "/", "*", files);
    if (fs::is_regular_file(path)) add_file(path, path.generic_string(), files);
  }
}

void add_input(const std::string& input, std::vector<SourceFile>& files) {
  if (input[0] == '@') return add_list(input.substr(1), files);
  const fs::path path(input);
  const fs::path name = path.has_filename() ? path.filename() : path.parent_path().filename();
  if (fs::is_directory(path)) return add_folder(path, name.generic_string() + "/", "*", files);
  if (fs::is_regular_file(path)) return add_file(path, name.generic_string(), files);
  if (input.find_first_of("*?") != std::string::npos) return add_glob(input, files);
  throw ConfigError("data.corpus: " + input +
                    " does not exist; give torch_python, or files, folders and globs separated by commas");
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    const std::size_t first = part.find_first_not_of(' '), last = part.find_last_not_of(' ');
    if (first != std::string::npos) parts.push_back(part.substr(first, last - first + 1));
  }
  return parts;
}

// By name; a file reached by two inputs stays once. Names may repeat (a/x.txt of two folders): input order decides.
void sort_files(std::vector<SourceFile>& files) {
  std::set<std::string> seen;
  const auto seen_before = [&](const SourceFile& file) {
    return !seen.insert(fs::canonical(file.path).string()).second;
  };
  files.erase(std::remove_if(files.begin(), files.end(), seen_before), files.end());
  std::stable_sort(files.begin(), files.end(),
                   [](const SourceFile& a, const SourceFile& b) { return a.name < b.name; });
}

void hash_files(Corpus& corpus, int threads) {
  std::vector<std::string> digests(corpus.files.size());
  parallel_for(corpus.files.size(), threads, [&](std::size_t i) {
    const MappedFile file(corpus.files[i].path);
    Digest digest;
    digest.add(std::string_view(file.data() ? file.data() : "", file.size()));
    digests[i] = digest.hex();
    corpus.files[i].bytes = static_cast<std::int64_t>(file.size());
  });
  Digest digest;
  corpus.bytes = 0;
  for (std::size_t i = 0; i < corpus.files.size(); ++i) {
    digest.add(static_cast<std::uint64_t>(corpus.files[i].name.size()));
    digest.add(corpus.files[i].name);
    digest.add(static_cast<std::uint64_t>(corpus.files[i].bytes));
    digest.add(digests[i]);
    corpus.bytes += corpus.files[i].bytes;
  }
  corpus.hash = digest.hex();
}

void warn_of_other_torch(const Corpus& corpus, const std::string& folder) {
  if (corpus.hash == kTorchPythonHash) return;
  log::warn(
      format("the corpus torch_python in %s differs from torch 2.11.0's: %d files, %s bytes, hash %s instead of %d "
             "files, %s bytes, hash %s. Results will not compare with those of other machines; install torch==2.11.0 "
             "anew, or point SWITCHYARD_TORCH at its folder",
             folder.c_str(), static_cast<int>(corpus.files.size()), with_commas(corpus.bytes).c_str(),
             corpus.hash.c_str(), kTorchPythonFiles, with_commas(kTorchPythonBytes).c_str(), kTorchPythonHash));
}

bool holds_torch(const std::string& folder) {
  return !folder.empty() && fs::is_regular_file(fs::path(folder) / "version.py");
}

}  // namespace

std::string torch_folder() {
  const char* given = std::getenv("SWITCHYARD_TORCH");
  if (given && *given) {
    if (holds_torch(given)) return given;
    throw ConfigError(format(
        "SWITCHYARD_TORCH = %s is no torch package (it holds no version.py); give …/site-packages/torch", given));
  }
  if (holds_torch(SWITCHYARD_TORCH_DIR)) return SWITCHYARD_TORCH_DIR;
  throw ConfigError("data.corpus = torch_python: the torch package this program was built with (" SWITCHYARD_TORCH_DIR
                    ") is gone; set SWITCHYARD_TORCH to the folder …/site-packages/torch of torch 2.11.0");
}

Corpus open_corpus(const std::string& spec, const std::string& json_field, int threads) {
  Corpus corpus;
  corpus.title = spec;
  corpus.json_field = json_field;
  const bool is_default = spec == kTorchPython;
  if (is_default) {
    add_folder(torch_folder(), "", "*.py", corpus.files);
  } else {
    for (const std::string& input : split_commas(spec)) add_input(input, corpus.files);
  }
  if (corpus.files.empty()) throw ConfigError("data.corpus = " + spec + " holds no text files" + kEmptyFix);
  sort_files(corpus.files);
  hash_files(corpus, threads);
  if (corpus.bytes == 0)
    throw ConfigError("data.corpus = " + spec + " is empty: " + std::to_string(corpus.files.size()) +
                      " files of 0 bytes" + kEmptyFix);
  if (is_default) warn_of_other_torch(corpus, torch_folder());
  return corpus;
}

}  // namespace switchyard
