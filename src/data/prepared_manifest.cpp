#include "data/prepared_manifest.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace switchyard {
namespace {

constexpr int kFormat = 1;

std::string path_in(const std::string& folder) { return folder + "/prepared.json"; }

nlohmann::json to_json(const Split& split) {
  nlohmann::json shards = nlohmann::json::array();
  for (const std::string& path : split.shards) shards.push_back(std::filesystem::path(path).filename().string());
  return {{"documents", split.documents}, {"bytes", split.bytes}, {"tokens", split.tokens}, {"shards", shards}};
}

Split split_from(const nlohmann::json& json, const std::string& folder) {
  Split split;
  split.documents = json.at("documents").get<std::int64_t>();
  split.bytes = json.at("bytes").get<std::int64_t>();
  split.tokens = json.at("tokens").get<std::int64_t>();
  for (const auto& name : json.at("shards")) split.shards.push_back(folder + "/" + name.get<std::string>());
  return split;
}

}  // namespace

bool has_prepared_manifest(const std::string& folder) { return std::filesystem::is_regular_file(path_in(folder)); }

void write_prepared_manifest(const PreparedManifest& manifest, const std::string& folder) {
  const nlohmann::json json = {
      {"format", kFormat},
      {"corpus", manifest.corpus},
      {"corpus_hash", manifest.corpus_hash},
      {"tokenizer_hash", format("%016llx", static_cast<unsigned long long>(manifest.tokenizer_hash))},
      {"vocab_size", manifest.vocab_size},
      {"train", to_json(manifest.train)},
      {"heldout", to_json(manifest.heldout)},
  };
  write_file_atomic(path_in(folder), json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

PreparedManifest read_prepared_manifest(const std::string& folder) {
  if (!has_prepared_manifest(folder))
    throw RunError(folder + " holds no prepared.json: it is no folder of token shards, or was not finished");
  try {
    const nlohmann::json json = nlohmann::json::parse(read_file(path_in(folder)));
    if (json.at("format").get<int>() != kFormat)
      throw RunError(path_in(folder) + " has another format; tokenize again");
    PreparedManifest manifest;
    manifest.corpus = json.at("corpus").get<std::string>();
    manifest.corpus_hash = json.at("corpus_hash").get<std::string>();
    manifest.tokenizer_hash = std::stoull(json.at("tokenizer_hash").get<std::string>(), nullptr, 16);
    manifest.vocab_size = json.at("vocab_size").get<int>();
    manifest.train = split_from(json.at("train"), folder);
    manifest.heldout = split_from(json.at("heldout"), folder);
    return manifest;
  } catch (const RunError&) { throw; } catch (const std::exception& error) {
    throw RunError(path_in(folder) + " cannot be read: " + error.what() + "; tokenize again");
  }
}

}  // namespace switchyard
