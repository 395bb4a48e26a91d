// Of kernels/attention_backward.cu: of 192 queries d_q = sum over keys of P (d_out v' - dot) k, and the dots of out and
// d_out for the gradients of keys and values.
#pragma once

#include "kernels/attention_rotation.cuh"

namespace switchyard::kernels::attention {

using QueryBlock = Block<3, 3, 3 * kPart, 0, 2>;  // q, d_out, out and their log_sums stay; k and v pass

__device__ __forceinline__ Item query_item(const Problem& p, int index) {
  Item item(p, index, p.heads);
  item.tile = static_cast<int>(p.tiles.by) - 1 - item.tile;
  return item;
}
// The first key that counts, of queries from this one on.
__device__ __forceinline__ int first_key(const Problem& p, int query) { return max(0, query - p.window + 1); }

// The tiles of keys that an item meets.
struct KeyTiles {
  int first, last;
  __device__ KeyTiles(const Problem& p, const Item& item)
      : first(first_key(p, item.tile * QueryBlock::kRows) / kTile),
        last((min((item.tile + 1) * QueryBlock::kRows, p.seq_len) - 1) / kTile) {}
};

__device__ __forceinline__ void produce_for_queries(const Maps& maps, const Problem& p, const QueryBlock& block) {
  constexpr int kRows = QueryBlock::kRows;
  Ring<QueryBlock::kStages> stage(1);
  const auto staying = [&](int index, int slot) {
    const Item item = query_item(p, index);
    const int row = item.tile * kRows, column = item.head * kChannels;
    const std::uint32_t full = block.item_full + 8 * slot;
    const int sums = min(kRows, p.seq_len - row) * 4;
    hopper::barrier_expect(full, QueryBlock::kItemBytes + sums);
    load_rows<kRows>(block.staying(slot, 0), maps.qkv, full, column, row, item.sequence);
    load_rows<kRows>(block.staying(slot, 1), maps.d_out, full, column, row, item.sequence);
    load_rows<kRows>(block.staying(slot, 2), maps.out, full, column, row, item.sequence);
    const std::int64_t first = (static_cast<std::int64_t>(item.sequence) * p.heads + item.head) * p.seq_len + row;
    hopper::load_bytes(block.item_sums_at(slot), p.log_sums + first, sums, full);
  };
  const auto passing = [&](int index) {
    const Item item = query_item(p, index);
    const KeyTiles tiles(p, item);
    const int keys = (p.heads + item.head / p.group) * kChannels, values = keys + p.kv_heads * kChannels;
    for (int tile = tiles.first; tile <= tiles.last; ++tile, stage.advance()) {
      const std::uint32_t full = block.full + 8 * stage.at;
      stage.await(block.empty);
      hopper::barrier_expect(full, QueryBlock::kStageBytes);
      load_rows<kTile>(block.passing(stage.at, 0), maps.qkv, full, keys, tile * kTile, item.sequence);
      load_rows<kTile>(block.passing(stage.at, 1), maps.qkv, full, values, tile * kTile, item.sequence);
    }
  };
  produce(p, block, staying, passing);
}

// <out, d_out> of this thread's two rows, from 16 channels of each of the four lanes that share them.
__device__ __forceinline__ void dots_of_rows(std::uint32_t out, std::uint32_t d_out, const Place& place,
                                             float (&dot)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = place.row(half);
    dot[half] = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t at = row * 128 + (((2 * place.q + i) ^ (row & 7)) << 4);
      int4 a, b;
      hopper::load_word(out + at, a);
      hopper::load_word(d_out + at, b);
      const int left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float low, high, other_low, other_high;
        unpack_two(left[k], low, high);
        unpack_two(right[k], other_low, other_high);
        dot[half] = fmaf(high, other_high, fmaf(low, other_low, dot[half]));
      }
    }
    dot[half] = lane_sum<4>(dot[half]);
  }
}

// What a thread knows of its two rows, of 64 from `first` on.
struct QueryRows {
  float log_sum[2], dot[2];

  __device__ QueryRows(const Problem& p, const QueryBlock& block, int slot, const Place& place, int first) {
    const std::uint32_t own = place.group * kPartBytes;
    dots_of_rows(block.staying(slot, 2) + own, block.staying(slot, 1) + own, place, dot);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row(half);
      int word;
      hopper::load_word(block.item_sums_at(slot) + 4 * (place.group * kPart + row), word);
      log_sum[half] = first + row < p.seq_len ? __int_as_float(word) * kLog2E : INFINITY;
    }
  }
  // For the other kernel, whose copies see it because that is another launch; each of four lanes writes one number.
  __device__ void store(const Problem& p, const Item& item, const Place& place, int first) const {
    const int half = place.q % 2, row = first + place.row(half);
    const std::int64_t tile =
        (static_cast<std::int64_t>(item.sequence) * p.heads + item.head) * p.row_tiles + row / kTile;
    const float sum = half == 0 ? log_sum[0] : log_sum[1], own_dot = half == 0 ? dot[0] : dot[1];
    p.rows[(2 * tile + place.q / 2) * kTile + row % kTile] = place.q < 2 ? sum : own_dot;
  }
};

// Of 64 queries and 64 keys: d_scores = P (d_p - dot), from the scores and d_p.
__device__ __forceinline__ void make_gradients(const Problem& p, const Place& place, const QueryRows& rows, int query,
                                               int key, Sums& scores, const Sums& d_p, Operand& d_scores) {
  const float factor = p.scale * kLog2E;
  if (!all_seen(p, query, key)) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int by = query + place.row(i / 2 % 2), seen = key + i / 4 * 8 + 2 * place.q + i % 2;
      if (seen > by || seen <= by - p.window) scores[i] = -INFINITY;
    }
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int half = i / 2 % 2;
    scores[i] = exp2_of(fmaf(scores[i], factor, -rows.log_sum[half])) * (d_p[i] - rows.dot[half]);
  }
  pack_operand(scores, d_scores);
}

__device__ __forceinline__ void consume_queries(const Maps& maps, const Problem& p, const QueryBlock& block) {
  const Place place;
  Ring<QueryBlock::kStages> stage(0);
  Sums scores, d_p;
  Operand d_scores;
  each_item(block, [&](int index, int slot, auto leave) {
    const Item item = query_item(p, index);
    const KeyTiles tiles(p, item);
    const int first = item.tile * QueryBlock::kRows + place.group * kPart;
    const bool real = first < p.seq_len;
    const int first_part = first_key(p, first) / kPart, last_part = real ? first / kPart : -1;
    const std::uint32_t queries = uniform(block.staying(slot, 0) + place.group * kPartBytes);
    const QueryRows rows(p, block, slot, place, first);
    if (real) rows.store(p, item, place, first);
    leave();
    Sums d_queries;
    clear(d_queries);

    HeldStage held;
    for (int tile = tiles.first; tile <= tiles.last; ++tile, stage.advance()) {
      stage.await(block.full);
      const std::uint32_t keys = uniform(block.passing(stage.at, 0));
      bool used = false;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        if (2 * tile + part < first_part || 2 * tile + part > last_part) continue;
        const std::uint32_t own = keys + part * kPartBytes;
        hopper::products_begin();
        multiply_rows(scores, queries, own);
        multiply_rows(d_p, queries + QueryBlock::kTensorBytes, own + kTileBytes);
        hopper::products_commit();
        hopper::products_wait<0>();
        settled(scores), settled(d_p), settled(d_scores);
        held.let_go(block.empty);
        make_gradients(p, place, rows, first, tile * kTile + part * kPart, scores, d_p, d_scores);
        hopper::products_begin();
        add_product(d_queries, d_scores, own);
        hopper::products_commit();
        used = true;
      }
      if (used)
        held.at = stage.at;
      else
        release(block.empty + 8 * stage.at);
    }
    hopper::products_wait<0>();
    settled(d_queries), settled(d_scores);
    held.let_go(block.empty);
    turn_back(d_queries, p, place, queries, item.sequence, item.head, first);
    if (real) store_part(d_queries, p.scale, maps.d_qkv, queries, place, item.head * kChannels, first, item.sequence);
  });
}

}  // namespace switchyard::kernels::attention
