#include "aten.h"
#include "convolution.h"
#include "gradient.h"
#include "memory/bands.h"
#include "memory/freed_memory.h"
#include "memory/reduced.h"
#include "ops.h"
#include "tuning.h"

namespace fastconv::cpu {
namespace {

template <class T>
void dense_backward_data(Gradient<T>& g, const DataPass& c) {
  const BackwardPlan& plan = c.plan;
  if (plan.algorithm == Algorithm::thin_groups) {
    return thin_groups_backward_data(PlainElements<T>{}, g.shape().conv, g.convolution(), c.weight, c.grad_input);
  }
  if (plan.algorithm == Algorithm::image_filter) {
    return image_filter_backward_data<T>(g.shape().conv, g.convolution(), c.weight, c.grad_input);
  }
  if (plan.algorithm == Algorithm::torch) {
    return torch_backward_data(g.shape().conv, g.convolution(), c.weight, c.grad_input);
  }
  Conv2dShape s = g.shape().conv;
  s.P -= plan.unused_rows, s.pad_h -= plan.unused_rows * s.stride_h;
  Tensor rows = g.convolution();
  if (plan.unused_rows > 0) rows = dense(slice(rows, 2, plan.unused_rows, s.P));
  if (plan.algorithm == Algorithm::winograd) {
    return winograd_backward_data<T>(s, plan.cut, rows, c.weight, c.grad_input);
  }
  direct_backward_data<T>(s, rows, c.weight, c.grad_input);
}

template <class T>
void dense_backward_weight(Gradient<T>& g, const WeightPass& c) {
  const Conv2dShape& s = g.shape().conv;
  switch (c.plan.algorithm) {
    case Algorithm::few_channels:
      return few_channels_backward_weight<T>(g.sparse(false), c.input, c.grad_weight, c.grad_bias);
    case Algorithm::thin_groups:
      return thin_groups_backward_weight(PlainElements<T>{}, s, g.convolution(), c.input, c.grad_weight, c.grad_bias);
    case Algorithm::image_filter:
      return image_filter_backward_weight<T>(s, g.convolution(), c.input, c.grad_weight, c.grad_bias);
    case Algorithm::winograd:
      return winograd_backward_weight<T>(s, c.plan.cut, g.convolution(), c.input, c.grad_weight, c.grad_bias);
    case Algorithm::gemm:
      return gemm_backward_weight<T>(s, g.convolution(), c.input, c.grad_weight, c.grad_bias);
    case Algorithm::torch:
      return torch_backward_weight(s, g.convolution(), c.input, c.grad_weight, c.grad_bias);
    default:
      return direct_backward_weight<T>(s, g.convolution(), c.input, c.grad_weight, c.grad_bias);
  }
}

// Asks the plan about each pass and calls the drivers. All tensors are of T.
template <class T>
void backward(Gradient<T>& g, std::optional<DataPass> data, std::optional<WeightPass> weight) {
  if (data) data->plan = plan_backward<T>(Pass::backward_data, g.shape(), g.facts(data->weight));
  if (weight) weight->plan = plan_backward<T>(Pass::backward_weight, g.shape(), g.facts(weight->input));
  const bool sparse_data = data && data->plan.algorithm == Algorithm::sparse_gradient;
  const bool sparse_weight = weight && weight->plan.algorithm == Algorithm::sparse_gradient;
  if (data && !sparse_data) dense_backward_data(g, *data);
  if (sparse_data || sparse_weight) {
    sparse_backward<T>(g, sparse_data ? &*data : nullptr, sparse_weight ? &*weight : nullptr);
  }
  if (weight && !sparse_weight) dense_backward_weight(g, *weight);
}

// ---- large calls, band by band -----------------------------------------------------------------------------------

template <class T>
Gradient<T> gradient_of(const Backward& call, const Band& band, const View& view) {
  const Tensor g = part_of(call.grad_output, band.images, band.windows);
  std::optional<Tensor> argmax;
  if (call.argmax) argmax = part_of(*call.argmax, band.images, band.windows);
  return Gradient<T>(band.shape, view.read(g, Workspace::wide_gradient), argmax);
}

// Returns whether the bands may be rows of images. `other`: the other tensor that is cut.
bool can_be_rows(const Backward& call, const Tensor& other, const View& view) {
  return view.reduced || (is_nhwc(call.grad_output) && is_nhwc(other));
}

template <class T>
void data_by_bands(const Backward& call, const View& view, const BandLimits& limits) {
  const Tensor w = dense(view.read(*call.weight, Workspace::wide_weight));
  for_each_data_band(call.shape, can_be_rows(call, *call.grad_input, view), limits, [&](const Band& band) {
    Gradient<T> g = gradient_of<T>(call, band, view);
    view.write(part_of(*call.grad_input, band.images, band.input), Workspace::wide_result,
               [&](const Tensor& dx) { backward<T>(g, DataPass{w, dx}, {}); });
  });
}

template <class T>
void weight_by_bands(const Backward& call, const View& view, const BandLimits& limits, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  const auto run = [&](bool by_rows) {
    BandSum sum(grad_weight, grad_bias);
    for_each_band(call.shape, by_rows, limits, [&](const Band& band) {
      Gradient<T> g = gradient_of<T>(call, band, view);
      const Tensor x = dense(view.read(part_of(*call.input, band.images, band.input), Workspace::wide_input));
      sum.add([&](const Tensor& dw, const Tensor& db) { backward<T>(g, {}, WeightPass{x, dw, db}); });
    });
  };
  const bool rows = can_be_rows(call, *call.input, view);
  run(rows);
  // If windows overlap, two bands may share a row of the convolution. A gradient there may be zero in one band only,
  // and zero times an infinite input is NaN. So the sums are computed again with bands of whole images.
  if (rows && call.shape.windows_overlap_in_rows() && !all_finite<T>(grad_weight)) run(false);
}

// `other`: the tensor that the pass reads or writes besides grad_output and weight.
bool call_multiplies_pairs(const Backward& call, Pass pass, const Tensor& other) {
  const bool nhwc = !call.argmax && is_nhwc(call.grad_output) && is_nhwc(other);
  return multiplies_pairs(call.shape.conv, pass, call.grad_output.scalar_type(), nhwc);
}

// ---- 16-bit tensors, tile by tile --------------------------------------------------------------------------------

ReducedElements elements_of(const Tensor& tensor) { return {reduced_kernels(tensor.scalar_type())}; }

// Returns whether thin_groups converts the tiles of a 16-bit call. It needs the gradient of the convolution itself.
bool may_convert_thin_groups(const Backward& call) {
  return is_reduced(call.grad_output) && call.shape.conv.groups > 1 && !call.argmax;
}

// Computes dx and returns true, if there is an algorithm that needs no float32 tensor.
bool data_of_16_bits(const Backward& call) {
  const Conv2dShape& s = call.shape.conv;
  if (call_multiplies_pairs(call, Pass::backward_data, *call.grad_input)) {
    pairs_backward_data(s, call.grad_output, *call.weight, *call.grad_input);
    return true;
  }
  if (!may_convert_thin_groups(call)) return false;
  const Tensor w = dense(widened(*call.weight, Workspace::wide_weight));
  const GradientFacts facts{false, [](double) { return 1.0; }, [&] { return all_finite<float>(w); }};
  if (plan_backward<float>(Pass::backward_data, call.shape, facts).algorithm != Algorithm::thin_groups) return false;
  thin_groups_backward_data(elements_of(call.grad_output), s, call.grad_output, w, *call.grad_input);
  return true;
}

// Does this for dw. write(compute) calls compute(dw, db) with the gradients in float32.
template <class Write>
bool weight_of_16_bits(const Backward& call, const Write& write) {
  const Conv2dShape& s = call.shape.conv;
  const Tensor &g = call.grad_output, &x = *call.input;
  if (call_multiplies_pairs(call, Pass::backward_weight, x)) {
    write([&](const Tensor& dw, const Tensor& db) { pairs_backward_weight(s, g, x, dw, db); });
    return true;
  }
  const GradientFacts facts{false, [](double) { return 1.0; }, [] { return true; }};
  if (!may_convert_thin_groups(call)) return false;
  if (plan_backward<float>(Pass::backward_weight, call.shape, facts).algorithm != Algorithm::thin_groups) return false;
  write([&](const Tensor& dw, const Tensor& db) { thin_groups_backward_weight(elements_of(g), s, g, x, dw, db); });
  return true;
}

}  // namespace

Gradients Backward::allocate(bool needs_input, bool needs_weight) {
  const Gradients all =
      empty_gradients(shape.conv, grad_output, {needs_input, needs_weight}, {input_nhwc, weight_nhwc});
  if (needs_input) grad_input = std::get<0>(all);
  if (needs_weight) grad_weight = std::get<1>(all), grad_bias = std::get<2>(all);
  keep_freed_memory(kept_bytes_in_training);
  return all;
}

void run_backward(const Backward& call) {
  const Conv2dShape& s = call.shape.conv;
  bool data = call.grad_input && call.grad_input->numel() > 0, weight = call.grad_weight && s.N > 0;
  if (call.grad_weight && !weight) zero(*call.grad_weight), zero(*call.grad_bias);
  const View view{is_reduced(call.grad_output)};
  const auto write_weight = [&](const auto& compute) {
    view.write(*call.grad_weight, Workspace::wide_grad_weight, [&](const Tensor& dw) {
      view.write(*call.grad_bias, Workspace::wide_bias, [&](const Tensor& db) { compute(dw, db); });
    });
  };
  data = data && !data_of_16_bits(call);
  weight = weight && !weight_of_16_bits(call, write_weight);
  if (!data && !weight) return;
  const BandLimits limits = band_limits(view.reduced);
  const bool one_piece = data && weight && s.N * s.P * s.Q * elements_per_output(s) <= limits.call;
  view.dispatch(call.grad_output, "conv2d_backward", [&](auto type) {
    using T = decltype(type);
    if (one_piece) {
      Gradient<T> g(call.shape, view.read(call.grad_output, Workspace::wide_gradient), call.argmax);
      const Tensor w = dense(view.read(*call.weight, Workspace::wide_weight));
      const Tensor x = dense(view.read(*call.input, Workspace::wide_input));
      return view.write(*call.grad_input, Workspace::wide_result, [&](const Tensor& dx) {
        write_weight(
            [&](const Tensor& dw, const Tensor& db) { backward<T>(g, DataPass{w, dx}, WeightPass{x, dw, db}); });
      });
    }
    if (data) data_by_bands<T>(call, view, limits);
    if (weight) {
      write_weight([&](const Tensor& dw, const Tensor& db) { weight_by_bands<T>(call, view, limits, dw, db); });
    }
  });
}

namespace {

// Computes each gradient that is needed, with fastconv's drivers or PyTorch's operator. `operands` has no gradients
// yet.
Gradients compute(const Backward& operands, bool needs_input, bool needs_weight) {
  const FusedShape& f = operands.shape;
  const Conv2dShape& s = f.conv;
  const Tensor& g = operands.grad_output;
  const auto run = [&](bool of_input, bool of_weight) {
    const bool data_nhwc = in_nhwc(g, operands.input_nhwc, s.C, s.H * s.W);
    const bool data_by_torch = of_input && torch_is_faster(s, Pass::backward_data, g.scalar_type(), data_nhwc);
    const bool weight_nhwc = of_weight && is_nhwc(g) && is_nhwc(*operands.input);
    const bool weight_by_torch = of_weight && torch_is_faster(s, Pass::backward_weight, g.scalar_type(), weight_nhwc);
    Backward call = operands;
    Gradients gradients = call.allocate(of_input && !data_by_torch, of_weight && !weight_by_torch);
    run_backward(call);
    if (data_by_torch || weight_by_torch) {
      const auto [grad_input, grad_weight, grad_bias] = aten_conv2d_backward(operands, data_by_torch, weight_by_torch);
      if (data_by_torch) std::get<0>(gradients) = grad_input;
      if (weight_by_torch) std::get<1>(gradients) = grad_weight, std::get<2>(gradients) = grad_bias;
    }
    return gradients;
  };
  const auto for_data = [&] { return Operands{f, g, *operands.weight, operands.input_nhwc}; };
  const auto for_weight = [&] { return Operands{f, g, *operands.input, operands.weight_nhwc}; };
  const Tuned data(Pass::backward_data, needs_input, for_data, [&] { run(true, false); });
  const Tuned sums(Pass::backward_weight, needs_weight, for_weight, [&] { run(false, true); });
  return run(needs_input, needs_weight);
}

}  // namespace

Gradients run_conv2d_backward(const Conv2dShape& s, const Tensor& grad_output, const Tensor& input,
                              const Tensor& weight, bool needs_input, bool needs_weight) {
  const WorkspaceScope scope;
  return compute({without_pool(s), grad_output, {}, input, weight, is_channels_last(input), is_channels_last(weight)},
                 needs_input, needs_weight);
}

Tensor run_conv2d_backward_data(const Conv2dShape& s, const Tensor& grad_output, const Tensor& weight,
                                bool channels_last) {
  const WorkspaceScope scope;
  return std::get<0>(compute({without_pool(s), grad_output, {}, {}, weight, channels_last}, true, false));
}

std::tuple<Tensor, Tensor> run_conv2d_backward_weight(const Conv2dShape& s, const Tensor& grad_output,
                                                      const Tensor& input, bool channels_last) {
  const WorkspaceScope scope;
  const auto [grad_input, grad_weight, grad_bias] =
      compute({without_pool(s), grad_output, {}, input, {}, false, channels_last}, false, true);
  return {grad_weight, grad_bias};
}

}  // namespace fastconv::cpu
