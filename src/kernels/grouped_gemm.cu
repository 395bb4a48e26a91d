#include <type_traits>

#include "kernels/cuda_check.h"
#include "kernels/device_limits.h"
#include "kernels/grouped_gemm.cuh"
#include "kernels/grouped_gemm.h"
#include "kernels/tensor_map.h"

namespace switchyard::kernels {
namespace {

using grouped::Epilogue;
using grouped::Form;
using grouped::Gather;
using grouped::Kind;
using grouped::Maps;
using grouped::Problem;

template <class K>
void launch(const Maps& maps, const Problem& problem, Stream stream) {
  const auto kernel = grouped::grouped_product<K>;
  SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, K::kShared));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = K::kBlocks, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(multiprocessors() / K::kBlocks * K::kBlocks);
  config.blockDim = dim3(K::kThreads);
  config.dynamicSmemBytes = K::kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  SWITCHYARD_CUDA(cudaLaunchKernelEx(&config, kernel, maps, problem));
}

constexpr int padded(int columns, int tile) { return ceil_div(columns, tile) * tile; }

// A tile's columns, of which the problem has `columns`.
//   kSwiglu   128 gates and 128 values
//   kAdd      few long tiles: their number a multiprocessor decides, and 192 divide most widths better
//   others    192 where they waste less: a width of 384 is two of them, but one and a half of 256
template <Epilogue E>
constexpr int tile_columns(int columns) {
  if (E == Epilogue::kSwiglu) return 256;
  if (E == Epilogue::kAdd) return columns % 192 == 0 || columns % 256 != 0 ? 192 : 256;
  return padded(columns, 192) < padded(columns, 256) ? 192 : 256;
}

// Blocks of a weight gradient's cluster: two where an expert's tiles come in twos along the side that they do not
// share.
int blocks_of(const GroupedWgrad& a) {
  const int tiles =
      a.b_index ? ceil_div(a.columns, tile_columns<Epilogue::kAdd>(a.columns)) : ceil_div(a.rows, grouped::kTileRows);
  return tiles % 2 == 0 ? 2 : 1;
}

// run(number) with a number that the compiler knows.
template <class Run>
void with_blocks(int blocks, Run run) {
  if (blocks == 2)
    run(std::integral_constant<int, 2>());
  else
    run(std::integral_constant<int, 1>());
}
template <Epilogue E, class Run>
void with_columns(int columns, Run run) {
  if constexpr (E == Epilogue::kSwiglu)
    run(std::integral_constant<int, tile_columns<E>(0)>());
  else if (tile_columns<E>(columns) == 256)
    run(std::integral_constant<int, 256>());
  else
    run(std::integral_constant<int, 192>());
}

Problem problem_of(const RowGroups& g) {
  SWITCHYARD_ASSERT(g.alignment > 0 && g.alignment % grouped::kTileRows == 0, "grouped products align rows to 128");
  SWITCHYARD_ASSERT(g.row_capacity % g.alignment == 0, "rows are a multiple of their alignment");
  SWITCHYARD_ASSERT(g.scheduler, "grouped products hand out their tiles through a scheduler");
  Problem p{};
  p.offset = g.offset, p.count = g.count, p.tile_expert = g.tile_expert, p.longest_first = g.longest_first;
  p.scheduler = g.scheduler;
  p.row_capacity = g.row_capacity;
  p.experts = g.experts, p.alignment = Divisor(g.alignment);
  return p;
}

CUtensorMap row_map(const bf16* rows, int columns, const RowGroups& g) {
  return tensor_map(rows, columns, g.row_capacity, 1, 64);
}
// Of a pre-activation [R, 2N] the gates, then the values: a box that reaches beyond N is clipped there.
CUtensorMap halves_map(const bf16* pre, int columns, const RowGroups& g) {
  return strided_tensor_map(pre, columns, g.row_capacity, 2, 2 * columns, columns, 64);
}

// The matrices in boxes that a block loads.
template <class K>
CUtensorMap matrix_map(const bf16* weight, int inner, int columns, int experts) {
  if (K::kForm == Form::kDgrad) return tensor_map(weight, columns, inner, experts, 64);
  if (K::kGated) return tensor_map(weight, inner, columns, 2 * experts, K::kUnits);
  return tensor_map(weight, inner, columns, experts, K::kColumns / K::kBlocks);
}

template <Form F, Epilogue E, class Description>
void launch_rows(const Description& a, Maps maps, Problem p, Stream stream) {
  const RowGroups& g = a.groups;
  p.gathered = a.rows, p.gathered_width = a.inner, p.row_index = a.row_index, p.row_weight = a.row_weight;
  p.depth_steps = ceil_div(a.inner, grouped::kDepth);
  SWITCHYARD_ASSERT(a.row_index || !a.gathered, "only rows that are gathered can be kept");
  p.keep_rows = a.gathered != nullptr;
  if (a.gathered)
    maps.rows = row_map(a.gathered, a.inner, g);
  else if (!a.row_index)
    maps.rows = tensor_map(a.rows, a.inner, g.row_capacity, 1, grouped::kTileRows);
  const auto launch_kind = [&](auto kind) {
    using K = decltype(kind);
    p.column_tiles = Divisor(ceil_div(a.columns, K::kUnits));
    maps.columns = matrix_map<K>(a.weight, a.inner, a.columns, g.experts);
    launch<K>(maps, p, stream);
  };
  with_columns<E>(a.columns, [&](auto columns) {
    if (a.row_index)
      launch_kind(Kind<F, Gather::kRows, 2, E, columns()>());
    else
      launch_kind(Kind<F, Gather::kNone, 2, E, columns()>());
  });
}

template <class Description>
bool nothing_to_do(const Description& a) {
  SWITCHYARD_ASSERT(a.inner % 8 == 0 && a.columns % 8 == 0, "grouped products need widths that are multiples of 8");
  return a.groups.row_capacity == 0;
}

}  // namespace

int grouped_alignment(std::int64_t assignments, int experts) { return assignments / experts >= 4096 ? 256 : 128; }

int grouped_dot_parts(int columns) { return ceil_div(columns, tile_columns<Epilogue::kRelu2Backward>(columns)); }

void grouped_forward(const GroupedForward& a, Stream stream) {
  if (nothing_to_do(a)) return;
  Maps maps{};
  maps.out = row_map(a.out, a.columns, a.groups);
  Problem p = problem_of(a.groups);
  p.keep = a.pre != nullptr;
  if (p.keep) maps.hidden = halves_map(a.pre, a.columns, a.groups);
  switch (a.activation) {
    case GroupedActivation::kNone:
      return launch_rows<Form::kForward, Epilogue::kStore>(a, maps, p, stream);
    case GroupedActivation::kRelu2:
      return launch_rows<Form::kForward, Epilogue::kRelu2>(a, maps, p, stream);
    case GroupedActivation::kSwiglu:
      return launch_rows<Form::kForward, Epilogue::kSwiglu>(a, maps, p, stream);
  }
}

void grouped_dgrad(const GroupedDgrad& a, Stream stream) {
  if (nothing_to_do(a)) return;
  const bool halves = a.activation == GroupedActivation::kSwiglu;
  const auto map = [&](const bf16* rows) { return (halves ? halves_map : row_map)(rows, a.columns, a.groups); };
  Maps maps{};
  maps.out = map(a.out);
  if (a.hidden) maps.hidden = map(a.hidden);
  Problem p = problem_of(a.groups);
  p.dot = a.dot;
  switch (a.activation) {
    case GroupedActivation::kNone:
      return launch_rows<Form::kDgrad, Epilogue::kStore>(a, maps, p, stream);
    case GroupedActivation::kRelu2:
      return launch_rows<Form::kDgrad, Epilogue::kRelu2Backward>(a, maps, p, stream);
    case GroupedActivation::kSwiglu:
      return launch_rows<Form::kDgrad, Epilogue::kSwigluBackward>(a, maps, p, stream);
  }
}

void grouped_wgrad(const GroupedWgrad& a, Stream stream) {
  const RowGroups& g = a.groups;
  SWITCHYARD_ASSERT(a.rows % 8 == 0 && a.columns % 8 == 0, "grouped products need widths that are multiples of 8");
  if (g.row_capacity == 0) return;
  SWITCHYARD_ASSERT(!a.a_index || !a.b_index, "a weight gradient gathers one of its operands");
  Maps maps{};
  if (!a.a_index) maps.rows = tensor_map(a.a, a.rows, g.row_capacity, 1, 64);
  if (!a.b_index) maps.columns = tensor_map(a.b, a.columns, g.row_capacity, 1, 64);
  maps.out = tensor_map(a.grad, a.columns, a.rows, g.experts, 64);
  Problem p = problem_of(g);
  p.row_index = a.a_index ? a.a_index : a.b_index;
  p.gathered = a.a_index ? a.a : a.b;
  p.gathered_width = a.a_index ? a.rows : a.columns;
  const auto launch_kind = [&](auto kind) {
    using K = decltype(kind);
    constexpr int kRowTiles = K::kSharesRows ? 1 : K::kBlocks, kColumnTiles = K::kSharesRows ? K::kBlocks : 1;
    const int columns = ceil_div(a.columns, K::kColumns * kColumnTiles);
    p.column_tiles = Divisor(columns);
    p.tiles_an_expert = Divisor(ceil_div(a.rows, grouped::kTileRows * kRowTiles) * columns);
    launch<K>(maps, p, stream);
  };
  with_blocks(blocks_of(a), [&](auto blocks) {
    with_columns<Epilogue::kAdd>(a.columns, [&](auto columns) {
      if (a.a_index)
        launch_kind(Kind<Form::kWgrad, Gather::kRows, blocks(), Epilogue::kAdd, columns()>());
      else if (a.b_index)
        launch_kind(Kind<Form::kWgrad, Gather::kColumns, blocks(), Epilogue::kAdd, columns()>());
      else
        launch_kind(Kind<Form::kWgrad, Gather::kNone, blocks(), Epilogue::kAdd, columns()>());
    });
  });
}

}  // namespace switchyard::kernels
