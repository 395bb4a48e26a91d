// The layout's promises, checked element by element for models of every shape and worlds of every size.
#include "parallel/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace switchyard {
namespace {

struct LayoutCase {
  const char* what;
  std::vector<LayoutParameter> parameters;
  std::int64_t bucket_bytes;
};

LayoutParameter whole(const char* name, std::vector<MatrixSize> matrices, int ready) {
  return {name, std::move(matrices), Division::kWhole, ready};
}
LayoutParameter stack(const char* name, int experts, std::int64_t rows, std::int64_t columns, int ready) {
  return {name, std::vector<MatrixSize>(experts, {rows, columns}), Division::kStack, ready};
}
LayoutParameter elementwise(const char* name, std::int64_t rows, std::int64_t columns, int ready) {
  return {name, {{rows, columns}}, Division::kElementwise, ready};
}

// Two layers as declared: embedding, then per layer qkv, projection, router, experts; then the head.
std::vector<LayoutParameter> small_gpt(int experts) {
  return {elementwise("embedding", 50, 16, 9),
          elementwise("scalars", 1, 3, 9),
          whole("0.qkv", {{16, 16}, {8, 16}, {8, 16}}, 8),
          whole("0.projection", {{16, 16}}, 7),
          whole("0.router", {{experts, 16}}, 6),
          stack("0.up", experts, 12, 16, 5),
          stack("0.down", experts, 16, 12, 5),
          whole("1.qkv", {{16, 16}, {8, 16}, {8, 16}}, 4),
          whole("1.projection", {{16, 16}}, 3),
          whole("1.router", {{experts, 16}}, 2),
          stack("1.up", experts, 12, 16, 1),
          stack("1.down", experts, 16, 12, 1),
          elementwise("head", 50, 16, 0)};
}

const std::vector<LayoutCase> kCases = {
    {"one scalar", {elementwise("scalar", 1, 1, 0)}, 1 << 20},
    {"one matrix", {whole("matrix", {{7, 5}}, 0)}, 1 << 20},
    {"one stack of one", {stack("stack", 1, 7, 5, 0)}, 1 << 20},
    {"odd sizes", {elementwise("a", 3, 7, 0), whole("b", {{5, 9}, {1, 1}}, 0), stack("c", 5, 3, 3, 1)}, 64},
    {"everything in one bucket a kind", small_gpt(4), 1 << 30},
    {"a bucket a parameter", small_gpt(4), 1},
    {"buckets of a few", small_gpt(8), 2048},
    {"experts that no world divides", small_gpt(7), 4096},
};
const std::vector<int> kWorlds = {1, 2, 3, 4, 7, 8, 64};

template <class Check>
void for_every_layout(Check check) {
  for (const LayoutCase& c : kCases) {
    for (int world : kWorlds) {
      SCOPED_TRACE(std::string(c.what) + ", world " + std::to_string(world));
      check(Layout(c.parameters, world, c.bucket_bytes));
    }
  }
}

TEST(Layout, EveryElementLiesOnceInsideItsOwnersShare) {
  for_every_layout([](const Layout& layout) {
    std::vector<int> times_used(layout.buffer_elements(), 0);
    std::vector<std::int64_t> placed(layout.parameters().size(), 0);
    for (const OwnedPart& part : layout.parts()) {
      const Bucket& bucket = layout.buckets()[layout.bucket_of(part.parameter)];
      const std::int64_t share_begin = bucket.begin + part.owner * bucket.share;
      EXPECT_GE(part.offset, share_begin);
      EXPECT_LE(part.offset + part.count, share_begin + bucket.share);
      EXPECT_EQ(part.offset, layout.offset(part.parameter) + part.begin);
      EXPECT_EQ(part.begin, placed[part.parameter]) << "parts of a parameter follow each other";
      placed[part.parameter] += part.count;
      for (std::int64_t i = 0; i < part.count; ++i) ++times_used[part.offset + i];
    }
    for (std::size_t p = 0; p < placed.size(); ++p) EXPECT_EQ(placed[p], layout.elements(p));
    EXPECT_LE(*std::max_element(times_used.begin(), times_used.end()), 1);
  });
}

TEST(Layout, BucketsTileTheBufferAndHoldEachParameterOnce) {
  for_every_layout([](const Layout& layout) {
    std::multiset<int> seen;
    std::int64_t end = 0, shard_end = 0;
    for (const Bucket& bucket : layout.buckets()) {
      EXPECT_GE(bucket.begin, end);
      EXPECT_LT(bucket.begin, end + Layout::kAlignment);
      EXPECT_GE(bucket.shard_begin, shard_end);
      EXPECT_GT(bucket.share, 0);
      end = bucket.begin + bucket.share * layout.world_size();
      shard_end = bucket.shard_begin + bucket.share;
      seen.insert(bucket.parameters.begin(), bucket.parameters.end());
    }
    EXPECT_EQ(end, layout.buffer_elements());
    EXPECT_EQ(shard_end, layout.shard_elements());
    EXPECT_EQ(seen.size(), layout.parameters().size());
    EXPECT_EQ(std::set<int>(seen.begin(), seen.end()).size(), layout.parameters().size());
  });
}

TEST(Layout, MatricesAreWholeOnOneRankAndExpertsInOrder) {
  for_every_layout([](const Layout& layout) {
    for (const OwnedPart& part : layout.parts()) {
      const LayoutParameter& parameter = layout.parameters()[part.parameter];
      if (parameter.division == Division::kElementwise) continue;
      std::int64_t elements = 0;
      for (int m = part.first_matrix; m < part.first_matrix + part.matrices; ++m) {
        EXPECT_EQ(layout.matrix_owner(part.parameter, m), part.owner);
        EXPECT_EQ(layout.matrix_offset(part.parameter, m), part.offset + elements);
        elements += parameter.matrices[m].elements();
      }
      EXPECT_EQ(elements, part.count);
      if (parameter.division == Division::kWhole) {
        EXPECT_EQ(part.count, layout.elements(part.parameter)) << "q, k and v stay together";
      }
    }
  });
}

TEST(Layout, ParametersAreAligned) {
  for_every_layout([](const Layout& layout) {
    for (std::size_t p = 0; p < layout.parameters().size(); ++p) EXPECT_EQ(layout.offset(p) % Layout::kAlignment, 0);
  });
}

TEST(Layout, SharesOfARankFitItsShardWithoutOverlap) {
  for_every_layout([](const Layout& layout) {
    for (int rank = 0; rank < layout.world_size(); ++rank) {
      std::vector<int> times_used(layout.shard_elements(), 0);
      for (const OwnedPart& part : layout.parts_of_rank(rank)) {
        for (std::int64_t i = 0; i < part.count; ++i) ++times_used.at(layout.shard_offset(part) + i);
      }
      EXPECT_LE(*std::max_element(times_used.begin(), times_used.end()), 1);
    }
  });
}

TEST(Layout, AWorldOfOneIsDeclarationOrderInOneBucket) {
  const Layout layout(small_gpt(4), 1, 1);
  ASSERT_EQ(layout.buckets().size(), 1u);
  std::int64_t end = 0;
  for (std::size_t p = 0; p < layout.parameters().size(); ++p) {
    EXPECT_GE(layout.offset(p), end);
    EXPECT_LT(layout.offset(p), end + Layout::kAlignment);
    end = layout.offset(p) + layout.elements(p);
  }
  EXPECT_EQ(layout.shard_elements(), layout.buffer_elements());
}

TEST(Layout, BucketsFollowBackward) {
  for (int world : {2, 4}) {
    const Layout layout(small_gpt(4), world, 2048);
    int completed_before = -1;
    for (const Bucket& bucket : layout.buckets()) {
      int completed = 0;
      std::set<Division> kinds;
      for (int p : bucket.parameters) {
        completed = std::max(completed, layout.parameters()[p].ready);
        kinds.insert(layout.parameters()[p].division);
      }
      EXPECT_GE(completed, completed_before);
      EXPECT_EQ(kinds.size(), 1u);
      if (kinds.count(Division::kStack)) { EXPECT_EQ(bucket.parameters.size(), 1u); }
      completed_before = completed;
    }
  }
}

TEST(Layout, EqualMatricesSpreadEvenly) {
  std::vector<LayoutParameter> parameters;
  for (int layer = 0; layer < 12; ++layer) parameters.push_back(whole("m", {{64, 64}}, 12 - layer));
  const Layout layout(parameters, 4, 1 << 30);
  EXPECT_EQ(layout.buffer_elements(), 12 * 64 * 64) << "no padding";
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(layout.parts_of_rank(rank).size(), 3u);
}

TEST(Layout, AFewLeftOverMatricesJoinTheBucketBefore) {
  std::vector<LayoutParameter> parameters;
  for (int layer = 0; layer < 5; ++layer) parameters.push_back(whole("m", {{64, 64}}, layer));
  EXPECT_EQ(Layout(parameters, 4, 4 * 64 * 64 * 4).buckets().size(), 1u);
}

TEST(Layout, DifferentWorldsHoldTheSameParameters) {
  for (int world : kWorlds) {
    const Layout layout(small_gpt(8), world, 4096);
    std::int64_t elements = 0, given = 0;
    for (const OwnedPart& part : layout.parts()) elements += part.count;
    for (std::size_t p = 0; p < layout.parameters().size(); ++p) given += layout.elements(p);
    EXPECT_EQ(elements, given);
  }
}

}  // namespace
}  // namespace switchyard
