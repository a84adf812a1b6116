// SPDX-License-Identifier: Apache-2.0
// The inner loops of the fused fit as a table of functions, one table for each set of instructions;
// _fit_loops.hpp has them. They work on rows of float32 and check nothing. `n` is the number of positions,
// a multiple of `block` where nothing else is said; whatever a row has beyond its end is read and written up
// to there.
// Sums over positions are kept in `lanes` parts each, so that they need no addition across a vector:
// value i of `sums` is the sum of sums[i * lanes] ... sums[i * lanes + lanes - 1].
#pragma once

#include <cstddef>

#include "_entropy.hpp"

namespace c3::fit {

constexpr int kMostLanes = 16;
constexpr int kMostBlock = 64;

using Inputs = const float* const*;
using Outputs = float* const*;

// A matrix of the nets and what SOAP (soap.py) knows of it.
struct SoapMatrix {
    int rows, columns;
    const int* places;                // of its elements among the parameters
    float* squares;                   // (rows, columns)
    float *left, *right;              // L (rows, rows), R (columns, columns)
    const float *left_basis, *right_basis;  // U, V
};

// mean += (gradient - mean) * first, square += (gradient^2 - square) * second,
// value -= rate * mean / (sqrt(square) + epsilon).
struct AdamRates {
    float first, second, rate, epsilon;
};

struct Kernels {
    const char* name;
    int lanes, block;

    // --- Layers -----------------------------------------------------------------------------------------
    // out[o] = bias[o] + sum_i weight[i * outputs + o] in[i]; without a bias, the sum is added to out.
    void (*dense)(Inputs in, int inputs, const float* weight, int outputs, const float* bias, Outputs out,
                  int n);
    // sums[o * inputs + i] += sum over positions of d[o] x[i].
    void (*weight_gradient)(Inputs d, int outputs, Inputs x, int inputs, int n, float* sums);
    // Activation of values within +-limit, in place; its derivative to `slopes`, unless that is null or the
    // activation is not gelu.
    void (*activate)(Activation activation, float limit, Outputs values, int count, int n, Outputs slopes);
    // d *= the derivative, from what `activate` made, and sums[k] += sum over positions of d[k].
    void (*through)(Activation activation, float limit, Inputs values, Inputs slopes, Outputs d, int count,
                    int n, float* sums);
    // sums[k] += sum over positions of d[k].
    void (*add_up)(Inputs d, int count, int n, float* sums);

    // --- Entropy ----------------------------------------------------------------------------------------
    // The sum of -log2 P(y) over the first `valid` positions (network.py, laplace_bits). With `y_slope`, also
    // the derivatives times `weight`, zero at other positions: to y, and to location and log2 of the scale,
    // which are overwritten by them.
    double (*laplace)(const float* y, float* location, float* log2_scale, int n, int valid, float weight,
                      float* y_slope);
    // to[x] += sum of from[k][x].
    void (*add_rows)(Inputs from, int count, float* to, int n);
    // soft_round(soft_round(value * gain) + noise) of relaxations.py, and its derivative. Any n.
    void (*soften)(const float* value, const float* gain, const float* noise, float temperature,
                   std::size_t n, float* out, float* slope);

    // A step of adam.py. Any n.
    void (*adam)(float* value, const float* gradient, float* mean, float* square, AdamRates rates,
                 std::size_t n);

    // A step of soap.py for one matrix, without moving its bases; `mean` is up to date. `room` has space for
    // four matrices of as many elements as the largest side squared.
    void (*soap)(float* value, const float* gradient, const float* mean, const SoapMatrix& matrix,
                 AdamRates rates, float* room);

    // --- Upsampling by two (network.py, double_size) ------------------------------------------------------
    // Two rows from x[0] ... x[4], the rows -2 ... 2 around row 0; any n.
    void (*double_rows)(Inputs x, const float* taps, int n, float* even, float* odd);
    // n columns become 2 n; two more at either end are read.
    void (*double_columns)(const float* x, const float* taps, int n, float* out);
    // The transposes. Of the rows: d[k] += ..., and taps_sums[j] += ... .
    void (*double_rows_back)(const float* even, const float* odd, Inputs x, const float* taps, int n,
                             Outputs d, float* sums);
    // Of the columns: d_out (2 n, zeros from `columns` on) to even and odd parts (n each, with zeros around),
    // and then to d, which has two columns more at either end.
    void (*double_columns_back)(const float* d_out, const float* x, const float* taps, int n, int columns,
                                float* even, float* odd, float* d, float* sums);

    // --- 3x3 layers of three channels -------------------------------------------------------------------
    // out[o] = in[o] + bias[o] + sum weight[o][c][dy][dx] in[c] at +-1; rows are `stride` floats apart.
    void (*around)(Inputs in, std::ptrdiff_t stride, const float* weight, const float* bias, Outputs out,
                   int n);
    // sums[(o * 3 + c) * 9 + k] += ..., and sums[81 + o] += sum of d[o].
    void (*around_gradient)(Inputs d, Inputs in, std::ptrdiff_t stride, int n, float* sums);
    // Sum of (image - x)^2 over `valid` positions; with d, d = (image - x) * scale, zero at other positions.
    // `clamped`: of the image within [0, 1].
    double (*difference)(const float* image, const float* x, int n, int valid, bool clamped, float scale,
                         float* d);
};

// Null where this processor or this build does not have them.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace c3::fit
