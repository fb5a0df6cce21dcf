// A quantizer's values and its gradient, each in one pass over memory.
//
// The definition is `fake_quant` of tf_fpq/quantizers/numerics.py, computed by the plain formula.
// Of the inputs `step_size` and `zero_point`, with one element, or one for each element of the last
// axis of `x` that is not 1:
//
//     step  = max(|step_size|, min_step_size)
//     low   = (qmin - zero_point) * step
//     high  = (qmax - zero_point) * step
//     y     = clip(step * round(x * (1 / step)), low, high)
//     dx    = g where low < x < high, else 0
//     dstep = sum(g * (y - moved)) / step * sign(step_size) * gradient_scale
//
// `moved` is what moves along with `y` where `low < x < high`: `x` if `slope_inside`, else `y`.
// Outside it is 0.
//
// Where `x` is the output of a batch norm in training, the gradient may take the batch norm's input
// in its place, from which `x` is computed again. It differs by a rounding error then, which
// decides for values that lie as near to an end of the range; and `x` need not be kept.
//
// `y` and `dx` are the formula's, bit for bit; nothing is contracted to a fused product and sum.
// The sum of a block is in float, that of the blocks in double and in their order, so that it does
// not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tf_fpq/native/operation.h"

namespace tf_fpq {
namespace {

// A NaN passes, as the comparisons with it are false.
inline float OnGrid(float x, float step, float inverse, float low, float high) {
  const float y = std::nearbyint(x * inverse) * step;
  const float raised = y < low ? low : y;
  return raised > high ? high : raised;
}

FOR_EACH_PROCESSOR
void Values(const float* x, int64_t count, float step, float inverse, float low, float high,
            float* y) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = OnGrid(x[i], step, inverse, low, high);
}

FOR_EACH_PROCESSOR
float Gradient(const float* g, const float* x, int64_t count, float step, float inverse, float low,
               float high, bool slope_inside, float* dx) {
  float slope = 0.0f;
#pragma omp simd reduction(+ : slope)
  for (int64_t i = 0; i < count; ++i) {
    const bool inside = (x[i] > low) & (x[i] < high);
    const float upstream = g[i];  // `dx` may be the same memory
    const float y = OnGrid(x[i], step, inverse, low, high);
    slope += upstream * (y - (inside ? (slope_inside ? x[i] : y) : 0.0f));
    dx[i] = inside ? upstream : 0.0f;
  }
  return slope;
}

FOR_EACH_PROCESSOR
void RowValues(const float* x, int64_t channels, const float* step, const float* inverse,
               const float* low, const float* high, float* y) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) y[c] = OnGrid(x[c], step[c], inverse[c], low[c], high[c]);
}

FOR_EACH_PROCESSOR
void RowGradient(const float* g, const float* x, int64_t channels, const float* step,
                 const float* inverse, const float* low, const float* high, bool slope_inside,
                 float* dx, double* slope) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const bool inside = (x[c] > low[c]) & (x[c] < high[c]);
    const float upstream = g[c];
    const float y = OnGrid(x[c], step[c], inverse[c], low[c], high[c]);
    slope[c] += upstream * (y - (inside ? (slope_inside ? x[c] : y) : 0.0f));
    dx[c] = inside ? upstream : 0.0f;
  }
}

// A batch norm's output is computed from its input `z`, mean, scale and offset.
FOR_EACH_PROCESSOR
void NormalizedRowsGradient(const float* g, const float* z, int64_t rows, int64_t channels,
                            const float* mean, const float* scale, const float* offset, float step,
                            float inverse, float low, float high, bool slope_inside, float* dx,
                            float* slopes) {
  for (int64_t row = 0; row < rows; ++row, g += channels, z += channels, dx += channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float x = (z[c] - mean[c]) * scale[c] + offset[c];
      const bool inside = (x > low) & (x < high);
      const float upstream = g[c];
      const float y = OnGrid(x, step, inverse, low, high);
      slopes[c] += upstream * (y - (inside ? (slope_inside ? x : y) : 0.0f));
      dx[c] = inside ? upstream : 0.0f;
    }
  }
}

// The grids of a tensor, from the inputs of an operation.
struct Grids {
  int64_t channels() const { return step.size(); }
  std::vector<float> step, inverse, low, high;
};

// What both operations share: the attributes that make grids of step sizes and zero points.
class GridOp : public OpKernel {
 public:
  explicit GridOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("qmin", &qmin_));
    OP_REQUIRES_OK(context, context->GetAttr("qmax", &qmax_));
    OP_REQUIRES_OK(context, context->GetAttr("min_step_size", &min_step_size_));
  }

 protected:
  ::tensorflow::Status GridsOf(const Tensor& x, const Tensor& step_size, const Tensor& zero_point,
                               Grids* grids) const {
    const int64_t channels = step_size.NumElements();
    if (channels == 0 || x.NumElements() % channels != 0) {
      return InvalidArgument("step_size does not fit x. Received: ",
                             step_size.shape().DebugString(), " and ", x.shape().DebugString());
    }
    if (zero_point.NumElements() != channels) {
      return InvalidArgument("step_size and zero_point must have as many elements. Received: ",
                             step_size.shape().DebugString(), " and ",
                             zero_point.shape().DebugString());
    }
    const auto sizes = step_size.flat<float>();
    const auto zeros = zero_point.flat<float>();
    for (auto* part : {&grids->step, &grids->inverse, &grids->low, &grids->high}) {
      part->resize(channels);
    }
    for (int64_t c = 0; c < channels; ++c) {
      const float magnitude = std::abs(sizes(c));
      const float step = magnitude < min_step_size_ ? min_step_size_ : magnitude;  // NaN stays
      grids->step[c] = step;
      grids->inverse[c] = 1.0f / step;
      grids->low[c] = (qmin_ - zeros(c)) * step;
      grids->high[c] = (qmax_ - zeros(c)) * step;
    }
    return ::tensorflow::OkStatus();
  }

  float qmin_, qmax_, min_step_size_;
};

class FakeQuantOp : public GridOp {
 public:
  using GridOp::GridOp;

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    Grids grids;
    OP_REQUIRES_OK(context, GridsOf(input, context->input(1), context->input(2), &grids));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, input.shape(), &output));
    const float* x = input.flat<float>().data();
    float* y = output->flat<float>().data();
    if (grids.channels() == 1) {
      ForBlocks(context, input.NumElements(), [&](int64_t first, int64_t count, int64_t) {
        Values(x + first, count, grids.step[0], grids.inverse[0], grids.low[0], grids.high[0],
               y + first);
      });
      return;
    }
    for (int64_t row = 0; row < input.NumElements(); row += grids.channels()) {
      RowValues(x + row, grids.channels(), grids.step.data(), grids.inverse.data(),
                grids.low.data(), grids.high.data(), y + row);
    }
  }
};

// What both gradients share: the attributes, and what is left to do with the sums.
class GradientOp : public GridOp {
 public:
  explicit GradientOp(OpKernelConstruction* context) : GridOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("gradient_scale", &gradient_scale_));
    OP_REQUIRES_OK(context, context->GetAttr("slope_inside", &slope_inside_));
  }

 protected:
  // Outputs for the gradients of `x`, in the memory of `g` where nothing else needs it.
  ::tensorflow::Status Allocate(OpKernelContext* context, const Tensor& step_size, Tensor** to_x,
                                Tensor** to_step) const {
    const Tensor &upstream = context->input(0), &input = context->input(1);
    if (upstream.shape() != input.shape()) {
      return InvalidArgument("g and x must have one shape. Received: ",
                             upstream.shape().DebugString(), " and ", input.shape().DebugString());
    }
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({0}, 0, input.shape(), to_x));
    return context->allocate_output(1, step_size.shape(), to_step);
  }

  void Finish(const std::vector<double>& slopes, const Tensor& step_size, const Grids& grids,
              Tensor* to_step) const {
    const auto sizes = step_size.flat<float>();
    auto dstep = to_step->flat<float>();
    for (int64_t c = 0; c < grids.channels(); ++c) {
      // As tf.abs and tf.maximum have it: nothing at 0 and where the magnitude is too small.
      const bool moves = !(std::abs(sizes(c)) < min_step_size_);
      const float direction = moves ? std::copysign(gradient_scale_, sizes(c)) : 0.0f;
      dstep(c) = static_cast<float>(slopes[c]) / grids.step[c] * direction;
    }
  }

  float gradient_scale_;
  bool slope_inside_;
};

class FakeQuantGradientOp : public GradientOp {
 public:
  using GradientOp::GradientOp;

  void Compute(OpKernelContext* context) override {
    const Tensor &input = context->input(1), &step_size = context->input(2);
    Grids grids;
    OP_REQUIRES_OK(context, GridsOf(input, step_size, context->input(3), &grids));
    Tensor *to_x = nullptr, *to_step = nullptr;
    OP_REQUIRES_OK(context, Allocate(context, step_size, &to_x, &to_step));
    std::vector<double> slopes(grids.channels(), 0.0);
    Gradients(context, context->input(0).flat<float>().data(), input.flat<float>().data(),
              input.NumElements(), grids, to_x->flat<float>().data(), slopes.data());
    Finish(slopes, step_size, grids, to_step);
  }

 private:
  void Gradients(OpKernelContext* context, const float* g, const float* x, int64_t total,
                 const Grids& grids, float* dx, double* slopes) const {
    if (grids.channels() == 1) {
      std::vector<float> sums(NumBlocks(total));
      ForBlocks(context, total, [&](int64_t first, int64_t count, int64_t block) {
        sums[block] = Gradient(g + first, x + first, count, grids.step[0], grids.inverse[0],
                               grids.low[0], grids.high[0], slope_inside_, dx + first);
      });
      for (const float sum : sums) slopes[0] += sum;
      return;
    }
    for (int64_t row = 0; row < total; row += grids.channels()) {
      RowGradient(g + row, x + row, grids.channels(), grids.step.data(), grids.inverse.data(),
                  grids.low.data(), grids.high.data(), slope_inside_, dx + row, slopes);
    }
  }
};

// The gradient of a quantizer behind a batch norm, from what the batch norm reads.
class NormalizedFakeQuantGradientOp : public GradientOp {
 public:
  explicit NormalizedFakeQuantGradientOp(OpKernelConstruction* context) : GradientOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &input = context->input(1), &step_size = context->input(6);
    const int64_t channels = input.dims() > 0 ? input.dim_size(input.dims() - 1) : 0;
    for (int i = 2; i < 6; ++i) {
      OP_REQUIRES(
          context, channels > 0 && context->input(i).NumElements() == channels,
          InvalidArgument("mean, variance, scale and offset must be those of the channels. ",
                          "Received: ", context->input(i).shape().DebugString(), " and ",
                          input.shape().DebugString()));
    }
    Grids grids;
    OP_REQUIRES_OK(context, GridsOf(input, step_size, context->input(7), &grids));
    OP_REQUIRES(context, grids.channels() == 1,
                InvalidArgument("step_size must be one number. Received: ",
                                step_size.shape().DebugString()));
    Tensor *to_x = nullptr, *to_step = nullptr;
    OP_REQUIRES_OK(context, Allocate(context, step_size, &to_x, &to_step));
    const std::vector<double> slopes = {Slope(context, channels, grids, to_x)};
    Finish(slopes, step_size, grids, to_step);
  }

 private:
  double Slope(OpKernelContext* context, int64_t channels, const Grids& grids, Tensor* to_x) const {
    const float* g = context->input(0).flat<float>().data();
    const float* z = context->input(1).flat<float>().data();
    const float* mean = context->input(2).flat<float>().data();
    const auto variance = context->input(3).flat<float>();
    const auto gamma = context->input(4).flat<float>();
    const float* offset = context->input(5).flat<float>().data();
    float* dx = to_x->flat<float>().data();
    std::vector<float> scale(channels);
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = gamma(c) / std::sqrt(variance(c) + epsilon_);
    }
    const int64_t rows = context->input(1).NumElements() / channels;
    const int64_t block_rows = RowsOfBlock(channels);
    std::vector<float> sums(NumBlocks(rows, block_rows) * channels, 0.0f);
    ForBlocks(
        context, rows,
        [&](int64_t first, int64_t count, int64_t block) {
          const int64_t start = first * channels;
          NormalizedRowsGradient(g + start, z + start, count, channels, mean, scale.data(), offset,
                                 grids.step[0], grids.inverse[0], grids.low[0], grids.high[0],
                                 slope_inside_, dx + start, sums.data() + block * channels);
        },
        block_rows);
    double slope = 0.0;
    for (const float sum : sums) slope += sum;
    return slope;
  }

  float epsilon_;
};

REGISTER_OP("TfFpqFakeQuant")
    .Input("x: float")
    .Input("step_size: float")
    .Input("zero_point: float")
    .Attr("qmin: float")
    .Attr("qmax: float")
    .Attr("min_step_size: float")
    .Output("y: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(0));
      return ::tensorflow::OkStatus();
    });

REGISTER_OP("TfFpqFakeQuantGradient")
    .Input("g: float")
    .Input("x: float")
    .Input("step_size: float")
    .Input("zero_point: float")
    .Attr("qmin: float")
    .Attr("qmax: float")
    .Attr("min_step_size: float")
    .Attr("gradient_scale: float")
    .Attr("slope_inside: bool")
    .Output("dx: float")
    .Output("dstep: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(1));
      context->set_output(1, context->input(2));
      return ::tensorflow::OkStatus();
    });

REGISTER_OP("TfFpqNormalizedFakeQuantGradient")
    .Input("g: float")
    .Input("z: float")
    .Input("mean: float")
    .Input("variance: float")
    .Input("scale: float")
    .Input("offset: float")
    .Input("step_size: float")
    .Input("zero_point: float")
    .Attr("epsilon: float")
    .Attr("qmin: float")
    .Attr("qmax: float")
    .Attr("min_step_size: float")
    .Attr("gradient_scale: float")
    .Attr("slope_inside: bool")
    .Output("dx: float")
    .Output("dstep: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(1));
      context->set_output(1, context->input(6));
      return ::tensorflow::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("TfFpqFakeQuant").Device(::tensorflow::DEVICE_CPU), FakeQuantOp);
REGISTER_KERNEL_BUILDER(Name("TfFpqFakeQuantGradient").Device(::tensorflow::DEVICE_CPU),
                        FakeQuantGradientOp);
REGISTER_KERNEL_BUILDER(Name("TfFpqNormalizedFakeQuantGradient").Device(::tensorflow::DEVICE_CPU),
                        NormalizedFakeQuantGradientOp);

}  // namespace
}  // namespace tf_fpq
