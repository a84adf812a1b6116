// SPDX-License-Identifier: Apache-2.0
// See _synthesis.hpp. A chain of stages, each of which gives its rows from top to bottom and pulls those of
// the stage before as it needs them; the loops over pixels are in _rows.hpp.
#include "_synthesis.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "_rows.hpp"

namespace c3 {
namespace {

int whole_blocks(int width) { return (width + kBlock - 1) / kBlock * kBlock; }

// A row of some channels: pixel x at `kBlock + x`, with room for a border, for the rest of the last block and
// for one block more.
struct Rows {
    std::size_t stride, channels;
    std::vector<float> values;

    Rows(std::size_t channels_, int width)
        : stride(static_cast<std::size_t>(whole_blocks(width)) + 2 * kBlock), channels(channels_),
          values(channels * stride, 0.0f) {}
    float* pixel(std::size_t channel) { return values.data() + channel * stride + kBlock; }

    void repeat_border(int width, int count) {
        for (std::size_t c = 0; c < channels; ++c) {
            float* row = pixel(c);
            std::fill(row - count, row, row[0]);
            std::fill(row + width, row + width + count, row[width - 1]);
        }
    }
};

// One stage of the chain. The caller may swap what it gets with a row of the same size.
class Stage {
   public:
    virtual ~Stage() = default;
    virtual Rows& next() = 0;
};

// --- Upsampling -----------------------------------------------------------------------------------------

// Where a sample of the image lies in a grid: between `low` and `high`, `part` from the first.
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

// Every channel interpolated to the image's size.
class Interpolated : public Stage {
   public:
    Interpolated(const Kernels& kernels, const std::vector<Channel>& channels, Size size)
        : kernels_(kernels), channels_(channels), width_(size.width), rows_(channels.size(), size.width) {
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
            kernels_.mix(a, b, at.part, channel.size.width, mixed);
            if (!copied) spread(mixed, x_[c], rows_.pixel(c));
        }
        ++row_;
        return rows_;
    }

   private:
    static void spread(const float* row, const std::vector<Position>& at, float* out) {
        for (std::size_t i = 0; i < at.size(); ++i) {
            const float a = row[at[i].low], b = row[at[i].high];
            out[i] = a + at[i].part * (b - a);
        }
    }

    const Kernels& kernels_;
    const std::vector<Channel>& channels_;
    int width_, row_ = 0;
    Rows rows_;
    std::vector<std::vector<Position>> y_, x_;
    std::vector<float> line_;
};

// All channels at a size of the learned upsampling: the grid of that size, if there is one, then those of
// `before`, if there are any, doubled.
class Doubled : public Stage {
   public:
    Doubled(const Kernels& kernels, const Channel* own, Doubled* before, const Taps& taps, Size size)
        : kernels_(kernels), own_(own), before_(before), taps_(taps), size_(size),
          rows_((own != nullptr) + (before == nullptr ? 0 : before->rows_.channels), size.width),
          line_(1, before == nullptr ? 1 : before->size_.width) {
        if (before != nullptr) kept_.assign(kKept, before->rows_);
    }

    Rows& next() override {
        if (own_ != nullptr) {
            const std::size_t width = static_cast<std::size_t>(size_.width);
            std::memcpy(rows_.pixel(0), own_->values + width * row_, sizeof(float) * width);
        }
        if (before_ != nullptr) grow();
        ++row_;
        return rows_;
    }

   private:
    static constexpr int kKept = 5;  // from two above to two below

    void grow() {
        const Size from = before_->size_;
        const int middle = row_ / 2, way = row_ % 2 == 0 ? 1 : -1;
        for (; read_ <= std::min(middle + 2, from.height - 1); ++read_)
            kept_[static_cast<std::size_t>(read_ % kKept)].values.swap(before_->next().values);
        for (std::size_t c = 0; c < before_->rows_.channels; ++c) {
            const float* near[4];
            for (int j = 0; j < 4; ++j) {
                const int y = std::min(std::max(middle + way * (j - 2), 0), from.height - 1);
                near[j] = kept_[static_cast<std::size_t>(y % kKept)].pixel(c);
            }
            kernels_.between(near, taps_, from.width, line_.pixel(0));
            line_.repeat_border(from.width, 2);
            // A block more than the row may be written; Rows has room for it.
            kernels_.widen(line_.pixel(0), taps_, from.width, rows_.pixel(c + (own_ != nullptr)));
        }
    }

    const Kernels& kernels_;
    const Channel* own_;
    Doubled* before_;
    Taps taps_;
    Size size_;
    int row_ = 0, read_ = 0;
    Rows rows_, line_;
    std::vector<Rows> kept_;
};

// --- Layers ---------------------------------------------------------------------------------------------

// All layers of kernel 1: few pixels at a time, so that they stay in the cache from layer to layer.
class Pointwise : public Stage {
   public:
    Pointwise(const Kernels& kernels, Stage& before, std::vector<const FloatLayer*> layers, int width)
        : kernels_(kernels), before_(before), layers_(std::move(layers)), padded_(whole_blocks(width)),
          rows_(static_cast<std::size_t>(layers_.back()->outputs), width) {
        int widest = 0;
        for (const FloatLayer* layer : layers_) widest = std::max(widest, layer->outputs);
        for (auto& buffer : buffers_) buffer.assign(static_cast<std::size_t>(widest) * kTile, 0.0f);
    }

    Rows& next() override {
        Rows& first = before_.next();
        for (int start = 0; start < padded_; start += kTile) {
            const int n = std::min(kTile, padded_ - start);
            const Plane channels{first.pixel(0) + start, first.stride};
            Plane in = channels;
            for (std::size_t i = 0; i < layers_.size(); ++i) {
                const bool last = i + 1 == layers_.size();
                float* out = last ? rows_.pixel(0) + start : buffers_[i % 2].data();
                const std::size_t stride = last ? rows_.stride : kTile;
                kernels_.pointwise(*layers_[i], in, channels, first.channels, n, out, stride);
                in = {out, stride};
            }
        }
        return rows_;
    }

   private:
    static constexpr int kTile = 4 * kBlock;
    const Kernels& kernels_;
    Stage& before_;
    std::vector<const FloatLayer*> layers_;
    int padded_;
    Rows rows_;
    std::vector<float> buffers_[2];
};

// A layer of kernel 3.
class Around : public Stage {
   public:
    Around(const Kernels& kernels, Stage& before, const FloatLayer& layer, Size size)
        : kernels_(kernels), before_(before), layer_(layer), size_(size),
          rows_(static_cast<std::size_t>(layer.outputs), size.width),
          kept_(3, Rows(static_cast<std::size_t>(layer.inputs), size.width)),
          pointers_(static_cast<std::size_t>(3 * layer.inputs)) {}

    Rows& next() override {
        for (; read_ <= std::min(row_ + 1, size_.height - 1); ++read_) {
            Rows& kept = kept_[static_cast<std::size_t>(read_ % 3)];
            kept.values.swap(before_.next().values);
            kept.repeat_border(size_.width, 1);
        }
        for (std::size_t channel = 0; channel < static_cast<std::size_t>(layer_.inputs); ++channel)
            for (int dy = -1; dy <= 1; ++dy) {
                const int y = std::min(std::max(row_ + dy, 0), size_.height - 1);
                pointers_[3 * channel + static_cast<std::size_t>(dy + 1)] =
                    kept_[static_cast<std::size_t>(y % 3)].pixel(channel);
            }
        kernels_.around(layer_, pointers_.data(), whole_blocks(size_.width), rows_.pixel(0), rows_.stride);
        ++row_;
        return rows_;
    }

   private:
    const Kernels& kernels_;
    Stage& before_;
    const FloatLayer& layer_;
    Size size_;
    int row_ = 0, read_ = 0;
    Rows rows_;
    std::vector<Rows> kept_;
    std::vector<const float*> pointers_;
};

// --- The chain ------------------------------------------------------------------------------------------

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument("synthesis: " + what); }

int halved(int side, int times) { return (side + (1 << times) - 1) >> times; }

void check_sizes(const std::vector<Channel>& channels, const Synthesis& synthesis, Size size) {
    if (size.height < 1 || size.width < 1 || size.height > kMaxSide || size.width > kMaxSide)
        reject("sides must lie in 1 ... 32768");
    for (const Channel& channel : channels)
        if (channel.size.height < 1 || channel.size.width < 1 || channel.values == nullptr)
            reject("an empty channel");
    if (synthesis.doublings.empty()) return;
    const std::size_t count = synthesis.doublings.size();
    if (synthesis.first < 0 || count > kMaxDoublings || count + 1 != channels.size() + synthesis.first)
        reject("there must be first + channels - 1 doublings, at most 30");
    for (std::size_t i = 0; i < channels.size(); ++i) {
        const int exponent = synthesis.first + static_cast<int>(i);
        if (channels[i].size.height != halved(size.height, exponent) ||
            channels[i].size.width != halved(size.width, exponent))
            reject("a channel's size is not that of its grid");
    }
}

using Stages = std::vector<std::unique_ptr<Stage>>;

void add_doublings(const Kernels& kernels, const std::vector<Channel>& channels, const Synthesis& synthesis,
                   Size size, Stages& stages) {
    Doubled* before = nullptr;
    for (std::size_t exponent = synthesis.doublings.size() + 1; exponent-- > 0;) {
        const std::size_t first = static_cast<std::size_t>(synthesis.first);
        const Channel* own = exponent < first ? nullptr : &channels[exponent - first];
        const Taps taps = before == nullptr ? Taps{} : synthesis.doublings[exponent];
        const int times = static_cast<int>(exponent);
        const Size here{halved(size.height, times), halved(size.width, times)};
        auto made = std::make_unique<Doubled>(kernels, own, before, taps, here);
        before = made.get();
        stages.push_back(std::move(made));
    }
}

}  // namespace

bool has_fast_kernels() { return choose_kernels(false).pointwise != choose_kernels(true).pointwise; }

int check_layers(const std::vector<FloatLayer>& layers, std::size_t channels) {
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
        if (!layer.skip.empty() && (layer.kernel != 1 || layer.skip.size() != channels * layer.outputs))
            reject("a skip is (outputs, channels), in a layer of kernel 1");
        if (layer.residual && layer.outputs != layer.inputs) reject("a residual layer must be square");
        width = layer.outputs;
        kernel = layer.kernel;
    }
    return width;
}

void synthesise(const std::vector<Channel>& channels, const Synthesis& synthesis, Size size, bool portable,
                float* image) {
    const int outputs = check_layers(synthesis.layers, channels.size());
    check_sizes(channels, synthesis, size);
    const Kernels kernels = choose_kernels(portable);
    Stages stages;
    if (synthesis.doublings.empty())
        stages.push_back(std::make_unique<Interpolated>(kernels, channels, size));
    else
        add_doublings(kernels, channels, synthesis, size, stages);
    std::vector<const FloatLayer*> layers;
    for (const FloatLayer& layer : synthesis.layers)
        if (layer.kernel == 1) layers.push_back(&layer);
    if (!layers.empty())
        stages.push_back(std::make_unique<Pointwise>(kernels, *stages.back(), std::move(layers), size.width));
    for (const FloatLayer& layer : synthesis.layers)
        if (layer.kernel == 3)
            stages.push_back(std::make_unique<Around>(kernels, *stages.back(), layer, size));
    for (int y = 0; y < size.height; ++y) {
        Rows& rows = stages.back()->next();
        for (int c = 0; c < outputs; ++c) {
            const std::size_t at = (static_cast<std::size_t>(c) * size.height + y) * size.width;
            std::memcpy(image + at, rows.pixel(static_cast<std::size_t>(c)), sizeof(float) * size.width);
        }
    }
}

}  // namespace c3
