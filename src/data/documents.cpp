#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/philox.h"
#include "base/text.h"
#include "data/byte_source.h"
#include "data/corpus.h"

namespace switchyard {
namespace {

using Visit = std::function<void(Document&&)>;

void visit_json_lines(const SourceFile& file, const Visit& visit) {
  LineReader reader(file.path);
  std::string line;
  for (std::int64_t number = 1; reader.next(line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    visit({file.name + "#" + std::to_string(number), line, true});
  }
}

// A corpus that is one long text would be one document, and none could be held out: cut it at line ends.
void visit_in_parts(const SourceFile& file, const std::string& text, const Visit& visit) {
  const std::size_t part = std::max<std::size_t>(text.size() / 200, 4096);
  std::int64_t number = 1;
  for (std::size_t begin = 0; begin < text.size(); ++number) {
    const std::size_t newline = text.find('\n', std::min(begin + part, text.size()));
    const std::size_t end = newline == std::string::npos ? text.size() : newline + 1;
    visit({file.name + "#" + std::to_string(number), text.substr(begin, end - begin), false});
    begin = end;
  }
}

}  // namespace

void for_each_document(const Corpus& corpus, const Visit& visit) {
  for (const SourceFile& file : corpus.files) {
    const std::string name = without_compression(file.name);
    if (matches_glob("*.jsonl", name)) {
      visit_json_lines(file, visit);
      continue;
    }
    std::string text = read_unpacked(file.path);
    if (text.empty()) continue;
    if (corpus.files.size() == 1) {
      visit_in_parts(file, text, visit);
    } else {
      visit({file.name, std::move(text), false});
    }
  }
}

std::string document_text(Document&& document, const std::string& json_field) {
  if (!document.is_json) return std::move(document.raw);
  const nlohmann::json line = nlohmann::json::parse(document.raw, nullptr, false);
  if (line.is_discarded()) throw RunError(document.id + " (file#line) is not JSON: " + document.raw.substr(0, 80));
  const auto field = line.is_object() ? line.find(json_field) : line.end();
  if (field == line.end() || !field->is_string()) {
    throw RunError(document.id + " (file#line) has no text field \"" + json_field +
                   "\"; name the right one with --text_field");
  }
  return field->get<std::string>();
}

double Holdout::key(std::string_view document_id) const {
  return to_uniform(philox(mix_key(seed, 0x686f6c64), fnv1a(document_id), 0).x);
}

}  // namespace switchyard
