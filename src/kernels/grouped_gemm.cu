#include <type_traits>

#include "kernels/cuda_check.h"
#include "kernels/grouped_gemm.cuh"
#include "kernels/grouped_gemm.h"
#include "kernels/tensor_map.h"

namespace switchyard::kernels {
namespace {

using grouped::Epilogue;
using grouped::Form;
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
  config.blockDim = dim3(grouped::kThreads);
  config.dynamicSmemBytes = K::kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  SWITCHYARD_CUDA(cudaLaunchKernelEx(&config, kernel, maps, problem));
}

int padded(int columns, int tile) { return ceil_div(columns, tile) * tile; }

// 192 columns where they waste less: a width of 384 is two of them, but one and a half of 256.
int tile_columns(int columns) { return padded(columns, 192) < padded(columns, 256) ? 192 : 256; }

// With relu^2's backward also where they waste no more: the fourth stage that they leave room for is worth 12%.
int relu2_backward_columns(int columns) { return padded(columns, 192) <= padded(columns, 256) ? 192 : 256; }

// choose(Columns) with both numbers known to the compiler, from those that the problem has.
template <class Run>
void with_blocks(const RowGroups& groups, Run run) {
  SWITCHYARD_ASSERT(groups.alignment == 128 || groups.alignment == 256, "grouped products align rows to 128 or 256");
  SWITCHYARD_ASSERT(groups.row_capacity % groups.alignment == 0, "rows are a multiple of their alignment");
  if (groups.alignment == 256)
    run(std::integral_constant<int, 2>());
  else
    run(std::integral_constant<int, 1>());
}
template <class Run>
void with_columns(int tile, Run run) {
  if (tile == 256)
    run(std::integral_constant<int, 256>());
  else
    run(std::integral_constant<int, 192>());
}

Problem problem_of(const RowGroups& g) {
  Problem p{};
  p.offset = g.offset, p.count = g.count, p.tile_expert = g.tile_expert, p.longest_first = g.longest_first;
  p.scheduler = g.scheduler;
  p.row_capacity = g.row_capacity;
  p.experts = g.experts;
  return p;
}

template <Form F, Epilogue E, class Description>
void launch_rows(const Description& a, Maps maps, const float* row_weight, float* dot, Stream stream) {
  const RowGroups& g = a.groups;
  SWITCHYARD_ASSERT(a.inner % 8 == 0 && a.columns % 8 == 0, "grouped products need widths that are multiples of 8");
  if (g.row_capacity == 0) return;
  const int tile = E == Epilogue::kRelu2Backward ? relu2_backward_columns(a.columns) : tile_columns(a.columns);
  Problem p = problem_of(g);
  p.rows = a.rows, p.row_index = a.row_index, p.row_weight = row_weight, p.dot = dot;
  p.inner = a.inner;
  p.column_tiles = ceil_div(a.columns, tile);
  p.depth_steps = ceil_div(a.inner, grouped::kDepth);
  if (!a.row_index) maps.rows = tensor_map(a.rows, a.inner, g.row_capacity, 1, grouped::kTileRows);
  maps.out = tensor_map(a.out, a.columns, g.row_capacity, 1, 64);
  with_blocks(g, [&](auto blocks) {
    with_columns(tile, [&](auto columns) {
      maps.columns = F == Form::kForward ? tensor_map(a.weight, a.inner, a.columns, g.experts, columns() / blocks())
                                         : tensor_map(a.weight, a.columns, a.inner, g.experts, 64);
      if (a.row_index)
        launch<Kind<F, true, blocks(), E, columns()>>(maps, p, stream);
      else
        launch<Kind<F, false, blocks(), E, columns()>>(maps, p, stream);
    });
  });
}

}  // namespace

bool grouped_gemm_supported(int capability_major, int capability_minor) {
  return capability_major == 9 && capability_minor == 0;
}

int grouped_alignment(std::int64_t assignments, int experts) { return assignments / experts >= 4096 ? 256 : 128; }

int grouped_dot_parts(int columns) { return ceil_div(columns, relu2_backward_columns(columns)); }

void grouped_forward(const GroupedForward& a, Stream stream) {
  if (a.relu2)
    launch_rows<Form::kForward, Epilogue::kRelu2>(a, {}, nullptr, nullptr, stream);
  else
    launch_rows<Form::kForward, Epilogue::kStore>(a, {}, nullptr, nullptr, stream);
}

void grouped_dgrad(const GroupedDgrad& a, Stream stream) {
  if (!a.active) return launch_rows<Form::kDgrad, Epilogue::kStore>(a, {}, nullptr, nullptr, stream);
  Maps maps{};
  if (a.groups.row_capacity > 0) maps.active = tensor_map(a.active, a.columns, a.groups.row_capacity, 1, 64);
  launch_rows<Form::kDgrad, Epilogue::kRelu2Backward>(a, maps, a.row_weight, a.dot, stream);
}

void grouped_wgrad(const GroupedWgrad& a, Stream stream) {
  const RowGroups& g = a.groups;
  SWITCHYARD_ASSERT(a.rows % 8 == 0 && a.columns % 8 == 0, "grouped products need widths that are multiples of 8");
  if (g.row_capacity == 0) return;
  Maps maps{};
  maps.rows = tensor_map(a.a, a.rows, g.row_capacity, 1, 64);
  maps.columns = tensor_map(a.b, a.columns, g.row_capacity, 1, 64);
  maps.out = tensor_map(a.grad, a.columns, a.rows, g.experts, 64);
  Problem p = problem_of(g);
  with_blocks(g, [&](auto blocks) {
    // Few long tiles: their number a multiprocessor decides, and 192 columns divide most widths better.
    with_columns(a.columns % 192 == 0 || a.columns % 256 != 0 ? 192 : 256, [&](auto columns) {
      p.row_tiles = ceil_div(a.rows, grouped::kTileRows * blocks());
      p.column_tiles = ceil_div(a.columns, columns());
      launch<Kind<Form::kWgrad, false, blocks(), Epilogue::kAdd, columns()>>(maps, p, stream);
    });
  });
}

}  // namespace switchyard::kernels
