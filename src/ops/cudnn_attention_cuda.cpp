#include <cudnn_frontend.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "ops/cudnn_attention.h"

namespace switchyard::ops {
namespace {

namespace graph = cudnn_frontend::graph;
using TensorPointer = std::shared_ptr<graph::Tensor_attributes>;
using Pointers = std::unordered_map<std::int64_t, void*>;

// Names of a graph's tensors in the list of pointers that it is run with.
enum Name : std::int64_t { kQ = 1, kK, kV, kOut, kStatistics, kDOut, kDQ, kDK, kDV };

void expect(cudnn_frontend::error_t status) {
  if (status.is_bad()) throw RunError("cuDNN's attention failed: " + status.get_message());
}

// Dimensions are always [B, H, S, C]; how they lie in memory is told by strides.
struct Layout {
  std::vector<std::int64_t> size, stride;
};

Layout part_of_qkv(const CudnnAttentionCase& c, int heads) {
  const std::int64_t channels = c.head_dim, width = (c.heads + 2 * c.kv_heads) * channels;
  return {{c.sequences, heads, c.seq_len, channels}, {c.seq_len * width, channels, width, 1}};
}

Layout output(const CudnnAttentionCase& c) {
  const std::int64_t channels = c.head_dim, width = c.heads * channels;
  return {{c.sequences, c.heads, c.seq_len, channels}, {c.seq_len * width, channels, width, 1}};
}

Layout statistics(const CudnnAttentionCase& c) {
  const std::int64_t length = c.seq_len;
  return {{c.sequences, c.heads, length, 1}, {c.heads * length, length, 1, 1}};
}

void describe(graph::Tensor_attributes& tensor, Name name, const Layout& layout,
              cudnn_frontend::DataType_t type = cudnn_frontend::DataType_t::BFLOAT16) {
  tensor.set_uid(name).set_dim(layout.size).set_stride(layout.stride).set_data_type(type);
}

TensorPointer input(graph::Graph& g, Name name, const Layout& layout,
                    cudnn_frontend::DataType_t type = cudnn_frontend::DataType_t::BFLOAT16) {
  graph::Tensor_attributes tensor;
  describe(tensor, name, layout, type);
  return g.tensor(tensor);
}

// Scale and mask: forward and backward must agree on them. A left bound of w keeps columns above row - w.
template <class Attributes>
Attributes causal(const CudnnAttentionCase& c, const char* name) {
  Attributes a;
  a.set_name(name).set_attn_scale(static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim))));
  a.set_diagonal_alignment(cudnn_frontend::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
  if (c.window < c.seq_len) a.set_diagonal_band_left_bound(c.window);
  return a;
}

void describe_forward(graph::Graph& g, const CudnnAttentionCase& c) {
  const TensorPointer q = input(g, kQ, part_of_qkv(c, c.heads)), k = input(g, kK, part_of_qkv(c, c.kv_heads)),
                      v = input(g, kV, part_of_qkv(c, c.kv_heads));
  auto attributes = causal<graph::SDPA_attributes>(c, "attention");
  attributes.set_generate_stats(true);  // also where nobody reads them: evaluation has training's kernel then
  const auto [out, stats] = g.sdpa(q, k, v, attributes);
  describe(out->set_output(true), kOut, output(c));
  describe(stats->set_output(true), kStatistics, statistics(c), cudnn_frontend::DataType_t::FLOAT);
}

void describe_backward(graph::Graph& g, const CudnnAttentionCase& c) {
  const Layout query = part_of_qkv(c, c.heads), key = part_of_qkv(c, c.kv_heads);
  const TensorPointer q = input(g, kQ, query), k = input(g, kK, key), v = input(g, kV, key),
                      out = input(g, kOut, output(c)), d_out = input(g, kDOut, output(c)),
                      stats = input(g, kStatistics, statistics(c), cudnn_frontend::DataType_t::FLOAT);
  auto attributes = causal<graph::SDPA_backward_attributes>(c, "attention_backward");
  attributes.set_deterministic_algorithm(c.deterministic);
  const auto [d_q, d_k, d_v] = g.sdpa_backward(q, k, v, out, d_out, stats, attributes);
  describe(d_q->set_output(true), kDQ, query);
  describe(d_k->set_output(true), kDK, key);
  describe(d_v->set_output(true), kDV, key);
  if (c.deterministic) g.deselect_workspace_greater_than(kMostOrderedAttentionBytes);
}

// A described graph with the kernel that cuDNN's heuristics choose for it.
class Plan {
 public:
  Plan() {
    using cudnn_frontend::DataType_t;
    graph_.set_io_data_type(DataType_t::BFLOAT16)
        .set_intermediate_data_type(DataType_t::FLOAT)
        .set_compute_data_type(DataType_t::FLOAT);
  }
  graph::Graph& graph() { return graph_; }

  // What cuDNN says against it, or nothing.
  std::optional<std::string> build(cudnnHandle_t handle) {
    try {  // the frontend reports by value, but what it is built on throws
      cudnn_frontend::error_t status = graph_.build(handle, {cudnn_frontend::HeurMode_t::A});
      if (status.is_good()) status = graph_.get_workspace_size(workspace_);
      return status.is_good() ? std::nullopt : std::optional<std::string>(status.get_message());
    } catch (const cudnn_frontend::cudnnException& error) { return error.what(); }
  }
  std::int64_t workspace() const { return workspace_; }
  void run(cudnnHandle_t handle, Pointers pointers, void* workspace) const {
    expect(graph_.execute(handle, pointers, workspace));
  }

 private:
  graph::Graph graph_;
  std::int64_t workspace_ = 0;
};

class Plans final : public CudnnAttention {
 public:
  explicit Plans(const CudnnAttentionCase& which) : case_(which) {}

  std::optional<std::string> build(cudnnHandle_t handle) {
    // The frontend puts its fp32 sums, one a query and head, in front of the kernel's workspace.
    if (case_.training && case_.sequences * case_.heads * case_.seq_len % 4 != 0)
      return "its workspace would not be aligned to 16 bytes";
    describe_forward(forward_.graph(), case_);
    auto objection = forward_.build(handle);
    if (objection || !case_.training) return objection;
    describe_backward(backward_.graph(), case_);
    return backward_.build(handle);
  }

  std::int64_t forward_workspace() const override { return forward_.workspace(); }
  std::int64_t backward_workspace() const override { return backward_.workspace(); }

  void forward(const Forward& work, cudnnContext* handle) const override {
    forward_.run(handle,
                 {{kQ, head(work.qkv, 0)},
                  {kK, head(work.qkv, case_.heads)},
                  {kV, head(work.qkv, case_.heads + case_.kv_heads)},
                  {kOut, work.out},
                  {kStatistics, work.statistics}},
                 work.workspace);
  }

  void backward(const Backward& work, cudnnContext* handle) const override {
    const int keys = case_.heads, values = case_.heads + case_.kv_heads;
    backward_.run(handle,
                  {{kQ, head(work.qkv, 0)},
                   {kK, head(work.qkv, keys)},
                   {kV, head(work.qkv, values)},
                   {kOut, const_cast<void*>(work.out)},
                   {kDOut, const_cast<void*>(work.d_out)},
                   {kStatistics, const_cast<float*>(work.statistics)},
                   {kDQ, head(work.d_qkv, 0)},
                   {kDK, head(work.d_qkv, keys)},
                   {kDV, head(work.d_qkv, values)}},
                  work.workspace);
  }

 private:
  // Where a head of the packed tensor begins. cuDNN's list holds no pointers to const.
  void* head(const void* qkv, int index) const {
    constexpr std::int64_t kBytes = 2;
    return const_cast<char*>(static_cast<const char*>(qkv)) + kBytes * index * case_.head_dim;
  }

  const CudnnAttentionCase case_;
  Plan forward_, backward_;
};

std::string describe(const CudnnAttentionCase& c) {
  return format("%lld sequences of %d tokens, %d heads and %d kv heads of %d channels, window %d%s%s",
                static_cast<long long>(c.sequences), c.seq_len, c.heads, c.kv_heads, c.head_dim, c.window,
                c.training ? ", training" : "", c.deterministic ? ", deterministic" : "");
}

// The frontend's message lists every engine with all that it misses.
std::string in_short(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  return message.size() > 300 ? message.substr(0, 300) + "…" : message;
}

}  // namespace

const CudnnAttention* CudnnAttention::find(const CudnnAttentionCase& c, cudnnContext* handle) {
  using Key = std::tuple<int, std::int64_t, int, int, int, int, int, bool, bool>;
  // Never destroyed: at exit cuDNN and the driver may be gone before it.
  static auto& built = *new std::map<Key, std::unique_ptr<Plans>>();
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const Key key{c.device,   c.sequences, c.seq_len,  c.heads,        c.kv_heads,
                c.head_dim, c.window,    c.training, c.deterministic};
  const auto known = built.find(key);
  if (known != built.end()) return known->second.get();
  auto plans = std::make_unique<Plans>(c);
  if (const auto objection = plans->build(handle)) {
    log::info("attention: torch's kernels, because cuDNN has none for " + describe(c) + " (" + in_short(*objection) +
              ")");
    plans = nullptr;
  }
  return (built[key] = std::move(plans)).get();
}

}  // namespace switchyard::ops
