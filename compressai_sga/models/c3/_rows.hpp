// SPDX-License-Identifier: Apache-2.0
// The inner loops of _synthesis.cpp, on rows of pixels; nothing is checked here. Loops over kBlock pixels,
// a constant count, are what compilers turn into vectors. All of it is compiled twice on x86-64, once for
// processors with AVX2 and FMA; `choose_kernels` asks the processor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "_synthesis.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define C3_X86 1
#endif

#if defined(__GNUC__) || defined(__clang__)
#define C3_INLINE inline __attribute__((always_inline))  // into either of the two
#else
#define C3_INLINE inline
#endif

namespace c3 {

// Channels whose pixels lie side by side; `stride`: floats from channel to channel.
struct Plane {
    const float* values;
    std::size_t stride;
};

namespace loops {

// --- Upsampling -----------------------------------------------------------------------------------------

// The row at `part` of the way from a to b.
C3_INLINE void mix(const float* a, const float* b, float part, int n, float* out) {
    for (int i = 0; i < n; ++i) out[i] = a[i] + part * (b[i] - a[i]);
}

// A row between the second and the third of four.
C3_INLINE void between(const float* const* x, const Taps& p, int n, float* out) {
    const float *a = x[0], *b = x[1], *c = x[2], *d = x[3];
    const float p0 = p[0], p1 = p[1], p2 = p[2], p3 = p[3];
    for (int i = 0; i < n; ++i) out[i] = p0 * a[i] + p1 * b[i] + p2 * c[i] + p3 * d[i];
}

// n columns become 2 n, a multiple of kBlock each; two more at either end are read.
C3_INLINE void widen(const float* x, const Taps& p, int n, float* out) {
    const float p0 = p[0], p1 = p[1], p2 = p[2], p3 = p[3];
    for (int start = 0; start < n; start += kBlock, x += kBlock, out += 2 * kBlock) {
        float even[kBlock], odd[kBlock];
        for (int i = 0; i < kBlock; ++i)
            even[i] = p0 * x[i - 2] + p1 * x[i - 1] + p2 * x[i] + p3 * x[i + 1];
        for (int i = 0; i < kBlock; ++i)
            odd[i] = p0 * x[i + 2] + p1 * x[i + 1] + p2 * x[i] + p3 * x[i - 1];
        for (int i = 0; i < kBlock; ++i) {
            out[2 * i] = even[i];
            out[2 * i + 1] = odd[i];
        }
    }
}

// --- Layers ---------------------------------------------------------------------------------------------

// GELU as max(x, 0) - u Q(u), u = |x|, Q(u) = erfc(u / sqrt 2) / 2 as the 8th power of a polynomial on
// [0, 5.5], constant beyond, where u Q is 1e-7: error below 5e-7 and the rounding, no division. The bound on
// u has a loop of its own: within the other, compilers make a branch of it, and no vectors.
C3_INLINE void gelu(float* x) {
    float u[kBlock];
    for (int i = 0; i < kBlock; ++i) u[i] = std::min(5.5f, std::fabs(x[i]));  // of NaN: 5.5
    for (int i = 0; i < kBlock; ++i) {
        const float v = u[i], last = -3.9933246e-5f + v * (-3.5691810e-5f + v * 3.2382818e-6f);
        const float middle = -3.1866461e-2f + v * (-7.9255342e-4f + v * (1.6303990e-3f + v * last));
        float power = 0.91700518f + v * (-9.1472082e-2f + v * middle);
        power *= power;
        power *= power;
        power *= power;
        u[i] = v * power;
    }
    for (int i = 0; i < kBlock; ++i) x[i] = std::max(x[i], 0.0f) - u[i];
}

C3_INLINE void activate(Activation activation, float* x) {
    if (activation == Activation::relu)
        for (int i = 0; i < kBlock; ++i) x[i] = std::max(x[i], 0.0f);
    if (activation == Activation::gelu) gelu(x);
}

// One input's share of kOutputs sums at kBlock pixels; weights of the next output are `step` floats further.
template <int kOutputs>
C3_INLINE void add_input(const float* weight, std::size_t step, const float* x, float (*sum)[kBlock]) {
    for (int k = 0; k < kOutputs; ++k) {
        const float w = weight[k * step];
        for (int i = 0; i < kBlock; ++i) sum[k][i] += w * x[i];
    }
}

C3_INLINE void add_row(const float* x, float* sum) {
    for (int i = 0; i < kBlock; ++i) sum[i] += x[i];
}

template <int kOutputs>
C3_INLINE void start_sums(const FloatLayer& layer, std::size_t o, float (*sum)[kBlock]) {
    for (int k = 0; k < kOutputs; ++k)
        for (int i = 0; i < kBlock; ++i) sum[k][i] = layer.bias[o + k];
}

// Outputs o ... o + kOutputs - 1 of a pointwise layer; `count` upsampled channels.
template <int kOutputs>
C3_INLINE void pointwise_outputs(const FloatLayer& layer, std::size_t o, Plane in, Plane channels,
                                 std::size_t count, float* out, std::size_t stride) {
    const std::size_t inputs = static_cast<std::size_t>(layer.inputs);
    float sum[kOutputs][kBlock];
    start_sums<kOutputs>(layer, o, sum);
    const float* weight = layer.weight.data() + o * inputs;
    for (std::size_t j = 0; j < inputs; ++j)
        add_input<kOutputs>(weight + j, inputs, in.values + in.stride * j, sum);
    if (!layer.skip.empty()) {
        weight = layer.skip.data() + o * count;
        for (std::size_t j = 0; j < count; ++j)
            add_input<kOutputs>(weight + j, count, channels.values + channels.stride * j, sum);
    }
    for (std::size_t k = 0; k < kOutputs; ++k) {
        if (layer.residual) add_row(in.values + in.stride * (o + k), sum[k]);
        activate(layer.activation, sum[k]);
        std::memcpy(out + stride * (o + k), sum[k], sizeof sum[k]);
    }
}

// A pointwise layer on n pixels, a multiple of kBlock.
C3_INLINE void pointwise(const FloatLayer& layer, Plane in, Plane channels, std::size_t count, int n,
                         float* out, std::size_t stride) {
    const std::size_t outputs = static_cast<std::size_t>(layer.outputs);
    for (int start = 0; start < n; start += kBlock, in.values += kBlock, channels.values += kBlock) {
        std::size_t o = 0;
        for (; o + 3 <= outputs; o += 3)
            pointwise_outputs<3>(layer, o, in, channels, count, out + start, stride);
        for (; o < outputs; ++o) pointwise_outputs<1>(layer, o, in, channels, count, out + start, stride);
    }
}

template <int kOutputs>
C3_INLINE void around_outputs(const FloatLayer& layer, std::size_t o, const float* const* rows, int start,
                              float* out, std::size_t stride) {
    const std::size_t inputs = static_cast<std::size_t>(layer.inputs);
    float sum[kOutputs][kBlock];
    start_sums<kOutputs>(layer, o, sum);
    const float* weight = layer.weight.data() + o * inputs * 9;
    for (std::size_t j = 0; j < 3 * inputs; ++j, weight += 3)
        for (int dx = 0; dx < 3; ++dx)
            add_input<kOutputs>(weight + dx, 9 * inputs, rows[j] + start + dx - 1, sum);
    for (std::size_t k = 0; k < kOutputs; ++k) {
        if (layer.residual) add_row(rows[3 * (o + k) + 1] + start, sum[k]);
        activate(layer.activation, sum[k]);
        std::memcpy(out + stride * (o + k) + start, sum[k], sizeof sum[k]);
    }
}

// A 3x3 layer on n pixels, a multiple of kBlock: rows[3 * channel + dy] points to pixel 0, with one more
// pixel at either end.
C3_INLINE void around(const FloatLayer& layer, const float* const* rows, int n, float* out,
                      std::size_t stride) {
    const std::size_t outputs = static_cast<std::size_t>(layer.outputs);
    for (int start = 0; start < n; start += kBlock) {
        std::size_t o = 0;
        for (; o + 3 <= outputs; o += 3) around_outputs<3>(layer, o, rows, start, out, stride);
        for (; o < outputs; ++o) around_outputs<1>(layer, o, rows, start, out, stride);
    }
}

}  // namespace loops

// --- Either set -----------------------------------------------------------------------------------------

struct Kernels {
    void (*mix)(const float* a, const float* b, float part, int n, float* out);
    void (*between)(const float* const* x, const Taps& p, int n, float* out);
    void (*widen)(const float* x, const Taps& p, int n, float* out);
    void (*pointwise)(const FloatLayer& layer, Plane in, Plane channels, std::size_t count, int n, float* out,
                      std::size_t stride);
    void (*around)(const FloatLayer& layer, const float* const* rows, int n, float* out, std::size_t stride);
};

#define C3_KERNELS(Set, TARGET)                                                                         \
    struct Set {                                                                                        \
        TARGET static void mix(const float* a, const float* b, float part, int n, float* out) {         \
            loops::mix(a, b, part, n, out);                                                             \
        }                                                                                               \
        TARGET static void between(const float* const* x, const Taps& p, int n, float* out) {           \
            loops::between(x, p, n, out);                                                               \
        }                                                                                               \
        TARGET static void widen(const float* x, const Taps& p, int n, float* out) {                    \
            loops::widen(x, p, n, out);                                                                 \
        }                                                                                               \
        TARGET static void pointwise(const FloatLayer& layer, Plane in, Plane channels,                 \
                                     std::size_t count, int n, float* out, std::size_t stride) {        \
            loops::pointwise(layer, in, channels, count, n, out, stride);                               \
        }                                                                                               \
        TARGET static void around(const FloatLayer& layer, const float* const* rows, int n, float* out, \
                                  std::size_t stride) {                                                 \
            loops::around(layer, rows, n, out, stride);                                                 \
        }                                                                                               \
        static Kernels kernels() { return {mix, between, widen, pointwise, around}; }                   \
    };

C3_KERNELS(Portable, )
#ifdef C3_X86
C3_KERNELS(Avx2, __attribute__((target("avx2,fma"))))
#endif
#undef C3_KERNELS

// `portable`: the set without special instructions.
inline Kernels choose_kernels(bool portable) {
#ifdef C3_X86
    if (!portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return Avx2::kernels();
#endif
    (void)portable;
    return Portable::kernels();
}

}  // namespace c3
