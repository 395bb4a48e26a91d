// Of kernels/attention_backward.cu: of 128 keys d_v = sum over queries of P' d_out, d_k = sum of (P (d_out v' - dot))'
// q. Scores stand on their sides here: a row is a key.
#pragma once

#include "kernels/attention_rotation.cuh"

namespace switchyard::kernels::attention {

using KeyBlock = Block<2, 2, 0, 2 * kTile, 4>;  // k and v stay; q, d_out and what is known of their rows pass
static_assert(KeyBlock::kRows == kTile);

// The last part of 64 queries that counts, of keys up to this one.
__device__ __forceinline__ int last_queries(const Problem& p, int key) {
  return min((p.seq_len - 1) / kPart, (key + p.window - 1) / kPart);
}

__device__ __forceinline__ void produce_for_keys(const Maps& maps, const Problem& p, const KeyBlock& block) {
  Ring<KeyBlock::kStages> stage(1);
  const auto staying = [&](int index, int slot) {
    const Item item(p, index, p.kv_heads);
    const int row = item.tile * kTile, keys = (p.heads + item.head) * kChannels, values = keys + p.kv_heads * kChannels;
    const std::uint32_t full = block.item_full + 8 * slot;
    hopper::barrier_expect(full, KeyBlock::kItemBytes);
    load_rows<kTile>(block.staying(slot, 0), maps.qkv, full, keys, row, item.sequence);
    load_rows<kTile>(block.staying(slot, 1), maps.qkv, full, values, row, item.sequence);
  };
  const auto passing = [&](int index) {
    const Item item(p, index, p.kv_heads);
    const int last = last_queries(p, item.tile * kTile + kTile - 1) / 2;
    for (int head = item.head * p.group; head < (item.head + 1) * p.group; ++head)
      for (int tile = item.tile; tile <= last; ++tile, stage.advance()) {
        const std::uint32_t full = block.full + 8 * stage.at;
        const std::int64_t rows = (static_cast<std::int64_t>(item.sequence) * p.heads + head) * p.row_tiles + tile;
        stage.await(block.empty);
        hopper::barrier_expect(full, KeyBlock::kStageBytes);
        load_rows<kTile>(block.passing(stage.at, 0), maps.qkv, full, head * kChannels, tile * kTile, item.sequence);
        load_rows<kTile>(block.passing(stage.at, 1), maps.d_out, full, head * kChannels, tile * kTile, item.sequence);
        hopper::load_bytes(block.stage_sums_at(stage.at), p.rows + 2 * kTile * rows, 2 * kTile * 4, full);
      }
  };
  produce(p, block, staying, passing);
}

// Of this thread's columns 8 i + 2 q and the next, i = 0 to 7; sums: where the first two are.
__device__ __forceinline__ void load_pairs(std::uint32_t sums, float (&pair)[8][2]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    uint2 words;
    hopper::load_words(sums + 32 * i, words);
    pair[i][0] = __uint_as_float(words.x), pair[i][1] = __uint_as_float(words.y);
  }
}

__device__ __forceinline__ void consume_keys(const Maps& maps, const Problem& p, const KeyBlock& block) {
  const Place place;
  const float factor = p.scale * kLog2E;
  Ring<KeyBlock::kStages> stage(0);
  Sums scores, d_p;
  Operand chances, d_scores;
  each_item(block, [&](int index, int slot, auto leave) {
    const Item item(p, index, p.kv_heads);
    const int first = item.tile * kTile + place.group * kPart;
    const int first_part = first / kPart, last_part = last_queries(p, first + kPart - 1);
    const int last_tile = last_queries(p, item.tile * kTile + kTile - 1) / 2;
    const std::uint32_t keys = uniform(block.staying(slot, 0) + place.group * kPartBytes);
    leave();
    Sums d_keys, d_values;
    clear(d_keys), clear(d_values);

    HeldStage held;
    for (int head = 0; head < p.group; ++head)
      for (int tile = item.tile; tile <= last_tile; ++tile, stage.advance()) {
        stage.await(block.full);
        const std::uint32_t tile_at = uniform(block.passing(stage.at, 0));
        const std::uint32_t tile_sums = block.stage_sums_at(stage.at) + 8 * place.q;
        bool used = false;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          if (2 * tile + part < first_part || 2 * tile + part > last_part) continue;
          const std::uint32_t queries = tile_at + part * kPartBytes, d_out = queries + kTileBytes;
          const std::uint32_t sums = tile_sums + part * kPart * 4;
          float of_column[8][2];
          hopper::products_begin();
          multiply_rows(scores, keys, queries);
          hopper::products_commit();
          multiply_rows(d_p, keys + kTileBytes, d_out);
          hopper::products_commit();
          load_pairs(sums, of_column);
          hopper::products_wait<1>();
          settled(scores), settled(chances), settled(d_scores);
          held.let_go(block.empty);
          const int query = tile * kTile + part * kPart;
          if (!all_seen(p, query, first)) {
#pragma unroll
            for (int i = 0; i < 32; ++i) {
              const int key = first + place.row(i / 2 % 2), by = query + i / 4 * 8 + 2 * place.q + i % 2;
              if (key > by || key <= by - p.window) scores[i] = -INFINITY;
            }
          }
#pragma unroll
          for (int i = 0; i < 32; ++i) scores[i] = exp2_of(fmaf(scores[i], factor, -of_column[i / 4][i % 2]));
          pack_operand(scores, chances);
          hopper::products_begin();
          add_product(d_values, chances, d_out);
          hopper::products_commit();
          load_pairs(sums + 4 * kTile, of_column);
          hopper::products_wait<1>();
          settled(d_p);
#pragma unroll
          for (int i = 0; i < 32; ++i) scores[i] *= d_p[i] - of_column[i / 4][i % 2];
          pack_operand(scores, d_scores);
          hopper::products_begin();
          add_product(d_keys, d_scores, queries);
          hopper::products_commit();
          used = true;
        }
        if (used)
          held.at = stage.at;
        else
          release(block.empty + 8 * stage.at);
      }
    hopper::products_wait<0>();
    settled(d_keys), settled(d_values), settled(chances), settled(d_scores);
    held.let_go(block.empty);
    turn_back(d_keys, p, place, keys, item.sequence, p.heads + item.head, first);
    const int column = (p.heads + item.head) * kChannels;
    store_part(d_keys, p.scale, maps.d_qkv, keys, place, column, first, item.sequence);
    store_part(d_values, 1.0f, maps.d_qkv, keys + kTileBytes, place, column + p.kv_heads * kChannels, first,
               item.sequence);
  });
}

}  // namespace switchyard::kernels::attention
