// A quantizer's values and its gradient, each in one pass over memory.
//
// The definition is `fake_quant` of tf_fpq/quantizers/numerics.py, computed by the plain formula. Of
// the inputs `step_size` and `zero_point`, with one element, or one for each element of the last
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
// `y` and `dx` are the formula's, bit for bit; nothing is contracted to a fused product and sum. The
// sum of a block is in float, that of the blocks in double and in their order, so that it does not
// depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf_fpq/native/blocks.h"

namespace tf_fpq {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::errors::InvalidArgument;
using ::tensorflow::shape_inference::InferenceContext;

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

// `keep` is 1 if `x` moves along inside, and 0 if `y` does.
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

class FakeQuantGradientOp : public GridOp {
 public:
  explicit FakeQuantGradientOp(OpKernelConstruction* context) : GridOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("gradient_scale", &gradient_scale_));
    OP_REQUIRES_OK(context, context->GetAttr("slope_inside", &slope_inside_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& upstream = context->input(0);
    const Tensor& input = context->input(1);
    const Tensor& step_size = context->input(2);
    OP_REQUIRES(context, upstream.shape() == input.shape(),
                InvalidArgument("g and x must have one shape. Received: ",
                                upstream.shape().DebugString(), " and ",
                                input.shape().DebugString()));
    Grids grids;
    OP_REQUIRES_OK(context, GridsOf(input, step_size, context->input(3), &grids));
    Tensor *to_x = nullptr, *to_step = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, input.shape(), &to_x));
    OP_REQUIRES_OK(context, context->allocate_output(1, step_size.shape(), &to_step));
    std::vector<double> slopes(grids.channels(), 0.0);
    Gradients(context, upstream.flat<float>().data(), input.flat<float>().data(),
              input.NumElements(), grids, to_x->flat<float>().data(), slopes.data());
    const auto sizes = step_size.flat<float>();
    auto dstep = to_step->flat<float>();
    for (int64_t c = 0; c < grids.channels(); ++c) {
      // As tf.abs and tf.maximum have it: nothing at 0 and where the magnitude is too small.
      const bool moves = !(std::abs(sizes(c)) < min_step_size_);
      const float direction = moves ? std::copysign(gradient_scale_, sizes(c)) : 0.0f;
      dstep(c) = static_cast<float>(slopes[c]) / grids.step[c] * direction;
    }
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

  float gradient_scale_;
  bool slope_inside_;
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

REGISTER_KERNEL_BUILDER(Name("TfFpqFakeQuant").Device(::tensorflow::DEVICE_CPU), FakeQuantOp);
REGISTER_KERNEL_BUILDER(Name("TfFpqFakeQuantGradient").Device(::tensorflow::DEVICE_CPU),
                        FakeQuantGradientOp);

}  // namespace
}  // namespace tf_fpq
