#include "ops/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops/parameter.h"

namespace switchyard::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What both runs share. Function::apply takes and gives defined tensors only, each once.
struct Call : torch::CustomClassHolder {
  TensorFunction run;
  std::vector<int> input_at;       // of each argument of run, its place among the distinct ones; -1: undefined
  std::vector<bool> needs_grad;    // of the distinct inputs
  std::vector<bool> output_given;  // false: run returned an undefined tensor there

  // run on tensors of their own history; the graph of `distinct` is not entered.
  variable_list outputs_of(const variable_list& distinct) {
    std::vector<Tensor> arguments;
    for (const int at : input_at) arguments.push_back(at < 0 ? Tensor() : distinct[static_cast<std::size_t>(at)]);
    std::vector<Tensor> all = run(arguments);
    output_given.clear();
    for (const Tensor& output : all) output_given.push_back(output.defined());
    all.erase(std::remove_if(all.begin(), all.end(), [](const Tensor& output) { return !output.defined(); }),
              all.end());
    return all;
  }
};

variable_list leaves_of(const variable_list& inputs, const std::vector<bool>& needs_grad) {
  variable_list leaves;
  for (std::size_t i = 0; i < inputs.size(); ++i) leaves.push_back(inputs[i].detach().requires_grad_(needs_grad[i]));
  return leaves;
}

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  // The first run records a graph too, and drops it: so it takes the path that the second takes, counts each
  // parameter's uses, and shows which outputs have a gradient.
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const c10::intrusive_ptr<Call>& call) {
    const variable_list distinct = inputs.vec();
    for (const Tensor& input : distinct) call->needs_grad.push_back(input.requires_grad());
    variable_list outputs, without_gradient;
    {
      const at::AutoGradMode record(true);
      for (const Tensor& output : call->outputs_of(leaves_of(distinct, call->needs_grad))) {
        outputs.push_back(output.detach());
        if (!output.requires_grad()) without_gradient.push_back(outputs.back());
      }
    }
    context->save_for_backward(distinct);
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    context->mark_non_differentiable(without_gradient);
    context->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto capsule = context->saved_data["call"].toCapsule();
    Call& call = static_cast<Call&>(*capsule);
    variable_list leaves = leaves_of(context->get_saved_variables(), call.needs_grad);
    {
      const at::AutoGradMode record(true);
      variable_list outputs, roots, seeds;
      {
        const UsesAreCounted counted;
        outputs = call.outputs_of(leaves);
      }
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        if (!grads[i].defined() || !outputs[i].requires_grad()) continue;
        roots.push_back(std::move(outputs[i]));
        seeds.push_back(grads[i]);
      }
      outputs.clear();
      torch::autograd::backward(roots, seeds);
    }
    variable_list d_inputs;
    for (Tensor& leaf : leaves) d_inputs.push_back(std::move(leaf.mutable_grad()));
    d_inputs.emplace_back();  // of the call
    return d_inputs;
  }
};

}  // namespace

bool is_recomputing() { return UsesAreCounted::here(); }

std::vector<Tensor> recompute(const std::vector<Tensor>& inputs, const TensorFunction& run) {
  const bool differentiable = std::any_of(inputs.begin(), inputs.end(),
                                          [](const Tensor& input) { return input.defined() && input.requires_grad(); });
  if (!at::GradMode::is_enabled() || !differentiable) return run(inputs);

  auto call = c10::make_intrusive<Call>();
  call->run = run;
  variable_list distinct;
  for (const Tensor& input : inputs) {
    const auto same = std::find_if(distinct.begin(), distinct.end(), [&](const Tensor& t) { return t.is_same(input); });
    call->input_at.push_back(input.defined() ? static_cast<int>(same - distinct.begin()) : -1);
    if (input.defined() && same == distinct.end()) distinct.push_back(input);
  }
  variable_list given = Recompute::apply(at::TensorList(distinct), call);
  std::vector<Tensor> outputs;
  std::size_t next = 0;
  for (const bool defined : call->output_given) outputs.push_back(defined ? std::move(given[next++]) : Tensor());
  return outputs;
}

}  // namespace switchyard::ops
