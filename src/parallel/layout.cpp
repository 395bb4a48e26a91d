#include "parallel/layout.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace switchyard {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
std::int64_t aligned(std::int64_t elements) { return round_up(elements, Layout::kAlignment); }

// Newton-Schulz multiplies by the Gram matrix of the shorter side.
std::int64_t orthogonalisation_cost(const LayoutParameter& parameter) {
  std::int64_t cost = 0;
  for (const MatrixSize& m : parameter.matrices) cost += m.elements() * std::min(m.rows, m.columns);
  return cost;
}

void check(const LayoutParameter& parameter) {
  SWITCHYARD_ASSERT(!parameter.matrices.empty(), parameter.name + " has no matrices");
  for (const MatrixSize& m : parameter.matrices) {
    SWITCHYARD_ASSERT(m.rows > 0 && m.columns > 0, parameter.name + " has an empty matrix");
    SWITCHYARD_ASSERT(parameter.division != Division::kStack || m.elements() == parameter.matrices[0].elements(),
                      parameter.name + " is a stack of unequal matrices");
  }
}

}  // namespace

Layout::Layout(std::vector<LayoutParameter> parameters, int world_size, std::int64_t bucket_bytes)
    : parameters_(std::move(parameters)),
      world_size_(world_size),
      offset_(parameters_.size(), 0),
      bucket_of_(parameters_.size(), 0),
      cost_of_rank_(world_size, 0) {
  SWITCHYARD_ASSERT(world_size >= 1, "world_size");
  for (const LayoutParameter& parameter : parameters_) check(parameter);
  if (parameters_.empty()) return;
  if (world_size == 1) {
    place_in_declaration_order();
  } else {
    for (Bucket& bucket : group_by_readiness(bucket_bytes)) place(std::move(bucket));
  }
}

std::int64_t Layout::elements(int parameter) const {
  std::int64_t sum = 0;
  for (const MatrixSize& m : parameters_[parameter].matrices) sum += m.elements();
  return sum;
}

std::int64_t Layout::matrix_offset(int parameter, int matrix) const {
  std::int64_t offset = offset_[parameter];
  for (int i = 0; i < matrix; ++i) offset += parameters_[parameter].matrices[i].elements();
  return offset;
}

int Layout::matrix_owner(int parameter, int matrix) const {
  if (parameters_[parameter].division == Division::kElementwise) return -1;
  const Bucket& bucket = buckets_[bucket_of_[parameter]];
  return static_cast<int>((matrix_offset(parameter, matrix) - bucket.begin) / bucket.share);
}

std::vector<OwnedPart> Layout::parts_of_rank(int rank) const {
  std::vector<OwnedPart> owned;
  std::copy_if(parts_.begin(), parts_.end(), std::back_inserter(owned),
               [rank](const OwnedPart& part) { return part.owner == rank; });
  return owned;
}

std::int64_t Layout::shard_offset(const OwnedPart& part) const {
  const Bucket& bucket = buckets_[bucket_of_[part.parameter]];
  return bucket.shard_begin + part.offset - (bucket.begin + part.owner * bucket.share);
}

void Layout::place_in_declaration_order() {
  Bucket bucket;
  bucket.parameters.resize(parameters_.size());
  std::iota(bucket.parameters.begin(), bucket.parameters.end(), 0);
  for (int parameter : bucket.parameters) {
    offset_[parameter] = bucket.share;
    bucket.share = aligned(bucket.share + elements(parameter));
  }
  buffer_elements_ = shard_elements_ = bucket.share;
  buckets_.push_back(std::move(bucket));
  add_parts(buckets_.back());
}

// One open bucket a kind takes parameters as backward completes them and closes when it is full. The last bucket of
// whole matrices joins the one before it when it is small: a few matrices over many ranks would be mostly padding.
std::vector<Bucket> Layout::group_by_readiness(std::int64_t bucket_bytes) const {
  const std::int64_t full = std::max<std::int64_t>(1, bucket_bytes / static_cast<std::int64_t>(sizeof(float)));
  std::vector<int> order(parameters_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return parameters_[a].ready < parameters_[b].ready; });

  struct Group {
    Division division;
    std::int64_t elements = 0;
    int completed = 0;  // position in `order` of its last parameter
    std::vector<int> parameters;
  };
  std::vector<Group> groups;
  const auto last_of = [&groups](Division division) {
    const auto found =
        std::find_if(groups.rbegin(), groups.rend(), [&](const Group& g) { return g.division == division; });
    return found == groups.rend() ? nullptr : &*found;
  };
  for (int position = 0; position < static_cast<int>(order.size()); ++position) {
    const int parameter = order[position];
    const Division division = parameters_[parameter].division;
    Group* group = last_of(division);
    if (!group || division == Division::kStack || group->elements >= full) {
      groups.push_back({division, 0, 0, {}});
      group = &groups.back();
    }
    group->elements += elements(parameter);
    group->completed = position;
    group->parameters.push_back(parameter);
  }

  if (Group* last = last_of(Division::kWhole); last && last->elements < full / 2) {
    const auto is_earlier_whole = [last](const Group& g) { return g.division == Division::kWhole && &g != last; };
    const auto earlier = std::find_if(groups.rbegin(), groups.rend(), is_earlier_whole);
    if (earlier != groups.rend()) {
      earlier->parameters.insert(earlier->parameters.end(), last->parameters.begin(), last->parameters.end());
      earlier->completed = last->completed;
      last->parameters.clear();
    }
  }
  std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.completed < b.completed; });

  std::vector<Bucket> buckets;
  for (Group& group : groups) {
    if (group.parameters.empty()) continue;
    Bucket bucket;
    bucket.parameters = std::move(group.parameters);
    buckets.push_back(std::move(bucket));
  }
  return buckets;
}

void Layout::place(Bucket bucket) {
  bucket.begin = aligned(buffer_elements_);
  bucket.shard_begin = aligned(shard_elements_);
  switch (parameters_[bucket.parameters[0]].division) {
    case Division::kWhole:
      place_whole(bucket);
      break;
    case Division::kStack:
      place_stack(bucket);
      break;
    case Division::kElementwise:
      place_elementwise(bucket);
      break;
  }
  for (int parameter : bucket.parameters) bucket_of_[parameter] = static_cast<int>(buckets_.size());
  std::sort(bucket.parameters.begin(), bucket.parameters.end(), [&](int a, int b) { return offset_[a] < offset_[b]; });
  buffer_elements_ = bucket.begin + bucket.share * world_size_;
  shard_elements_ = bucket.shard_begin + bucket.share;
  buckets_.push_back(std::move(bucket));
  add_parts(buckets_.back());
}

// Largest first, each to the rank that holds least of this bucket: the fullest rank sets everyone's share. Among
// equally full ranks the one with the least Newton-Schulz work over all buckets takes it.
void Layout::place_whole(Bucket& bucket) {
  std::vector<int> by_size = bucket.parameters;
  std::stable_sort(by_size.begin(), by_size.end(), [&](int a, int b) { return elements(a) > elements(b); });
  std::vector<std::int64_t> filled(world_size_, 0);
  std::vector<int> owner(parameters_.size(), 0);
  for (int parameter : by_size) {
    int best = 0;
    for (int rank = 1; rank < world_size_; ++rank) {
      if (std::make_pair(filled[rank], cost_of_rank_[rank]) < std::make_pair(filled[best], cost_of_rank_[best]))
        best = rank;
    }
    owner[parameter] = best;
    offset_[parameter] = filled[best];
    filled[best] = aligned(filled[best] + elements(parameter));
    cost_of_rank_[best] += orthogonalisation_cost(parameters_[parameter]);
  }
  bucket.share = *std::max_element(filled.begin(), filled.end());
  for (int parameter : bucket.parameters) offset_[parameter] += bucket.begin + owner[parameter] * bucket.share;
}

void Layout::place_stack(Bucket& bucket) {
  const int parameter = bucket.parameters[0];
  const LayoutParameter& stack = parameters_[parameter];
  const std::int64_t matrices_a_rank =
      round_up(static_cast<std::int64_t>(stack.matrices.size()), world_size_) / world_size_;
  bucket.share = matrices_a_rank * stack.matrices[0].elements();
  offset_[parameter] = bucket.begin;
  for (int m = 0; m < static_cast<int>(stack.matrices.size()); ++m) {
    cost_of_rank_[m / matrices_a_rank] +=
        stack.matrices[m].elements() * std::min(stack.matrices[m].rows, stack.matrices[m].columns);
  }
}

void Layout::place_elementwise(Bucket& bucket) {
  std::int64_t used = 0;
  for (int parameter : bucket.parameters) {
    offset_[parameter] = bucket.begin + used;
    used = aligned(used + elements(parameter));
  }
  bucket.share = aligned(round_up(used, world_size_) / world_size_);
}

// Cuts each parameter where a share ends; whole matrices and stacks were placed so that the cut falls between matrices.
void Layout::add_parts(const Bucket& bucket) {
  for (int parameter : bucket.parameters) {
    const bool has_matrices = parameters_[parameter].division != Division::kElementwise;
    const std::int64_t total = elements(parameter);
    const std::vector<MatrixSize>& matrices = parameters_[parameter].matrices;
    int matrix = 0;
    for (std::int64_t begin = 0; begin < total;) {
      OwnedPart part;
      part.parameter = parameter;
      part.begin = begin;
      part.offset = offset_[parameter] + begin;
      part.owner = static_cast<int>((part.offset - bucket.begin) / bucket.share);
      const std::int64_t share_end = bucket.begin + (part.owner + 1) * bucket.share;
      part.count = std::min(total - begin, share_end - part.offset);
      if (has_matrices) {
        part.first_matrix = matrix;
        std::int64_t covered = 0;
        while (covered < part.count) covered += matrices[matrix++].elements();
        SWITCHYARD_ASSERT(covered == part.count, parameters_[parameter].name + " is cut inside a matrix");
        part.matrices = matrix - part.first_matrix;
      }
      begin += part.count;
      parts_.push_back(part);
    }
  }
}

}  // namespace switchyard
