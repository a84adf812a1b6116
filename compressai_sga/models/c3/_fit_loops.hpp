// SPDX-License-Identifier: Apache-2.0
// The loops of _fit_kernels.hpp on vectors of C3_FIT_BYTES bytes, which the including file defines, with the
// target that it has set, in the namespace C3_FIT_SET. The compilers' vector types are plain arithmetic for
// any processor; for those that have longer vectors the same text is compiled again. Nothing of the standard
// library is used: a linker may take its functions from a file compiled for another processor.
//
// A layer is a product of a small matrix with rows of positions. `dense` holds up to kOutputs x kVectors
// sums in registers while it goes through the inputs, `weight_gradient` a block of the matrix while it goes
// through the positions. That is where almost all of the time goes.

namespace c3::fit {
namespace C3_FIT_SET {

#define C3_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define C3_UNROLL _Pragma("unroll")
#else
#define C3_UNROLL _Pragma("GCC unroll 32")
#endif

typedef float Vec __attribute__((vector_size(C3_FIT_BYTES)));
typedef float Unaligned __attribute__((vector_size(C3_FIT_BYTES), aligned(4), may_alias));
typedef int Ints __attribute__((vector_size(C3_FIT_BYTES)));

constexpr int kLanes = C3_FIT_BYTES / 4;
constexpr int kVectors = C3_FIT_BYTES == 64 ? 4 : 2;  // in a block of `dense`
constexpr int kOutputs = 6;                           // with them 24 or 12 sums of 32 or 16 registers
constexpr int kBlock = kVectors * kLanes;
constexpr int kGradientOutputs = C3_FIT_BYTES == 64 ? 4 : 3;
constexpr int kGradientInputs = C3_FIT_BYTES == 64 ? 6 : 4;

C3_INLINE Vec load(const float* p) { return (Vec) * (const Unaligned*)p; }
C3_INLINE void store(float* p, Vec v) { *(Unaligned*)p = (Unaligned)v; }
C3_INLINE Vec all(float x) { return x - Vec{}; }
C3_INLINE Vec either(Ints mask, Vec a, Vec b) { return mask ? a : b; }
#ifdef C3_FIT_INTRINSIC  // what compilers do not find themselves
C3_INLINE Vec most(Vec a, Vec b) { return C3_FIT_INTRINSIC(max_ps)(a, b); }
C3_INLINE Vec least(Vec a, Vec b) { return C3_FIT_INTRINSIC(min_ps)(a, b); }
C3_INLINE Vec root(Vec x) { return C3_FIT_INTRINSIC(sqrt_ps)(x); }
#else
C3_INLINE Vec most(Vec a, Vec b) { return a > b ? a : b; }
C3_INLINE Vec least(Vec a, Vec b) { return a < b ? a : b; }
C3_INLINE Vec root(Vec x) {
    for (int k = 0; k < kLanes; ++k) x[k] = __builtin_sqrtf(x[k]);
    return x;
}
#endif
C3_INLINE Vec within(Vec x, float low, float high) { return least(most(x, all(low)), all(high)); }
C3_INLINE Vec size_of(Vec x) { return (Vec)((Ints)x & 0x7fffffff); }
C3_INLINE Vec nearest(Vec x) { return (x + 12582912.0f) - 12582912.0f; }  // to even, below 2^22
C3_INLINE void add_to(float* sums, Vec v) { store(sums, load(sums) + v); }

// 2^n for whole n.
C3_INLINE Vec power(Vec n) { return (Vec)((__builtin_convertvector(n, Ints) + 127) << 23); }

// exp and log as in Cephes (Moshier), relative error about 1e-7.
C3_INLINE Vec exp_of(Vec x) {
    x = within(x, -87.0f, 88.0f);
    const Vec n = nearest(x * 1.44269504f);
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * (r * r) + (r + 1.0f)) * power(n);
}

C3_INLINE Vec exp2_of(Vec x) {
    const Vec n = nearest(x), f = x - n;
    Vec p = f * 1.5353362e-4f + 1.3398874e-3f;
    p = p * f + 9.6184373e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314720e-1f;
    return (p * f + 1.0f) * power(n);
}

C3_INLINE Vec log_of(Vec x) {
    const Ints bits = (Ints)x;
    const Vec mantissa = (Vec)((bits & 0x007fffff) | 0x3f000000);
    const Ints low = mantissa < 0.707106781f;
    const Vec n = __builtin_convertvector((bits >> 23) - 126, Vec) - either(low, all(1.0f), all(0.0f));
    const Vec m = mantissa + either(low, mantissa, all(0.0f)) - 1.0f;
    Vec p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const Vec z = m * m;
    return m + (p * m * z - 0.5f * z - n * 2.12194440e-4f) + n * 0.693359375f;
}

// With u = min(|z|, 5.5) and Q(u) = erfc(u / sqrt 2) / 2, GELU is max(z, 0) - u Q and its derivative D for
// z < 0, else 1 - D, where D = d(u Q) / du. Q is the 8th power of a polynomial p, so D = p^7 (p + 8 u p'), another
// polynomial in brackets: no exponential and no division. Fitted to u Q and D together, whose errors are below
// 5e-9 and 2e-8 before rounding.
template <bool kSlope>
C3_INLINE Vec gelu(Vec z, Vec* slope) {
    const Vec u = least(size_of(z), all(5.5f));
    Vec p = u * -2.900638279e-7f + 7.394690829e-6f;
    p = p * u - 5.975651847e-5f;
    p = p * u + 3.274678856e-5f;
    p = p * u + 1.507061784e-3f;
    p = p * u - 6.746236804e-4f;
    p = p * u - 3.192665707e-2f;
    p = p * u - 9.145777137e-2f;
    p = p * u + 9.170040387e-1f;
    const Vec p2 = p * p, p4 = p2 * p2;
    if (kSlope) {
        Vec q = u * -1.885414882e-5f + 4.214973772e-4f;
        q = q * u - 2.928069405e-3f;
        q = q * u + 1.342618331e-3f;
        q = q * u + 4.973303886e-2f;
        q = q * u - 1.686559201e-2f;
        q = q * u - 5.427531701e-1f;
        q = q * u - 8.231199423e-1f;
        q = q * u + 9.170040387e-1f;
        const Vec below = (p4 * p2) * (p * q);
        *slope = either(z < 0.0f, below, 1.0f - below);
    }
    return most(z, all(0.0f)) - u * (p4 * p4);
}

// --- Layers ---------------------------------------------------------------------------------------------

template <int kCount>
C3_INLINE void dense_block(Inputs in, int inputs, const float* weight, int step, const float* bias,
                           Outputs out, int n) {
    for (int p = 0; p < n; p += kBlock) {
        Vec sum[kCount][kVectors];
        C3_UNROLL
        for (int o = 0; o < kCount; ++o)
            C3_UNROLL
            for (int v = 0; v < kVectors; ++v)
                sum[o][v] = bias ? all(bias[o]) : load(out[o] + p + v * kLanes);
        for (int i = 0; i < inputs; ++i) {
            Vec x[kVectors];
            C3_UNROLL
            for (int v = 0; v < kVectors; ++v) x[v] = load(in[i] + p + v * kLanes);
            C3_UNROLL
            for (int o = 0; o < kCount; ++o) {
                const Vec w = all(weight[i * step + o]);
                C3_UNROLL
                for (int v = 0; v < kVectors; ++v) sum[o][v] += w * x[v];
            }
        }
        C3_UNROLL
        for (int o = 0; o < kCount; ++o)
            C3_UNROLL
            for (int v = 0; v < kVectors; ++v) store(out[o] + p + v * kLanes, sum[o][v]);
    }
}

static void dense(Inputs in, int inputs, const float* weight, int outputs, const float* bias, Outputs out,
                  int n) {
    const int blocks = (outputs + kOutputs - 1) / kOutputs;
    for (int b = 0; b < blocks; ++b) {
        const int first = outputs * b / blocks, count = outputs * (b + 1) / blocks - first;
        const float *w = weight + first, *start = bias ? bias + first : nullptr;
        switch (count) {
            case 6: dense_block<6>(in, inputs, w, outputs, start, out + first, n); break;
            case 5: dense_block<5>(in, inputs, w, outputs, start, out + first, n); break;
            case 4: dense_block<4>(in, inputs, w, outputs, start, out + first, n); break;
            case 3: dense_block<3>(in, inputs, w, outputs, start, out + first, n); break;
            case 2: dense_block<2>(in, inputs, w, outputs, start, out + first, n); break;
            default: dense_block<1>(in, inputs, w, outputs, start, out + first, n); break;
        }
    }
}

template <int kRows, int kColumns>
C3_INLINE void gradient_block(Inputs d, Inputs x, int inputs, int n, float* sums) {
    Vec sum[kRows][kColumns];
    C3_UNROLL
    for (int o = 0; o < kRows; ++o)
        C3_UNROLL
        for (int i = 0; i < kColumns; ++i) sum[o][i] = load(sums + (o * inputs + i) * kLanes);
    for (int p = 0; p < n; p += kLanes) {
        Vec g[kRows];
        C3_UNROLL
        for (int o = 0; o < kRows; ++o) g[o] = load(d[o] + p);
        C3_UNROLL
        for (int i = 0; i < kColumns; ++i) {
            const Vec v = load(x[i] + p);
            C3_UNROLL
            for (int o = 0; o < kRows; ++o) sum[o][i] += g[o] * v;
        }
    }
    C3_UNROLL
    for (int o = 0; o < kRows; ++o)
        C3_UNROLL
        for (int i = 0; i < kColumns; ++i) store(sums + (o * inputs + i) * kLanes, sum[o][i]);
}

template <int kRows>
C3_INLINE void gradient_rows(Inputs d, Inputs x, int inputs, int n, float* sums) {
    const int blocks = (inputs + kGradientInputs - 1) / kGradientInputs;
    for (int b = 0; b < blocks; ++b) {
        const int first = inputs * b / blocks, count = inputs * (b + 1) / blocks - first;
        float* to = sums + first * kLanes;
        switch (count) {
            case 6: gradient_block<kRows, kGradientInputs>(d, x + first, inputs, n, to); break;
            case 5: gradient_block<kRows, kGradientInputs - 1>(d, x + first, inputs, n, to); break;
            case 4: gradient_block<kRows, 4>(d, x + first, inputs, n, to); break;
            case 3: gradient_block<kRows, 3>(d, x + first, inputs, n, to); break;
            case 2: gradient_block<kRows, 2>(d, x + first, inputs, n, to); break;
            default: gradient_block<kRows, 1>(d, x + first, inputs, n, to); break;
        }
    }
}

static void weight_gradient(Inputs d, int outputs, Inputs x, int inputs, int n, float* sums) {
    const int blocks = (outputs + kGradientOutputs - 1) / kGradientOutputs;
    for (int b = 0; b < blocks; ++b) {
        const int first = outputs * b / blocks, count = outputs * (b + 1) / blocks - first;
        float* to = sums + first * inputs * kLanes;
        switch (count) {
            case 4: gradient_rows<kGradientOutputs>(d + first, x, inputs, n, to); break;
            case 3: gradient_rows<3>(d + first, x, inputs, n, to); break;
            case 2: gradient_rows<2>(d + first, x, inputs, n, to); break;
            default: gradient_rows<1>(d + first, x, inputs, n, to); break;
        }
    }
}

template <bool kLimited>
C3_INLINE void gelu_row(float limit, float* row, float* slopes, int n) {
    if (!slopes) {
        for (int p = 0; p < n; p += kLanes) {
            const Vec z = load(row + p);
            store(row + p, gelu<false>(kLimited ? within(z, -limit, limit) : z, nullptr));
        }
        return;
    }
    for (int p = 0; p < n; p += kLanes) {
        Vec z = load(row + p), slope;
        if (kLimited) z = within(z, -limit, limit);
        store(row + p, gelu<true>(z, &slope));
        if (kLimited) slope = either(size_of(z) < limit, slope, all(0.0f));
        store(slopes + p, slope);
    }
}

static void activate(Activation activation, float limit, Outputs values, int count, int n, Outputs slopes) {
    const float low = activation == Activation::relu ? 0.0f : -limit;
    for (int k = 0; k < count; ++k) {
        float *row = values[k], *slope = slopes ? slopes[k] : nullptr;
        if (activation != Activation::gelu)
            for (int p = 0; p < n; p += kLanes) store(row + p, within(load(row + p), low, limit));
        else if (limit < 1e30f)
            gelu_row<true>(limit, row, slope, n);
        else
            gelu_row<false>(limit, row, slope, n);
    }
}

static void through(Activation activation, float limit, Inputs values, Inputs slopes, Outputs d, int count,
                    int n, float* sums) {
    const Vec high = all(limit), low = all(activation == Activation::relu ? 0.0f : -limit);
    for (int k = 0; k < count; ++k) {
        Vec sum = load(sums + k * kLanes);
        if (activation == Activation::gelu) {
            for (int p = 0; p < n; p += kLanes) {
                const Vec g = load(d[k] + p) * load(slopes[k] + p);
                store(d[k] + p, g);
                sum += g;
            }
        } else {
            for (int p = 0; p < n; p += kLanes) {
                const Vec v = load(values[k] + p);
                const Vec g = either((v > low) & (v < high), load(d[k] + p), all(0.0f));
                store(d[k] + p, g);
                sum += g;
            }
        }
        store(sums + k * kLanes, sum);
    }
}

static void add_up(Inputs d, int count, int n, float* sums) {
    for (int k = 0; k < count; ++k) {
        Vec sum = load(sums + k * kLanes);
        for (int p = 0; p < n; p += kLanes) sum += load(d[k] + p);
        store(sums + k * kLanes, sum);
    }
}

// --- Entropy --------------------------------------------------------------------------------------------

// 1 in the first `count` lanes, 0 in the others.
C3_INLINE Vec first_lanes(int count) {
    Vec v = {};
    for (int k = 0; k < kLanes; ++k) v[k] = k < count ? 1.0f : 0.0f;
    return v;
}

C3_INLINE double total(Vec v) {
    double sum = 0.0;
    for (int k = 0; k < kLanes; ++k) sum += v[k];
    return sum;
}

// With a = 1 / scale, s = |y - location|, i = min(s, 1/2), e = exp((i - 1/2) a), f = exp(-(i + 1/2) a):
//   u = 1 - (e + f) / 2,   log P = log u - (s - i) a,
//   d log P / ds = -a beyond 1/2, else -a (e - f) / (2 u),
//   d log P / da = -((i - 1/2) e - (i + 1/2) f) / (2 u) - (s - i),   da / d log2_scale = -a log 2.
template <bool kSlopes>
C3_INLINE double laplace_row(const float* y, float* location, float* log2_scale, int n, int valid,
                             float weight, float* y_slope) {
    constexpr float kLow = -kScaleZero / 8.0f, kHigh = (kScales - 1 - kScaleZero) / 8.0f;
    static_assert(kScaleBits == 3, "eighths of an octave");
    constexpr float kLog2 = 0.693147181f, kBits = 1.44269504f;
    Vec sum = {};
    for (int p = 0; p < n && p < valid; p += kLanes) {
        const Vec rate = exp2_of(-within(load(log2_scale + p), kLow, kHigh));
        const Vec d = load(y + p) - load(location + p), s = size_of(d);
        const Vec beyond = most(s - 0.5f, all(0.0f)), inner = s - beyond;
        const Vec e = exp_of((inner - 0.5f) * rate), f = exp_of((inner + 0.5f) * -rate);
        const Vec x = -0.5f * (e + f), u = 1.0f + x, inverse = 1.0f / u;
        // log1p(x) = log(u), and what u has lost of x.
        Vec log_p = log_of(u) + (x - (u - 1.0f)) * inverse - beyond * rate;
        const bool whole = p + kLanes <= valid;
        const Vec mask = whole ? all(1.0f) : first_lanes(valid - p);
        if (!whole) log_p *= mask;
        sum += log_p;
        if (kSlopes) {
            const Vec half = -0.5f * inverse;
            const Vec by_s = either(s > 0.5f, -rate, half * rate * (e - f));
            const Vec by_rate = half * ((inner - 0.5f) * e - (inner + 0.5f) * f) - beyond;
            Vec by_y = either(d < 0.0f, -by_s, by_s) * (-kBits * weight);
            Vec by_scale = by_rate * rate * (kLog2 * kBits * weight);
            if (!whole) by_y *= mask, by_scale *= mask;
            store(y_slope + p, by_y);
            store(location + p, -by_y);
            store(log2_scale + p, by_scale);
        }
    }
    if (kSlopes)
        for (int p = (valid + kLanes - 1) / kLanes * kLanes; p < n; p += kLanes) {
            store(y_slope + p, all(0.0f));
            store(location + p, all(0.0f));
            store(log2_scale + p, all(0.0f));
        }
    return total(sum) * -1.4426950408889634;
}

static double laplace(const float* y, float* location, float* log2_scale, int n, int valid, float weight,
                      float* y_slope) {
    return y_slope ? laplace_row<true>(y, location, log2_scale, n, valid, weight, y_slope)
                   : laplace_row<false>(y, location, log2_scale, n, valid, weight, y_slope);
}

static void add_rows(Inputs from, int count, float* to, int n) {
    for (int p = 0; p < n; p += kLanes) {
        Vec sum = load(to + p);
        for (int k = 0; k < count; ++k) sum += load(from[k] + p);
        store(to + p, sum);
    }
}

struct Softened {
    Vec value, slope;
};

// floor(v) + 1/2 + tanh((v - floor(v) - 1/2) / T) / (2 tanh(1 / (2 T))); height = 1 / (2 tanh(1 / (2 T))).
C3_INLINE Softened soft_round(Vec v, float inverse, float height) {
    Vec floor = nearest(v);
    floor -= either(floor > v, all(1.0f), all(0.0f));
    const Vec t = 1.0f - 2.0f / (exp_of((v - floor - 0.5f) * (2.0f * inverse)) + 1.0f);
    return {floor + 0.5f + t * height, (1.0f - t * t) * (height * inverse)};
}

C3_INLINE void soften_vector(const float* value, const float* gain, const float* noise, float inverse,
                             float height, float* out, float* slope) {
    const Vec scale = load(gain);
    const Softened inner = soft_round(load(value) * scale, inverse, height);
    const Softened outer = soft_round(inner.value + load(noise), inverse, height);
    store(out, outer.value);
    store(slope, outer.slope * inner.slope * scale);
}

static void soften(const float* value, const float* gain, const float* noise, float temperature,
                   std::size_t n, float* out, float* slope) {
    const float inverse = 1.0f / temperature;
    const float height = 0.5f / (float)__builtin_tanh(0.5 / temperature);
    const std::size_t whole = n / kLanes * kLanes, rest = n - whole;
    for (std::size_t p = 0; p < whole; p += kLanes)
        soften_vector(value + p, gain + p, noise + p, inverse, height, out + p, slope + p);
    if (!rest) return;
    float ends[5][kLanes] = {};
    for (std::size_t k = 0; k < rest; ++k) {
        ends[0][k] = value[whole + k];
        ends[1][k] = gain[whole + k];
        ends[2][k] = noise[whole + k];
    }
    soften_vector(ends[0], ends[1], ends[2], inverse, height, ends[3], ends[4]);
    for (std::size_t k = 0; k < rest; ++k) out[whole + k] = ends[3][k], slope[whole + k] = ends[4][k];
}

static void adam(float* value, const float* gradient, float* mean, float* square, AdamRates rates,
                 std::size_t n) {
    const auto move = [&](float* v, const float* g, float* m, float* s) {
        const Vec slope = load(g), first = load(m) + (slope - load(m)) * rates.first;
        const Vec second = load(s) * (1.0f - rates.second) + slope * slope * rates.second;
        store(m, first);
        store(s, second);
        store(v, load(v) - rates.rate * first / (root(second) + rates.epsilon));
    };
    const std::size_t whole = n / kLanes * kLanes;
    for (std::size_t p = 0; p < whole; p += kLanes) move(value + p, gradient + p, mean + p, square + p);
    float* rows[4] = {value, const_cast<float*>(gradient), mean, square};
    float ends[4][kLanes] = {};
    for (int r = 0; r < 4; ++r)
        for (std::size_t p = whole; p < n; ++p) ends[r][p - whole] = rows[r][p];
    move(ends[0], ends[1], ends[2], ends[3]);
    for (int r = 0; r < 4; ++r)
        for (std::size_t p = whole; r != 1 && p < n; ++p) rows[r][p] = ends[r][p - whole];
}

// out = a b for a (m, k), whose elements are `down` and `right` floats apart, and b (k, n).
static void product(const float* a, int down, int right, const float* b, int m, int k, int n, float* out) {
    for (int i = 0; i < m; ++i) {
        float* row = out + i * n;
        for (int x = 0; x < n; ++x) row[x] = 0.0f;
        for (int j = 0; j < k; ++j) {
            const float factor = a[i * down + j * right];
            for (int x = 0; x < n; ++x) row[x] += factor * b[j * n + x];
        }
    }
}

static void transpose(const float* a, int m, int n, float* out) {
    for (int i = 0; i < m; ++i)
        for (int x = 0; x < n; ++x) out[x * m + i] = a[i * n + x];
}

static void approach(const float* target, int count, float part, float* value) {
    for (int i = 0; i < count; ++i) value[i] += (target[i] - value[i]) * part;
}

static void soap(float* value, const float* gradient, const float* mean, const SoapMatrix& of,
                 AdamRates rates, float* room) {
    const int m = of.rows, n = of.columns, count = m * n, side = m > n ? m : n;
    float *g = room, *a = g + side * side, *b = a + side * side, *c = b + side * side;
    for (int i = 0; i < count; ++i) g[i] = gradient[of.places[i]];
    // U^T G V, whose squares' mean is the scale, and U^T M V.
    product(of.left_basis, 1, m, g, m, m, n, a);
    product(a, n, 1, of.right_basis, m, n, n, b);
    for (int i = 0; i < count; ++i) of.squares[i] += (b[i] * b[i] - of.squares[i]) * rates.second;
    for (int i = 0; i < count; ++i) c[i] = mean[of.places[i]];
    product(of.left_basis, 1, m, c, m, m, n, a);
    product(a, n, 1, of.right_basis, m, n, n, b);
    for (int i = 0; i < count; ++i) b[i] /= __builtin_sqrtf(of.squares[i]) + rates.epsilon;
    product(of.left_basis, m, 1, b, m, m, n, a);
    transpose(of.right_basis, n, n, c);
    product(a, n, 1, c, m, n, n, b);
    for (int i = 0; i < count; ++i) value[of.places[i]] -= rates.rate * b[i];
    transpose(g, m, n, a);
    product(g, n, 1, a, m, n, m, b);
    approach(b, m * m, rates.second, of.left);
    product(a, m, 1, g, n, m, n, b);
    approach(b, n * n, rates.second, of.right);
}

// --- Upsampling -----------------------------------------------------------------------------------------

// a b c ... and A B C ... to a A b B ..., and back.
struct Two {
    Vec first, second;
};

#if C3_FIT_BYTES == 64
C3_INLINE Two interleave(Vec a, Vec b) {
    return {__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
            __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
}
C3_INLINE Two separate(Vec a, Vec b) {
    return {__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
            __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
}
#elif C3_FIT_BYTES == 32
C3_INLINE Two interleave(Vec a, Vec b) {
    return {__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11),
            __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)};
}
C3_INLINE Two separate(Vec a, Vec b) {
    return {__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14),
            __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)};
}
#else
C3_INLINE Two interleave(Vec a, Vec b) {
    return {__builtin_shufflevector(a, b, 0, 4, 1, 5), __builtin_shufflevector(a, b, 2, 6, 3, 7)};
}
C3_INLINE Two separate(Vec a, Vec b) {
    return {__builtin_shufflevector(a, b, 0, 2, 4, 6), __builtin_shufflevector(a, b, 1, 3, 5, 7)};
}
#endif

static void double_rows(Inputs x, const float* taps, int n, float* even, float* odd) {
    const float p0 = taps[0], p1 = taps[1], p2 = taps[2], p3 = taps[3];
    for (int p = 0; p < n; p += kLanes) {
        const Vec a = load(x[0] + p), b = load(x[1] + p), c = load(x[2] + p), d = load(x[3] + p);
        const Vec e = load(x[4] + p);
        store(even + p, p0 * a + p1 * b + p2 * c + p3 * d);
        store(odd + p, p3 * b + p2 * c + p1 * d + p0 * e);
    }
}

static void double_columns(const float* x, const float* taps, int n, float* out) {
    const float p0 = taps[0], p1 = taps[1], p2 = taps[2], p3 = taps[3];
    for (int p = 0; p < n; p += kLanes) {
        const Vec a = load(x + p - 2), b = load(x + p - 1), c = load(x + p), d = load(x + p + 1);
        const Vec e = load(x + p + 2);
        const Two pair =
            interleave(p0 * a + p1 * b + p2 * c + p3 * d, p3 * b + p2 * c + p1 * d + p0 * e);
        store(out + 2 * p, pair.first);
        store(out + 2 * p + kLanes, pair.second);
    }
}

static void double_rows_back(const float* even, const float* odd, Inputs x, const float* taps, int n,
                             Outputs d, float* sums) {
    const float p0 = taps[0], p1 = taps[1], p2 = taps[2], p3 = taps[3];
    Vec s0 = load(sums), s1 = load(sums + kLanes), s2 = load(sums + 2 * kLanes), s3 = load(sums + 3 * kLanes);
    for (int p = 0; p < n; p += kLanes) {
        const Vec a = load(even + p), b = load(odd + p);
        s0 += a * load(x[0] + p) + b * load(x[4] + p);
        s1 += a * load(x[1] + p) + b * load(x[3] + p);
        s2 += (a + b) * load(x[2] + p);
        s3 += a * load(x[3] + p) + b * load(x[1] + p);
        // At the border rows coincide, so they are added to one after another.
        add_to(d[0] + p, p0 * a);
        add_to(d[1] + p, p1 * a + p3 * b);
        add_to(d[2] + p, p2 * (a + b));
        add_to(d[3] + p, p3 * a + p1 * b);
        add_to(d[4] + p, p0 * b);
    }
    store(sums, s0), store(sums + kLanes, s1), store(sums + 2 * kLanes, s2), store(sums + 3 * kLanes, s3);
}

static void double_columns_back(const float* d_out, const float* x, const float* taps, int n, int columns,
                                float* even, float* odd, float* d, float* sums) {
    const float p0 = taps[0], p1 = taps[1], p2 = taps[2], p3 = taps[3];
    Vec s0 = load(sums), s1 = load(sums + kLanes), s2 = load(sums + 2 * kLanes), s3 = load(sums + 3 * kLanes);
    for (int p = 0; p < n; p += kLanes) {
        Two part = separate(load(d_out + 2 * p), load(d_out + 2 * p + kLanes));
        if (2 * (p + kLanes) > columns) {
            part.first *= first_lanes((columns + 1) / 2 - p);
            part.second *= first_lanes(columns / 2 - p);
        }
        store(even + p, part.first);
        store(odd + p, part.second);
        const Vec a = load(x + p - 2), b = load(x + p - 1), c = load(x + p), e = load(x + p + 1);
        const Vec f = load(x + p + 2);
        s0 += part.first * a + part.second * f;
        s1 += part.first * b + part.second * e;
        s2 += (part.first + part.second) * c;
        s3 += part.first * e + part.second * b;
    }
    for (int p = -2; p < n + 2; p += kLanes)
        store(d + p, p0 * (load(even + p + 2) + load(odd + p - 2)) +
                         p1 * (load(even + p + 1) + load(odd + p - 1)) +
                         p2 * (load(even + p) + load(odd + p)) + p3 * (load(even + p - 1) + load(odd + p + 1)));
    store(sums, s0), store(sums + kLanes, s1), store(sums + 2 * kLanes, s2), store(sums + 3 * kLanes, s3);
}

// --- 3x3 layers -----------------------------------------------------------------------------------------

static void around(Inputs in, std::ptrdiff_t stride, const float* weight, const float* bias, Outputs out,
                   int n) {
    for (int p = 0; p < n; p += 2 * kLanes) {
        Vec sum[3][2];
        for (int o = 0; o < 3; ++o)
            for (int v = 0; v < 2; ++v) sum[o][v] = load(in[o] + p + v * kLanes) + bias[o];
        C3_UNROLL
        for (int c = 0; c < 3; ++c) {
            C3_UNROLL
            for (int k = 0; k < 9; ++k) {
                const float* x = in[c] + p + (k / 3 - 1) * stride + (k % 3 - 1);
                const Vec a = load(x), b = load(x + kLanes);
                C3_UNROLL
                for (int o = 0; o < 3; ++o) {
                    const Vec w = all(weight[(o * 3 + c) * 9 + k]);
                    sum[o][0] += w * a;
                    sum[o][1] += w * b;
                }
            }
        }
        for (int o = 0; o < 3; ++o)
            for (int v = 0; v < 2; ++v) store(out[o] + p + v * kLanes, sum[o][v]);
    }
}

static void around_gradient(Inputs d, Inputs in, std::ptrdiff_t stride, int n, float* sums) {
    for (int c = 0; c < 3; ++c) {
        for (int dy = -1; dy < 2; ++dy) {
            Vec sum[3][3];
            float* to = sums + (c * 9 + (dy + 1) * 3) * kLanes;
            for (int o = 0; o < 3; ++o)
                for (int k = 0; k < 3; ++k) sum[o][k] = load(to + (o * 27 + k) * kLanes);
            for (int p = 0; p < n; p += kLanes) {
                const float* x = in[c] + p + dy * stride;
                const Vec near[3] = {load(x - 1), load(x), load(x + 1)};
                for (int o = 0; o < 3; ++o) {
                    const Vec g = load(d[o] + p);
                    for (int k = 0; k < 3; ++k) sum[o][k] += g * near[k];
                }
            }
            for (int o = 0; o < 3; ++o)
                for (int k = 0; k < 3; ++k) store(to + (o * 27 + k) * kLanes, sum[o][k]);
        }
    }
    add_up(d, 3, n, sums + 81 * kLanes);
}

C3_INLINE Vec difference_of(Vec image, Vec x, bool clamped) {
    return (clamped ? within(image, 0.0f, 1.0f) : image) - x;
}

static double difference(const float* image, const float* x, int n, int valid, bool clamped, float scale,
                         float* d) {
    Vec sum = {};
    for (int p = 0; p < n; p += kLanes) {
        Vec e = {};
        if (p + kLanes <= valid) {
            e = difference_of(load(image + p), load(x + p), clamped);
        } else if (p < valid) {  // the row ends here, and so may the image's memory
            float rest[kLanes] = {};
            for (int k = 0; p + k < valid; ++k) rest[k] = x[p + k];
            e = difference_of(load(image + p), load(rest), clamped) * first_lanes(valid - p);
        }
        sum += e * e;
        if (d) store(d + p, e * scale);
    }
    return total(sum);
}

static const Kernels kKernels = {
    C3_FIT_NAME,
    kLanes,
    kBlock,
    dense,
    weight_gradient,
    activate,
    through,
    add_up,
    laplace,
    add_rows,
    soften,
    adam,
    soap,
    double_rows,
    double_columns,
    double_rows_back,
    double_columns_back,
    around,
    around_gradient,
    difference,
};

}  // namespace C3_FIT_SET
}  // namespace c3::fit
