// SPDX-License-Identifier: Apache-2.0
// The image from C3's latents, in float32: bilinear upsampling, pointwise layers, 3x3 layers. One thread, one
// row of the image at a time. Results of different machines differ in the last bits.
#pragma once

#include <cstddef>
#include <vector>

#include "_decoder.hpp"

namespace c3 {

constexpr int kMaxChannels = 128;

// Values of one grid, height * width.
struct Channel {
    const float* values;
    Size size;
};

// y = act(W x + b [+ x]); kernel 1, or 3 with the border repeated outwards (replicate).
struct FloatLayer {
    int outputs = 0;
    int inputs = 0;
    int kernel = 1;
    Activation activation = Activation::none;
    bool residual = false;      // needs outputs == inputs
    std::vector<float> weight;  // (outputs, inputs, kernel, kernel)
    std::vector<float> bias;    // (outputs)
};

// Upsamples each channel to height x width: sample y lies at (y + 1/2) h / height - 1/2 of the grid, within
// it (torch: interpolate, bilinear, align_corners=False). Then the layers, those of kernel 1 first. Writes
// (outputs of the last layer, height, width) to `image`.
void synthesise(const std::vector<Channel>& channels, const std::vector<FloatLayer>& layers, Size size,
                float* image);

// Outputs of the last layer; throws std::invalid_argument for layers that do not fit.
int check_layers(const std::vector<FloatLayer>& layers, std::size_t channels);

}  // namespace c3
