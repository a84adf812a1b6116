// SPDX-License-Identifier: Apache-2.0
// See _synthesis.hpp. Loops over kBlock pixels with a constant count are what compilers turn into vectors;
// on x86-64 Linux GCC makes each function twice, with and without AVX2 and FMA, and picks at run time.
#include "_synthesis.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define C3_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define C3_CLONES
#endif

#if defined(__GNUC__)
#define C3_INLINE inline __attribute__((always_inline))  // into each of the clones
#else
#define C3_INLINE inline
#endif

namespace c3 {
namespace {

// Where a sample of the image lies in a grid: between `low` and `low + step`, `part` from the first.
struct Position {
    int low, high;
    float part;
};

std::vector<Position> positions(int from, int to) {
    std::vector<Position> made;
    const double scale = static_cast<double>(from) / to;
    for (int i = 0; i < to; ++i) {
        const double at = std::max((i + 0.5) * scale - 0.5, 0.0);
        const int low = std::min(static_cast<int>(at), from - 1);
        made.push_back({low, std::min(low + 1, from - 1), static_cast<float>(at - low)});
    }
    return made;
}

C3_CLONES void mix(const float* a, const float* b, float part, int n, float* out) {
    for (int i = 0; i < n; ++i) out[i] = a[i] + part * (b[i] - a[i]);
}

void spread(const float* row, const Position* at, int n, float* out) {
    for (int i = 0; i < n; ++i) {
        const float a = row[at[i].low], b = row[at[i].high];
        out[i] = a + at[i].part * (b - a);
    }
}

// GELU as max(x, 0) - |x| Q(|x|), Q(u) = erfc(u / sqrt 2) / 2 by Abramowitz and Stegun 7.1.26, error 1e-7,
// where exp(-u^2 / 2) = 2^y = 2^k exp(r). The bound on y has a loop of its own: within the other, compilers
// make a branch of it, and no vectors.
C3_INLINE void gelu(float* x) {
    float y[kBlock];
    for (int i = 0; i < kBlock; ++i) y[i] = -0.72134752f * x[i] * x[i];
    for (int i = 0; i < kBlock; ++i) y[i] = std::max(-120.0f, y[i]);  // of NaN: -120
    for (int i = 0; i < kBlock; ++i) {
        const float u = std::fabs(x[i]);
        const float t = 1.0f / (1.0f + 0.23164190f * u);
        const float tail = 0.710706870f + t * (-0.726576013f + t * 0.530702714f);
        const float series = t * (0.127414796f + t * (-0.142248368f + t * tail));
        const int32_t k = static_cast<int32_t>(y[i] - 0.5f);
        const float r = (y[i] - static_cast<float>(k)) * 0.69314718f;
        const float cubic = 1.6666667e-1f + r * (4.1666668e-2f + r * (8.3333333e-3f + r * 1.3888889e-3f));
        const float power = 1.0f + r * (1.0f + r * (0.5f + r * cubic));
        const int32_t bits = (k + 127) * (1 << 23);
        float two;
        std::memcpy(&two, &bits, sizeof two);
        x[i] = 0.5f * (x[i] + u) - u * series * power * two;
    }
}

C3_INLINE void activate(Activation activation, float* x) {
    if (activation == Activation::relu)
        for (int i = 0; i < kBlock; ++i) x[i] = std::max(x[i], 0.0f);
    if (activation == Activation::gelu) gelu(x);
}

// A pointwise layer on n pixels, a multiple of kBlock; `in_stride`, `stride`: floats from channel to channel.
C3_CLONES void pointwise(const FloatLayer& layer, const float* in, std::size_t in_stride, int n, float* out,
                         std::size_t stride) {
    for (int start = 0; start < n; start += kBlock) {
        for (int o = 0; o < layer.outputs; o += 2) {
            const int p = std::min(o + 1, layer.outputs - 1);  // twice the same where the count is odd
            const float* w0 = &layer.weight[static_cast<std::size_t>(o) * layer.inputs];
            const float* w1 = &layer.weight[static_cast<std::size_t>(p) * layer.inputs];
            float sum0[kBlock], sum1[kBlock];
            for (int i = 0; i < kBlock; ++i) sum0[i] = layer.bias[static_cast<std::size_t>(o)];
            for (int i = 0; i < kBlock; ++i) sum1[i] = layer.bias[static_cast<std::size_t>(p)];
            for (int j = 0; j < layer.inputs; ++j) {
                const float* x = in + in_stride * j + start;
                const float a = w0[j], b = w1[j];
                for (int i = 0; i < kBlock; ++i) {
                    sum0[i] += a * x[i];
                    sum1[i] += b * x[i];
                }
            }
            if (layer.residual) {
                const float *x0 = in + in_stride * o + start, *x1 = in + in_stride * p + start;
                for (int i = 0; i < kBlock; ++i) sum0[i] += x0[i];
                for (int i = 0; i < kBlock; ++i) sum1[i] += x1[i];
            }
            activate(layer.activation, sum0);
            activate(layer.activation, sum1);
            std::memcpy(out + stride * o + start, sum0, sizeof sum0);
            std::memcpy(out + stride * p + start, sum1, sizeof sum1);
        }
    }
}

// A 3x3 layer on a row: rows[3 * channel + dy] points to pixel 0, with one more pixel at the left and
// kBlock at the right.
C3_CLONES void around(const FloatLayer& layer, const float* const* rows, std::size_t stride, int n,
                      float* out) {
    for (int start = 0; start < n; start += kBlock) {
        for (int o = 0; o < layer.outputs; ++o) {
            float sum[kBlock];
            for (int i = 0; i < kBlock; ++i) sum[i] = layer.bias[static_cast<std::size_t>(o)];
            const float* weight = &layer.weight[static_cast<std::size_t>(o) * layer.inputs * 9];
            for (int j = 0; j < 3 * layer.inputs; ++j, weight += 3) {
                const float* x = rows[j] + start;
                const float a = weight[0], b = weight[1], c = weight[2];
                for (int i = 0; i < kBlock; ++i) sum[i] += a * x[i - 1] + b * x[i] + c * x[i + 1];
            }
            if (layer.residual) {
                const float* x = rows[3 * o + 1] + start;
                for (int i = 0; i < kBlock; ++i) sum[i] += x[i];
            }
            activate(layer.activation, sum);
            std::memcpy(out + stride * o + start, sum, sizeof sum);
        }
    }
}

// Rows of some channels, with room for the border: pixel x at `kBlock + x`.
struct Rows {
    std::size_t stride, channels;
    std::vector<float> values;

    Rows(std::size_t channels_, int padded)
        : stride(static_cast<std::size_t>(padded) + 2 * kBlock), channels(channels_),
          values(channels * stride, 0.0f) {}
    float* pixel(std::size_t channel) { return values.data() + channel * stride + kBlock; }

    void repeat_border(int width) {
        for (std::size_t c = 0; c < channels; ++c) {
            float* row = pixel(c);
            row[-1] = row[0];
            row[width] = row[width - 1];
        }
    }
};

// One stage of the chain: gives its rows in turn, top to bottom.
class Stage {
   public:
    virtual ~Stage() = default;
    virtual Rows& next() = 0;
};

class Upsampled : public Stage {
   public:
    Upsampled(const std::vector<Channel>& channels, Size size, int padded)
        : channels_(channels), width_(size.width), rows_(channels.size(), padded) {
        int widest = 1;
        for (const Channel& channel : channels) {
            y_.push_back(positions(channel.size.height, size.height));
            x_.push_back(positions(channel.size.width, size.width));
            widest = std::max(widest, channel.size.width);
        }
        line_.assign(static_cast<std::size_t>(widest), 0.0f);
    }

    Rows& next() override {
        for (std::size_t c = 0; c < channels_.size(); ++c) {
            const Channel& channel = channels_[c];
            const std::size_t width = static_cast<std::size_t>(channel.size.width);
            const Position at = y_[c][static_cast<std::size_t>(row_)];
            const float *a = channel.values + width * at.low, *b = channel.values + width * at.high;
            const bool copied = channel.size.width == width_;
            float* mixed = copied ? rows_.pixel(c) : line_.data();
            mix(a, b, at.part, channel.size.width, mixed);
            if (!copied) spread(mixed, x_[c].data(), width_, rows_.pixel(c));
        }
        ++row_;
        return rows_;
    }

   private:
    const std::vector<Channel>& channels_;
    int width_, row_ = 0;
    Rows rows_;
    std::vector<std::vector<Position>> y_, x_;
    std::vector<float> line_;
};

// All layers of kernel 1: few pixels at a time, so that they stay in the cache from layer to layer.
class Pointwise : public Stage {
   public:
    Pointwise(Stage& before, std::vector<const FloatLayer*> layers, int padded)
        : before_(before), layers_(std::move(layers)), padded_(padded),
          rows_(static_cast<std::size_t>(layers_.back()->outputs), padded) {
        int widest = 0;
        for (const FloatLayer* layer : layers_) widest = std::max(widest, layer->outputs);
        for (auto& buffer : buffers_) buffer.assign(static_cast<std::size_t>(widest) * kTile, 0.0f);
    }

    Rows& next() override {
        Rows& first = before_.next();
        for (int start = 0; start < padded_; start += kTile) {
            const int n = std::min(kTile, padded_ - start);
            const float* in = first.pixel(0) + start;
            std::size_t in_stride = first.stride;
            for (std::size_t i = 0; i < layers_.size(); ++i) {
                const bool last = i + 1 == layers_.size();
                float* out = last ? rows_.pixel(0) + start : buffers_[i % 2].data();
                const std::size_t stride = last ? rows_.stride : kTile;
                pointwise(*layers_[i], in, in_stride, n, out, stride);
                in = out;
                in_stride = stride;
            }
        }
        return rows_;
    }

   private:
    static constexpr int kTile = 4 * kBlock;
    Stage& before_;
    std::vector<const FloatLayer*> layers_;
    int padded_;
    Rows rows_;
    std::vector<float> buffers_[2];
};

class Around : public Stage {
   public:
    Around(Stage& before, const FloatLayer& layer, Size size, int padded)
        : before_(before), layer_(layer), size_(size), padded_(padded),
          rows_(static_cast<std::size_t>(layer.outputs), padded),
          kept_(3, Rows(static_cast<std::size_t>(layer.inputs), padded)),
          pointers_(static_cast<std::size_t>(3 * layer.inputs)) {}

    Rows& next() override {
        while (read_ <= std::min(row_ + 1, size_.height - 1)) {
            Rows& kept = kept_[static_cast<std::size_t>(read_ % 3)];
            const Rows& in = before_.next();
            std::copy(in.values.begin(), in.values.end(), kept.values.begin());
            kept.repeat_border(size_.width);
            ++read_;
        }
        for (std::size_t channel = 0; channel < static_cast<std::size_t>(layer_.inputs); ++channel)
            for (int dy = -1; dy <= 1; ++dy) {
                const int y = std::min(std::max(row_ + dy, 0), size_.height - 1);
                pointers_[3 * channel + static_cast<std::size_t>(dy + 1)] =
                    kept_[static_cast<std::size_t>(y % 3)].pixel(channel);
            }
        around(layer_, pointers_.data(), rows_.stride, padded_, rows_.pixel(0));
        ++row_;
        return rows_;
    }

   private:
    Stage& before_;
    const FloatLayer& layer_;
    Size size_;
    int padded_, row_ = 0, read_ = 0;
    Rows rows_;
    std::vector<Rows> kept_;
    std::vector<const float*> pointers_;
};

}  // namespace

int check_layers(const std::vector<FloatLayer>& layers, std::size_t channels) {
    const auto reject = [](const std::string& what) { throw std::invalid_argument("synthesis: " + what); };
    if (channels < 1 || channels > kMaxChannels) reject("too few or too many channels");
    int width = static_cast<int>(channels), kernel = 1;
    for (const FloatLayer& layer : layers) {
        if (layer.inputs != width || layer.outputs < 1 || layer.outputs > kMaxChannels)
            reject("a layer's width does not fit");
        if ((layer.kernel != 1 && layer.kernel != 3) || layer.kernel < kernel)
            reject("kernels must be 1, then 3");
        const std::size_t size = static_cast<std::size_t>(layer.kernel) * layer.kernel;
        if (layer.weight.size() != size * layer.inputs * layer.outputs ||
            layer.bias.size() != static_cast<std::size_t>(layer.outputs))
            reject("a layer's arrays have a wrong size");
        if (layer.residual && layer.outputs != layer.inputs) reject("a residual layer must be square");
        width = layer.outputs;
        kernel = layer.kernel;
    }
    return width;
}

void synthesise(const std::vector<Channel>& channels, const std::vector<FloatLayer>& layers, Size size,
                float* image) {
    const int outputs = check_layers(layers, channels.size());
    for (const Channel& channel : channels)
        if (channel.size.height < 1 || channel.size.width < 1 || channel.values == nullptr)
            throw std::invalid_argument("synthesis: an empty channel");
    if (size.height < 1 || size.width < 1 || size.height > kMaxSide || size.width > kMaxSide)
        throw std::invalid_argument("synthesis: sides must lie in 1 ... 32768");
    const int padded = (size.width + kBlock - 1) / kBlock * kBlock;
    std::vector<std::unique_ptr<Stage>> stages;
    stages.push_back(std::make_unique<Upsampled>(channels, size, padded));
    std::vector<const FloatLayer*> pointwise_layers;
    for (const FloatLayer& layer : layers)
        if (layer.kernel == 1) pointwise_layers.push_back(&layer);
    if (!pointwise_layers.empty())
        stages.push_back(std::make_unique<Pointwise>(*stages.back(), std::move(pointwise_layers), padded));
    for (const FloatLayer& layer : layers) {
        if (layer.kernel == 1) continue;
        stages.push_back(std::make_unique<Around>(*stages.back(), layer, size, padded));
    }
    for (int y = 0; y < size.height; ++y) {
        Rows& rows = stages.back()->next();
        for (int c = 0; c < outputs; ++c) {
            const std::size_t at = (static_cast<std::size_t>(c) * size.height + y) * size.width;
            std::memcpy(image + at, rows.pixel(static_cast<std::size_t>(c)), sizeof(float) * size.width);
        }
    }
}

}  // namespace c3
