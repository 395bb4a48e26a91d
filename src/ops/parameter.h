// Parameters as ops and optimizers share them: an fp32 master, the copy that products read, and a slice of one gradient
// buffer. Ops add weight gradients into the slice themselves and return none to autograd.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace switchyard {

using at::Tensor;

// What a parameter is; decides its optimizer group, its precision and its line in the parameter table.
enum class ParameterKind {
  kTokenEmbedding,
  kValueEmbedding,
  kHead,
  kAttention,
  kMlp,
  kRouter,
  kRouterVector,
  kExpert,
  kSharedExpert,
  kValueGate,
  kKeepScalar,
  kAgainScalar,
  kNorm,
  kMixScalar,
  kInlController,
  kInlVector,
};
const char* to_string(ParameterKind kind);
// Read in fp32 by the kernels whatever the precision: routers, gates of few rows stay with the activations' type.
bool computes_in_fp32(ParameterKind kind);

// Initial values: a function of (seed, name, index) alone, so no weight depends on layers, ranks or placement.
struct Init {
  enum class Kind { kConstant, kUniform, kNormal, kOrthogonalRows, kPieces } kind = Kind::kConstant;
  double scale = 0;  // the constant, the bound of the uniform, the deviation of the normal, 1 / the rows' norm
  std::vector<double> pieces = {};  // of equal parts of the first dimension, a constant each
};

// Values of that Init for the key, fp32 on the CPU.
Tensor drawn(const std::vector<std::int64_t>& shape, const Init& init, std::uint64_t key);

class Parameter {
 public:
  Parameter(std::string name, ParameterKind kind, std::vector<std::int64_t> shape, Init init,
            std::vector<std::int64_t> row_split = {});

  const std::string name;
  const ParameterKind kind;
  const std::vector<std::int64_t> shape;
  const Init init;
  // How the rows of the last two dimensions divide into logical matrices: {D, KV, KV} for a joint qkv, {N, N} for a
  // gated up projection; one entry otherwise. A leading third dimension (experts) multiplies their number.
  const std::vector<std::int64_t> row_split;

  std::int64_t count() const;             // elements
  std::int64_t logical_matrices() const;  // experts * row_split.size()

  Tensor master;   // fp32 (double in gradient tests)
  Tensor compute;  // what products read: bf16, or master itself; requires grad so that autograd reaches its op
  Tensor grad;     // the slice of the gradient buffer, dtype of master, shape of the parameter

  // Ops call use() in a forward pass that will be differentiated and grad_added() when backward has added to the slice;
  // after the last use `on_ready` fires. Not safe for concurrent calls on one parameter.
  void use() const;
  void grad_added() const;
  void forget_uses() const { pending_ = 0; }
  std::function<void(const Parameter&)> on_ready;

 private:
  mutable int pending_ = 0;
};

// Where each parameter starts in the flat buffers, in elements.
struct Placement {
  std::vector<std::int64_t> offset;  // one a parameter
  std::int64_t total = 0;            // elements of each flat buffer, padding included
};

// While one lives, use() counts nothing on its thread: for a forward pass that runs a second time (ops/recompute.h).
class UsesAreCounted {
 public:
  UsesAreCounted() { ++depth_; }
  ~UsesAreCounted() { --depth_; }
  UsesAreCounted(const UsesAreCounted&) = delete;
  UsesAreCounted& operator=(const UsesAreCounted&) = delete;
  static bool here() { return depth_ > 0; }

 private:
  static thread_local int depth_;
};

// Owns the parameters of one model, in declaration order, and their flat buffers.
class ParameterStore {
 public:
  Parameter& add(std::string name, ParameterKind kind, std::vector<std::int64_t> shape, Init init,
                 std::vector<std::int64_t> row_split = {});

  // Allocates masters, gradients (zero) and compute copies. compute_dtype equal to master_dtype: no copies.
  void allocate(at::Device device, at::ScalarType compute_dtype, const Placement& placement,
                at::ScalarType master_dtype = at::kFloat);
  Placement contiguous() const;         // declaration order, each start a multiple of 64 elements
  void initialize(std::uint64_t seed);  // masters by each parameter's Init, then the copies
  void refresh_copies();                // compute = master, rounded
  void zero_grad();

  const std::vector<std::unique_ptr<Parameter>>& all() const { return parameters_; }
  Parameter* find(const std::string& name) const;  // nullptr when there is none

  Tensor flat_master, flat_grad, flat_compute;  // flat_compute undefined without copies

 private:
  std::vector<std::unique_ptr<Parameter>> parameters_;
};

// The parameter as an autograd tensor whose gradient is added to the slice: for plain-ATen references and small
// vectors.
Tensor attach(const Parameter& parameter);

}  // namespace switchyard
