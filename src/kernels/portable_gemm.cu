#include "kernels/cuda_check.h"
#include "kernels/portable_gemm.cuh"
#include "kernels/portable_gemm.h"

namespace switchyard::kernels {
namespace {

using portable::Epilogue;
using portable::Form;
using portable::kTile;
using portable::Problem;

template <class T>
Problem<T> problem_of(const RowGroups& g) {
  SWITCHYARD_ASSERT(g.alignment > 0 && g.alignment % kTile == 0 && g.row_capacity % kTile == 0,
                    "portable products align rows to 128");
  Problem<T> p{};
  p.offset = g.offset, p.count = g.count, p.tile_expert = g.tile_expert, p.longest_first = g.longest_first;
  p.row_capacity = g.row_capacity;
  p.experts = g.experts, p.alignment = g.alignment;
  return p;
}

template <class T, Form F, Epilogue E>
void launch(Problem<T> p, std::int64_t row_tiles, Stream stream) {
  SWITCHYARD_ASSERT(p.columns % 8 == 0 && p.inner % 8 == 0 && p.rows % 8 == 0,
                    "grouped products need widths that are multiples of 8");
  p.column_tiles = ceil_div(p.columns, kTile);
  if (row_tiles == 0 || p.column_tiles == 0) return;
  const auto blocks = static_cast<unsigned>(row_tiles * p.column_tiles);
  const auto kernel = portable::portable_product<T, F, E>;
  SWITCHYARD_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, portable::kSharedBytes));
  kernel<<<blocks, portable::kThreads, portable::kSharedBytes, stream>>>(p);
  SWITCHYARD_CUDA_LAUNCHED();
}

// Whether the description wants relu^2; SwiGLU and the gathered rows are passes of their own here.
template <class Description>
bool takes(const Description& a) {
  SWITCHYARD_ASSERT(a.activation != GroupedActivation::kSwiglu && !a.gathered,
                    "portable products hold neither SwiGLU nor the rows that they gather");
  return a.activation == GroupedActivation::kRelu2;
}

}  // namespace

int portable_dot_parts(int columns) { return ceil_div(columns, kTile); }

template <class T>
void portable_forward(const GroupedForwardOf<T>& a, Stream stream) {
  const bool relu2 = takes(a);
  Problem<T> p = problem_of<T>(a.groups);
  p.left = a.rows, p.row_index = a.row_index, p.right = a.weight;
  p.out = a.out, p.row_weight = a.row_weight;
  p.inner = a.inner, p.columns = a.columns;
  const std::int64_t tiles = p.row_capacity / kTile;
  relu2 ? launch<T, Form::kForward, Epilogue::kRelu2>(p, tiles, stream)
        : launch<T, Form::kForward, Epilogue::kStore>(p, tiles, stream);
}

template <class T>
void portable_dgrad(const GroupedDgradOf<T>& a, Stream stream) {
  const bool relu2 = takes(a);
  Problem<T> p = problem_of<T>(a.groups);
  p.left = a.rows, p.row_index = a.row_index, p.right = a.weight;
  p.out = a.out, p.active = relu2 ? a.hidden : nullptr, p.row_weight = a.row_weight, p.dot = a.dot;
  p.inner = a.inner, p.columns = a.columns;
  const std::int64_t tiles = p.row_capacity / kTile;
  relu2 ? launch<T, Form::kDgrad, Epilogue::kRelu2Backward>(p, tiles, stream)
        : launch<T, Form::kDgrad, Epilogue::kStore>(p, tiles, stream);
}

template <class T>
void portable_wgrad(const GroupedWgradOf<T>& a, Stream stream) {
  SWITCHYARD_ASSERT(!a.a_index && !a.b_index, "portable weight gradients take rows in expert order");
  Problem<T> p = problem_of<T>(a.groups);
  p.left = a.a, p.rows = a.rows;
  p.right = a.b, p.columns = a.columns;
  p.grad = a.grad;
  p.row_tiles = ceil_div(p.rows, kTile);
  const std::int64_t tiles = p.row_capacity == 0 ? 0 : static_cast<std::int64_t>(p.experts) * p.row_tiles;
  launch<T, Form::kWgrad, Epilogue::kAdd>(p, tiles, stream);
}

template void portable_forward(const GroupedForwardOf<bf16>&, Stream);
template void portable_forward(const GroupedForwardOf<float>&, Stream);
template void portable_dgrad(const GroupedDgradOf<bf16>&, Stream);
template void portable_dgrad(const GroupedDgradOf<float>&, Stream);
template void portable_wgrad(const GroupedWgradOf<bf16>&, Stream);
template void portable_wgrad(const GroupedWgradOf<float>&, Stream);

}  // namespace switchyard::kernels
