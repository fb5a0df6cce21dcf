// The distance of standardized features and its gradient, each in one pass over memory.
//
// The definition is `standardized_distance` of tf_fpq/methods/distillation.py. Per channel, with
// means `m`, variances `v` and the covariance `cov` of student `s` and teacher `t`:
//
//     r        = cov / sqrt((v_s + epsilon) * (v_t + epsilon))
//     distance = mean over channels of v_s / (v_s + epsilon) + v_t / (v_t + epsilon) - 2 r
//     d / d s  = 2 / n * (r * (s - m_s) / (v_s + epsilon)
//                         - (t - m_t) / sqrt((v_s + epsilon) * (v_t + epsilon)))
//
// with `n` elements in all. The gradient, times that of the loss, is added to another one. The sums
// are of differences to the features' first place, so that they do not cancel. Those of a block are
// in float, those of all blocks in double and in their order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tf_fpq/native/operation.h"

namespace tf_fpq {
namespace {

constexpr int kSums = 5;          // of s, t, s * s, t * t and s * t
constexpr int kCoefficients = 4;  // of s - m_s and t - m_t, m_s and m_t

FOR_EACH_PROCESSOR
void AddRows(const float* s, const float* t, int64_t rows, int64_t channels, const float* s0,
             const float* t0, float* sums) {
  float *of_s = sums, *of_t = sums + channels, *of_ss = sums + 2 * channels,
        *of_tt = sums + 3 * channels, *of_st = sums + 4 * channels;
  for (int64_t row = 0; row < rows; ++row, s += channels, t += channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float a = s[c] - s0[c], b = t[c] - t0[c];
      of_s[c] += a;
      of_t[c] += b;
      of_ss[c] += a * a;
      of_tt[c] += b * b;
      of_st[c] += a * b;
    }
  }
}

FOR_EACH_PROCESSOR
void AddGradient(const float* added, const float* s, const float* t, int64_t rows, int64_t channels,
                 const float* coefficients, float factor, float* out) {
  const float *alpha = coefficients, *beta = coefficients + channels,
              *mean_s = coefficients + 2 * channels, *mean_t = coefficients + 3 * channels;
  for (int64_t row = 0; row < rows; ++row) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float gradient = alpha[c] * (s[c] - mean_s[c]) + beta[c] * (t[c] - mean_t[c]);
      out[c] = added[c] + factor * gradient;
    }
    added += channels, s += channels, t += channels, out += channels;
  }
}

// Features as `rows` places of `channels` numbers each.
struct Places {
  int64_t rows, channels;
  int64_t block() const { return RowsOfBlock(channels); }
};

::tensorflow::Status PlacesOf(const Tensor& student, const Tensor& teacher, Places* places) {
  if (student.shape() != teacher.shape() || student.dims() == 0 || student.NumElements() == 0) {
    return InvalidArgument("student and teacher must have one shape, and elements. Received: ",
                           student.shape().DebugString(), " and ", teacher.shape().DebugString());
  }
  const int64_t channels = student.dim_size(student.dims() - 1);
  *places = {student.NumElements() / channels, channels};
  return ::tensorflow::OkStatus();
}

class StandardizedDistanceOp : public OpKernel {
 public:
  explicit StandardizedDistanceOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &student = context->input(0), &teacher = context->input(1);
    Places places;
    OP_REQUIRES_OK(context, PlacesOf(student, teacher, &places));
    Tensor *distance = nullptr, *coefficients = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &distance));
    OP_REQUIRES_OK(context, context->allocate_output(
                                1, TensorShape({kCoefficients, places.channels}), &coefficients));
    const float *s = student.flat<float>().data(), *t = teacher.flat<float>().data();
    const std::vector<double> sums = Sums(context, s, t, places);
    distance->scalar<float>()() = Finish(sums, s, t, places, coefficients->flat<float>().data());
  }

 private:
  std::vector<double> Sums(OpKernelContext* context, const float* s, const float* t,
                           const Places& places) const {
    const int64_t numbers = kSums * places.channels;
    std::vector<float> of_blocks(NumBlocks(places.rows, places.block()) * numbers, 0.0f);
    ForBlocks(
        context, places.rows,
        [&](int64_t first, int64_t count, int64_t block) {
          const int64_t start = first * places.channels;
          AddRows(s + start, t + start, count, places.channels, s, t,
                  of_blocks.data() + block * numbers);
        },
        places.block());
    std::vector<double> sums(numbers, 0.0);
    for (size_t i = 0; i < of_blocks.size(); ++i) sums[i % numbers] += of_blocks[i];
    return sums;
  }

  float Finish(const std::vector<double>& sums, const float* s0, const float* t0,
               const Places& places, float* coefficients) const {
    const int64_t channels = places.channels;
    const double rows = places.rows, epsilon = epsilon_, n = rows * channels;
    double total = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      const double mean_s = sums[c] / rows, mean_t = sums[channels + c] / rows;
      const double v_s = std::max(0.0, sums[2 * channels + c] / rows - mean_s * mean_s);
      const double v_t = std::max(0.0, sums[3 * channels + c] / rows - mean_t * mean_t);
      const double covariance = sums[4 * channels + c] / rows - mean_s * mean_t;
      const double scale = std::sqrt((v_s + epsilon) * (v_t + epsilon));
      const double r = covariance / scale;
      total += v_s / (v_s + epsilon) + v_t / (v_t + epsilon) - 2.0 * r;
      coefficients[c] = static_cast<float>(2.0 / n * r / (v_s + epsilon));
      coefficients[channels + c] = static_cast<float>(-2.0 / n / scale);
      coefficients[2 * channels + c] = static_cast<float>(s0[c] + mean_s);
      coefficients[3 * channels + c] = static_cast<float>(t0[c] + mean_t);
    }
    const double distance = total / channels;
    // Multiplied out, that of equal features may round to a little below 0; a NaN stays.
    return static_cast<float>(distance < 0.0 ? 0.0 : distance);
  }

  float epsilon_;
};

class AddDistanceGradientOp : public OpKernel {
 public:
  explicit AddDistanceGradientOp(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &added = context->input(0), &coefficients = context->input(4);
    const Tensor &student = context->input(2), &teacher = context->input(3);
    Places places;
    OP_REQUIRES_OK(context, PlacesOf(student, teacher, &places));
    OP_REQUIRES(
        context,
        added.shape() == student.shape() &&
            coefficients.NumElements() == kCoefficients * places.channels,
        InvalidArgument("added and coefficients must be those of the features. Received: ",
                        added.shape().DebugString(), ", ", coefficients.shape().DebugString(),
                        " and ", student.shape().DebugString()));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, student.shape(), &output));
    const float factor = context->input(1).scalar<float>()();
    const float *before = added.flat<float>().data(), *s = student.flat<float>().data(),
                *t = teacher.flat<float>().data();
    const float* of_channels = coefficients.flat<float>().data();
    float* out = output->flat<float>().data();
    ForBlocks(
        context, places.rows,
        [&](int64_t first, int64_t count, int64_t) {
          const int64_t start = first * places.channels;
          AddGradient(before + start, s + start, t + start, count, places.channels, of_channels,
                      factor, out + start);
        },
        places.block());
  }
};

REGISTER_OP("TfFpqStandardizedDistance")
    .Input("student: float")
    .Input("teacher: float")
    .Attr("epsilon: float")
    .Output("distance: float")
    .Output("coefficients: float")
    .SetShapeFn([](InferenceContext* context) {
      const auto channels = context->Dim(context->input(0), -1);
      context->set_output(0, context->Scalar());
      context->set_output(1, context->Matrix(kCoefficients, channels));
      return ::tensorflow::OkStatus();
    });

REGISTER_OP("TfFpqAddDistanceGradient")
    .Input("added: float")
    .Input("of_loss: float")
    .Input("student: float")
    .Input("teacher: float")
    .Input("coefficients: float")
    .Output("gradient: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(2));
      return ::tensorflow::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("TfFpqStandardizedDistance").Device(::tensorflow::DEVICE_CPU),
                        StandardizedDistanceOp);
REGISTER_KERNEL_BUILDER(Name("TfFpqAddDistanceGradient").Device(::tensorflow::DEVICE_CPU),
                        AddDistanceGradientOp);

}  // namespace
}  // namespace tf_fpq
