// SPDX-License-Identifier: Apache-2.0
// The image from C3's latents, in float32: upsampling, pointwise layers, 3x3 layers. One thread, one row of
// the image at a time, so that beside the image only some rows are held. What it computes is specified in
// network.py; results of different machines differ in the last bits. Every function checks its arguments and
// throws std::invalid_argument for those that do not fit.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "_decoder.hpp"

namespace c3 {

constexpr int kMaxChannels = 128;
constexpr int kMaxDoublings = 30;

// Values of one grid, height * width.
struct Channel {
    const float* values;
    Size size;
};

// y = act(W x + b [+ x] [+ S c]), c being the upsampled channels; kernel 1, or 3 with the border repeated
// outwards (replicate).
struct FloatLayer {
    int outputs = 0;
    int inputs = 0;
    int kernel = 1;
    Activation activation = Activation::none;
    bool residual = false;      // needs outputs == inputs
    std::vector<float> weight;  // (outputs, inputs, kernel, kernel)
    std::vector<float> bias;    // (outputs)
    std::vector<float> skip;    // S (outputs, channels), or nothing; kernel 1 only
};

// Taps p_-2 ... p_1 of an upsampling by two, for rows and for columns:
//   y_2i = sum_j p_j x_(i+j),   y_(2i+1) = sum_j p_j x_(i-j).
using Taps = std::array<float, 4>;

struct Synthesis {
    // Either empty: each channel, of any size, is interpolated: sample y lies at (y + 1/2) h / height - 1/2
    // of the grid, within it (torch: interpolate, bilinear, align_corners=False). Or learned: channel i has
    // ceil(height / 2^(first + i)) rows and goes to twice its size first + i times, the last time with
    // doublings[0]; borders are repeated, results cut to the size that the grid there would have.
    std::vector<Taps> doublings;
    int first = 0;
    std::vector<FloatLayer> layers;  // those of kernel 1 first
};

// Writes (outputs of the last layer, height, width) to `image`. `portable` keeps to plain C++.
void synthesise(const std::vector<Channel>& channels, const Synthesis& synthesis, Size size, bool portable,
                float* image);

// Whether this processor runs faster kernels than the portable ones.
bool has_fast_kernels();

// Channels of the image; throws for layers that do not fit.
int check_layers(const std::vector<FloatLayer>& layers, std::size_t channels);

}  // namespace c3
