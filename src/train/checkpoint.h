// Checkpoints of a run: <run folder>/checkpoints/step-00000123/ holds
//   weights.safetensors, optimizer.safetensors   whole tensors by parameter name, fp32; never a layout of ranks
//   routing.safetensors   what routers keep besides (train/kept_routing.h); only where there is any
//   state.json         step, loader position, RNG, counters: the trainer's own
//   given_config.json  the keys the user set; the only ones a resume parses
//   config.json        every key, resolved
//   MANIFEST.json      format version, step, size and checksum of each file; written last: without it nothing is valid
// A checkpoint is written to a temporary folder, each file fsynced, renamed, then marked by its manifest, so a kill at
// any moment leaves the previous one loadable. One rank writes; any rank reads.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "train/manifest.h"
#include "train/safetensors.h"

namespace switchyard {

struct Snapshot {
  NamedTensors weights, optimizer, routing;
  std::string state_json, given_config_json, resolved_config_json;
};

// What a manifest says, without the tensors.
struct CheckpointInfo {
  std::int64_t step = 0;
  int version = 0;
  std::optional<double> held_out_loss;
  std::string path;
};

class CheckpointFolder {
 public:
  // Touches nothing on disk. keep: how many of the newest stay; the best by held-out loss stays besides them.
  CheckpointFolder(std::string run_folder, int keep);

  // Saves and returns the folder's path, then deletes what keep lets go and leftovers of interrupted saves. Checkpoints
  // of later steps (another run's, or damaged ones that a resume passed over) are neither counted nor deleted.
  // held_out_loss: if known at this step, the checkpoint competes for best. RunError when the disk is full, with the
  // sizes; what was there before is then untouched.
  std::string save(std::int64_t step, const Snapshot& snapshot, std::optional<double> held_out_loss = std::nullopt);

  // The newest that is complete and whose checksums hold; older ones are tried in turn, with a warning that says what
  // was wrong. Empty when there is none. RunError when the newest was written by a newer format version.
  std::optional<CheckpointInfo> latest_valid() const;
  std::optional<CheckpointInfo> best() const;  // as marked; checksums not verified
  // Deletes temporary folders and checkpoints without a manifest. Only the writing rank, and not during a save.
  void clean() const;
  const std::string& path() const { return path_; }

 private:
  void mark_best(std::int64_t step, double held_out_loss) const;
  void prune(std::int64_t step) const;

  std::string path_;  // <run folder>/checkpoints
  int keep_;
};

// Checks the manifest, with verify_checksums also the files' bytes. RunError: what is missing, truncated or corrupted.
CheckpointInfo inspect_checkpoint(const std::string& path, bool verify_checksums = true);
// Tensors on the CPU. verify = false after latest_valid(), which has read every byte already.
Snapshot load_checkpoint(const std::string& path, bool verify = true);
NamedTensors load_weights(const std::string& path);  // for --init_from, sample, evaluate
NamedTensors load_routing(const std::string& path);  // the same; none where the checkpoint has none
std::string load_state_json(const std::string& path);
std::string load_config_json(const std::string& path, bool resolved);

// The files of a checkpoint without its manifest, fsynced. For CheckpointFolder.
std::map<std::string, FileSummary> write_snapshot(const std::string& folder, const Snapshot& snapshot);

// A path a user gives: a step folder itself, or a run folder (or its checkpoints folder), which stands for its best
// checkpoint by held-out loss if one is marked, else its newest valid one. ConfigError says what was looked for.
std::string find_checkpoint(const std::string& path);

}  // namespace switchyard
