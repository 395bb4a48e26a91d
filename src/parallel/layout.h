// Layout: where every parameter lies in the flat buffers that data parallel reduces, and which rank owns which part.
// Plain integers, no torch. All ranks compute the same layout from the same list.
//
//   buffer  = bucket 0 | bucket 1 | ...          in the order in which backward completes them
//   bucket  = share of rank 0 | share of rank 1 | ...          equal shares, so one reduce-scatter serves a bucket
//   share   = parts owned by that rank, then padding
//
// A parameter is always contiguous, so an op writes its whole gradient at one place. How it may be divided:
//   kWhole        a matrix, or a few that are one parameter (q, k, v): all on one rank, which alone runs Muon on it
//   kStack        E matrices of one size (experts), in expert order, a bucket of its own, divided between matrices
//   kElementwise  anything an elementwise optimizer updates: divided anywhere
// A bucket holds one kind. In a world of one there is one bucket, in the order of declaration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

enum class Division { kWhole, kStack, kElementwise };

struct MatrixSize {
  std::int64_t rows = 0, columns = 0;
  std::int64_t elements() const { return rows * columns; }
};

struct LayoutParameter {
  std::string name;
  std::vector<MatrixSize> matrices;  // logical matrices, one after the other in memory; a vector is 1 x n
  Division division = Division::kElementwise;
  int ready = 0;  // backward completes smaller ones first; equal ones in order of declaration
};

// A contiguous run of a parameter's elements on its owner.
struct OwnedPart {
  int parameter = 0;  // index into the declared list
  int owner = 0;
  int first_matrix = 0, matrices = 0;  // of kWhole and kStack; 0, 0 for kElementwise
  std::int64_t begin = 0, count = 0;   // elements, from the parameter's start
  std::int64_t offset = 0;             // elements, from the buffer's start
};

struct Bucket {
  std::int64_t begin = 0;        // elements, from the buffer's start
  std::int64_t share = 0;        // elements a rank owns, padding included
  std::int64_t shard_begin = 0;  // where a rank's share starts in a buffer of its shares alone
  std::vector<int> parameters;   // in the order of memory
};

class Layout {
 public:
  static constexpr std::int64_t kAlignment = 32;  // elements: parameters and buckets start on 128 bytes of fp32

  // bucket_bytes counts fp32 gradients; a parameter larger than that is a bucket alone.
  // SWITCHYARD_ASSERT: a parameter without elements, a stack of unequal matrices.
  Layout(std::vector<LayoutParameter> parameters, int world_size, std::int64_t bucket_bytes);

  int world_size() const { return world_size_; }
  const std::vector<LayoutParameter>& parameters() const { return parameters_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  std::int64_t buffer_elements() const { return buffer_elements_; }  // padding included
  std::int64_t shard_elements() const { return shard_elements_; }    // of one rank: the sum of the buckets' shares

  std::int64_t offset(int parameter) const { return offset_[parameter]; }
  std::int64_t elements(int parameter) const;
  int bucket_of(int parameter) const { return bucket_of_[parameter]; }
  // Offset in the buffer and owner of one logical matrix. The owner is -1 for kElementwise, which has several.
  std::int64_t matrix_offset(int parameter, int matrix) const;
  int matrix_owner(int parameter, int matrix) const;

  // All parts of all ranks by offset, and those of one rank. Every element of every parameter is in exactly one.
  const std::vector<OwnedPart>& parts() const { return parts_; }
  std::vector<OwnedPart> parts_of_rank(int rank) const;
  // Where a part starts in its owner's buffer of shares.
  std::int64_t shard_offset(const OwnedPart& part) const;

 private:
  void place_in_declaration_order();
  std::vector<Bucket> group_by_readiness(std::int64_t bucket_bytes) const;
  void place(Bucket bucket);
  void place_whole(Bucket& bucket);
  void place_stack(Bucket& bucket);
  void place_elementwise(Bucket& bucket);
  void add_parts(const Bucket& bucket);

  std::vector<LayoutParameter> parameters_;
  int world_size_;
  std::vector<Bucket> buckets_;
  std::vector<std::int64_t> offset_;        // by parameter
  std::vector<int> bucket_of_;              // by parameter
  std::vector<std::int64_t> cost_of_rank_;  // Newton-Schulz work given to each rank so far
  std::vector<OwnedPart> parts_;
  std::int64_t buffer_elements_ = 0, shard_elements_ = 0;
};

}  // namespace switchyard
