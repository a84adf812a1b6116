// SPDX-License-Identifier: Apache-2.0
// A small net at many positions, forward and backward: the entropy net and the pointwise part of the
// synthesis. Layers, each with an activation but the last one, may add their inputs (`residual`); a skip adds
// a linear map of the net's inputs to its outputs. Values outside of +-limit are clamped before an
// activation.
//
// A skip is computed as further outputs of the first layer, so that the inputs, which are wider than
// anything else, are read once; the last layer adds to them.
#pragma once

#include <vector>

#include "_fit_bands.hpp"
#include "_fit_kernels.hpp"

namespace c3::fit {

struct NetShape {
    std::vector<int> widths;  // inputs, hidden layers, outputs
    std::vector<bool> residual;
    bool skip = false;
    Activation activation = Activation::none;
    float limit = 0.0f;
};

class Net {
   public:
    explicit Net(NetShape shape);

    int inputs() const { return shape_.widths.front(); }
    int outputs() const { return shape_.widths.back(); }
    int parameters() const { return parameters_; }

    // Weight and bias of each layer, then the skip.
    void take(const float* parameters);

    // What one thread needs for the values of kTile positions, and for the sums of its band.
    struct Work {
        std::vector<float> values, slopes, gradients, sums;
        std::vector<float*> value_rows, slope_rows, gradient_rows;
    };
    Work work(const Kernels& kernels) const;

    // The outputs at n positions; nothing is written for them where `out` is null, only hidden values.
    void forward(const Kernels& kernels, Work& work, Inputs x, int n, Outputs out, bool slopes) const;
    // After `forward` with slopes: adds to the work's sums; gives d_x, unless it is null.
    void backward(const Kernels& kernels, Work& work, Inputs x, Inputs d_out, int n, Outputs d_x) const;
    // The sums, as `take` has the parameters, added to `gradient`; they are zero afterwards.
    void collect(const Kernels& kernels, Work& work, double* gradient) const;

   private:
    struct Layer {
        int inputs, outputs;            // with the skip's
        std::vector<float> weight;      // (inputs, outputs)
        std::vector<float> transposed;  // (outputs, inputs)
        std::vector<float> bias;        // empty if the skip has brought it
        std::size_t sums;               // where its sums begin
    };

    NetShape shape_;
    int hidden_ = 0, parameters_ = 0;  // values of all hidden layers; all parameters
    bool wide_ = false;                // whether the first layer computes the skip
    std::size_t sums_ = 0;
    std::vector<Layer> layers_;
};

}  // namespace c3::fit
