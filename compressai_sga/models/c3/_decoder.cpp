// SPDX-License-Identifier: Apache-2.0
// Latents from bytes; see _decoder.hpp. A grid is decoded front by front: the latents with equal
// t = x + slope * y do not see one another, so the net runs on all of them at once. Fronts lie in a ring of
// rows indexed by y, in which tap (dy, dx) of a whole front is one run of memory: row t + dx + slope * dy,
// shifted by dy.
#include "_decoder.hpp"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <utility>

namespace c3 {
namespace {

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument(what); }

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// --- The other grid ---------------------------------------------------------------------------------------

int clamped(int latent, int clamp) { return std::min(std::max(latent, -clamp), clamp); }

// A plane of inputs, in units of 2^-8, with kMaxReach zeros around it; empty if there is none.
struct Plane {
    int stride = 0;
    std::vector<int16_t> values;
};

Plane make_plane(int height, int width) {
    Plane plane;
    plane.stride = width + 2 * kMaxReach;
    plane.values.assign(static_cast<std::size_t>(plane.stride) * (height + 2 * kMaxReach), 0);
    return plane;
}

Plane copied(const int32_t* grid, Size size, int clamp) {
    Plane plane = make_plane(size.height, size.width);
    for (int y = 0; y < size.height; ++y) {
        int16_t* row = &plane.values[static_cast<std::size_t>(plane.stride) * (y + kMaxReach) + kMaxReach];
        const int32_t* from = grid + static_cast<std::size_t>(size.width) * y;
        for (int x = 0; x < size.width; ++x)
            row[x] = static_cast<int16_t>(clamped(from[x], clamp) * (1 << kFeatureBits));
    }
    return plane;
}

// [1 3 3 1] / 8 both ways, border repeated: 64 times the filter, times 4.
Plane halved(const int32_t* grid, Size size, int clamp) {
    const int height = (size.height + 1) / 2, width = (size.width + 1) / 2;
    Plane plane = make_plane(height, width);
    std::vector<int32_t> line(static_cast<std::size_t>(size.width));
    for (int y = 0; y < height; ++y) {
        const int32_t* from[4];
        for (int k = 0; k < 4; ++k)
            from[k] = grid + static_cast<std::size_t>(size.width) *
                                 std::min(std::max(2 * y - 1 + k, 0), size.height - 1);
        for (int x = 0; x < size.width; ++x)
            line[static_cast<std::size_t>(x)] =
                clamped(from[0][x], clamp) + clamped(from[3][x], clamp) +
                3 * (clamped(from[1][x], clamp) + clamped(from[2][x], clamp));
        int16_t* row = &plane.values[static_cast<std::size_t>(plane.stride) * (y + kMaxReach) + kMaxReach];
        for (int x = 0; x < width; ++x) {
            int32_t at[4];
            for (int k = 0; k < 4; ++k)
                at[k] = line[static_cast<std::size_t>(std::min(std::max(2 * x - 1 + k, 0), size.width - 1))];
            row[x] = static_cast<int16_t>((at[0] + at[3] + 3 * (at[1] + at[2])) * 4);
        }
    }
    return plane;
}

// --- One grid ---------------------------------------------------------------------------------------------

struct Escape {
    std::size_t at;
    int below, above;  // the nearest latents that the row does not hold
};

template <class Coder>
class GridCoder {
   public:
    using Grid = std::conditional_t<Coder::kKnown, const int32_t*, int32_t*>;

    GridCoder(Size size, const Net& net, const Context& context, const Tables& tables, Plane plane,
                Kernel kernel)
        : size_(size), net_(net), context_(context), tables_(tables), plane_(std::move(plane)),
          kernel_(kernel), columns_(round_up(size.height, kBlock)),
          stride_(kMaxReach + columns_) {
        ring_ = 1;
        while (ring_ <= context.look_back) ring_ *= 2;
        fronts_.assign(static_cast<std::size_t>(ring_) * stride_, 0);
        others_.assign(context.other.size() * columns_, 0);
        int rows = (net.width() + 1) / 2;
        for (const auto& layer : net.layers()) rows = std::max(rows, layer.out_pairs);
        inputs_ = rows_of((net.width() + 1) / 2, 0);
        hidden_[0] = rows_of(rows, 1);
        hidden_[1] = rows_of(rows, 2);
        sums_ = rows_of(2, 3);
        zeros_.assign(static_cast<std::size_t>(columns_), 0);
        if (context.source == Source::coarser) {
            for (int phase = 0; phase < 4; ++phase)
                for (const Tap& tap : context.other)
                    offsets_[phase].push_back((phase & 2 ? tap.dy : -tap.dy) * plane_.stride +
                                              (phase & 1 ? tap.dx : -tap.dx));
        } else {
            for (const Tap& tap : context.other) offsets_[0].push_back(tap.dy * plane_.stride + tap.dx);
        }
    }

    // `grid` is written, or read if the coder knows the latents.
    void run(Coder& coder, Grid grid) {
        const int fronts = size_.width + context_.slope * (size_.height - 1);
        for (int t = 0; t < fronts; ++t) {
            const int over = t - size_.width + 1;
            const int first = over <= 0 ? 0 : (over + context_.slope - 1) / context_.slope;
            const int end = std::min(size_.height, t / context_.slope + 1);
            std::fill_n(front(t), stride_, int16_t{0});
            if (first >= end) continue;
            predict(t, first, end - first);
            code(coder, t, first, end - first, grid);
        }
    }

   private:
    static constexpr bool kKnown = Coder::kKnown;

    std::vector<uint32_t*> rows_of(int count, int buffer) {
        storage_[buffer].assign(static_cast<std::size_t>(count) * columns_, 0);
        std::vector<uint32_t*> rows;
        for (int i = 0; i < count; ++i)
            rows.push_back(storage_[buffer].data() + static_cast<std::size_t>(i) * columns_);
        return rows;
    }

    // Entry kMaxReach + y is the latent at row y.
    int16_t* front(int t) { return &fronts_[static_cast<std::size_t>(t & (ring_ - 1)) * stride_]; }

    void gather_others(int t, int first, int count) {
        const bool coarser = context_.source == Source::coarser;
        const std::size_t taps = context_.other.size();
        for (int i = 0; i < count; ++i) {
            int y = first + i, x = t - context_.slope * y, phase = 0;
            if (coarser) {
                phase = (y & 1) * 2 + (x & 1);
                y >>= 1;
                x >>= 1;
            }
            const int16_t* at =
                &plane_.values[static_cast<std::size_t>(plane_.stride) * (y + kMaxReach) + x + kMaxReach];
            const int* offset = offsets_[phase].data();
            for (std::size_t k = 0; k < taps; ++k) others_[k * columns_ + i] = at[offset[k]];
        }
    }

    const int16_t* input(int index, int t, int first) {
        const int own = static_cast<int>(context_.own.size());
        if (index >= own + static_cast<int>(context_.other.size())) return zeros_.data();
        if (index >= own) return &others_[static_cast<std::size_t>(index - own) * columns_];
        const Tap& tap = context_.own[static_cast<std::size_t>(index)];
        const int earlier = t + tap.dx + context_.slope * tap.dy;
        if (earlier < 0) return zeros_.data();
        return front(earlier) + kMaxReach + first + tap.dy;
    }

    // Location and scale sums of a front's positions.
    void predict(int t, int first, int count) {
        if (!plane_.values.empty()) gather_others(t, first, count);
        for (std::size_t p = 0; p < inputs_.size(); ++p) {
            const int16_t* a = input(static_cast<int>(2 * p), t, first);
            const int16_t* b = input(static_cast<int>(2 * p + 1), t, first);
            uint32_t* out = inputs_[p];
            for (int i = 0; i < count; ++i) out[i] = pack(a[i], b[i]);
        }
        const int n = round_up(count, kBlock);
        const uint32_t* in[kMaxWidth + 2];
        int pairs = 0;
        for (uint32_t* row : inputs_) in[pairs++] = row;
        const auto& layers = net_.layers();
        for (std::size_t i = 0; i < layers.size(); ++i) {
            const bool last = i + 1 == layers.size();
            if (last && net_.skip())
                for (uint32_t* row : inputs_) in[pairs++] = row;
            const std::vector<uint32_t*>& out = last ? sums_ : hidden_[i & 1];
            kernel_(layers[i], in, n, tables_, out.data(), last);
            pairs = 0;
            for (int o = 0; o < layers[i].out_pairs; ++o) in[pairs++] = out[static_cast<std::size_t>(o)];
        }
    }

    void code(Coder& coder, int t, int first, int count, Grid grid) {
        const int shift = net_.layers().back().shift;
        const int location_shift = shift + kFeatureBits - kLocationBits;
        const int scale_shift = shift + kFeatureBits - kScaleBits;
        const int limit = kMaxLatent << kLocationBits;
        int16_t* line = front(t) + kMaxReach;
        escapes_.clear();
        for (int i = 0; i < count; ++i) {
            int location = (static_cast<int32_t>(sums_[0][i]) + (1 << location_shift >> 1)) >> location_shift;
            int scale = ((static_cast<int32_t>(sums_[1][i]) + (1 << scale_shift >> 1)) >> scale_shift);
            location = std::min(std::max(location, -limit), limit);
            scale = std::min(std::max(scale + kScaleZero, 0), kScales - 1);
            const int bits = tables_.fraction_bits[static_cast<std::size_t>(scale)];
            const int dropped = kLocationBits - bits;
            const int rounded = (location + (1 << dropped >> 1)) >> dropped;
            const int whole = rounded >> bits;
            const std::size_t row = static_cast<std::size_t>(tables_.base[static_cast<std::size_t>(scale)] +
                                                             (rounded & ((1 << bits) - 1)));
            const int escape = tables_.counts[row] - 1, lowest = whole + tables_.first[row];
            const int y = first + i;
            const std::size_t at = static_cast<std::size_t>(size_.width) * y + (t - context_.slope * y);
            int guess = escape / 2;
            if constexpr (kKnown) {
                const int value = grid[at] - lowest;
                guess = value < 0 || value > escape ? escape : value;
            }
            const uint32_t* cdf = &tables_.cdf[static_cast<std::size_t>(tables_.start[row])];
            const int value = coder.code(cdf, escape + 1, guess);
            if (value == escape) {
                escapes_.push_back({at, lowest - 1, lowest + escape});
            } else {
                store(grid, line, at, y, lowest + value);
            }
        }
        for (const Escape& escape : escapes_) {
            int known = 0;
            if constexpr (kKnown) known = grid[escape.at];
            const int latent = code_escape(coder, escape, known);
            store(grid, line, escape.at, static_cast<int>(escape.at / size_.width), latent);
        }
        if (coder.is_empty()) throw Damaged("the stream ends too early");
    }

    int code_escape(Coder& coder, const Escape& escape, int known) {
        const auto row = [&](int r) { return &tables_.cdf[static_cast<std::size_t>(tables_.start[r])]; };
        const uint32_t* coin = row(tables_.coin_row);
        const bool above = known >= escape.above;
        const int number = (above ? known - escape.above : escape.below - known) + 1;
        int digits = 0;
        if constexpr (kKnown)
            while (number >> digits > 1) ++digits;
        const int side = coder.code(coin, 2, kKnown && above);
        const int bits = coder.code(row(tables_.escape_row), tables_.counts[tables_.escape_row], digits);
        int distance = 1;
        for (int i = bits - 1; i >= 0; --i)
            distance = 2 * distance + coder.code(coin, 2, kKnown ? number >> i & 1 : 0);
        --distance;
        return side ? escape.above + distance : escape.below - distance;
    }

    void store(Grid grid, int16_t* line, std::size_t at, int y, int latent) {
        if constexpr (!kKnown) {
            if (std::abs(latent) > kMaxLatent) throw Damaged("a latent exceeds its range");
            grid[at] = latent;
        }
        line[y] = static_cast<int16_t>(clamped(latent, net_.clamp()) * (1 << kFeatureBits));
    }

    Size size_;
    const Net& net_;
    const Context& context_;
    const Tables& tables_;
    Plane plane_;
    Kernel kernel_;
    int columns_, stride_, ring_;
    std::vector<int16_t> fronts_, others_, zeros_;
    std::vector<uint32_t> storage_[4];
    std::vector<uint32_t*> inputs_, hidden_[2], sums_;
    std::vector<int> offsets_[4];
    std::vector<Escape> escapes_;
};

}  // namespace

// --- All grids --------------------------------------------------------------------------------------------

Context::Context(std::vector<Tap> own_, std::vector<Tap> other_, Source source_, int slope_)
    : own(std::move(own_)), other(std::move(other_)), source(source_), slope(slope_), look_back(1) {
    if (slope < 1 || slope > kMaxReach + 1) reject("context: the slope is out of range");
    if (own.size() + other.size() > kMaxTaps || own.size() + other.size() < 1)
        reject("context: too few or too many taps");
    if ((source == Source::none) != other.empty()) reject("context: other taps exactly with a source");
    const auto in_reach = [](int d) { return -kMaxReach <= d && d <= kMaxReach; };  // abs(-2^31) is negative
    for (const Tap& tap : own) {
        if (!in_reach(tap.dy) || !in_reach(tap.dx)) reject("context: a tap too far");
        const int back = -(tap.dx + slope * tap.dy);
        if (tap.dy > 0 || back < 1) reject("context: a tap that is not decoded yet");
        look_back = std::max(look_back, back);
    }
    for (const Tap& tap : other)
        if (!in_reach(tap.dy) || !in_reach(tap.dx)) reject("context: a tap too far");
}

namespace {

void check(const std::vector<Size>& sizes, const std::vector<const Net*>& nets, const Context& context,
           std::size_t grids) {
    if (sizes.empty() || nets.size() != sizes.size() || grids != sizes.size())
        reject("sizes: one net and one grid for each");
    const int width = static_cast<int>(context.own.size() + context.other.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        const Size size = sizes[i];
        if (size.height < 1 || size.width < 1 || size.height > kMaxSide || size.width > kMaxSide)
            reject("sizes: a grid's sides must lie in 1 ... 32768");
        if (i > 0 && context.source != Source::none) {
            const Size finer = sizes[i - 1];
            if (size.height != (finer.height + 1) / 2 || size.width != (finer.width + 1) / 2)
                reject("sizes: each grid must have half the size of the one before");
        }
        if (nets[i]->width() != width) reject("sizes: net and context do not fit");
    }
}

// All grids in their order, each after the one that it may see.
template <class Coder, class Done>
void walk(Coder& coder, const std::vector<Size>& sizes, const std::vector<const Net*>& nets,
          const Context& context, const Tables& tables,
          const std::vector<typename GridCoder<Coder>::Grid>& grids, bool portable, const Done& done) {
    const Kernel kernel = choose_kernel(portable);
    for (std::size_t k = 0; k < sizes.size(); ++k) {
        const std::size_t i = context.source == Source::finer ? k : sizes.size() - 1 - k;
        const int clamp = nets[i]->clamp();
        Plane plane;
        if (k > 0 && context.source == Source::coarser) plane = copied(grids[i + 1], sizes[i + 1], clamp);
        if (k > 0 && context.source == Source::finer) plane = halved(grids[i - 1], sizes[i - 1], clamp);
        GridCoder<Coder>(sizes[i], *nets[i], context, tables, std::move(plane), kernel).run(coder, grids[i]);
        done(i);
    }
}

}  // namespace

uint64_t decode(const uint8_t* data, std::size_t length, const std::vector<Size>& sizes,
                const std::vector<const Net*>& nets, const Context& context, const Tables& tables,
                const std::vector<int32_t*>& grids, bool portable) {
    check(sizes, nets, context, grids.size());
    Ans ans(data, length);
    walk(ans, sizes, nets, context, tables, grids, portable, [](std::size_t) {});
    if (!ans.at_end()) throw Damaged("the stream goes on after the last latent");
    return ans.state();
}

void encode(const std::vector<Size>& sizes, const std::vector<const Net*>& nets, const Context& context,
            const Tables& tables, const std::vector<const int32_t*>& grids, uint32_t guard, bool portable,
            std::vector<double>& bits, std::vector<uint32_t>* words) {
    check(sizes, nets, context, grids.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        const std::size_t count = static_cast<std::size_t>(sizes[i].height) * sizes[i].width;
        for (std::size_t k = 0; k < count; ++k)
            if (grids[i][k] < -kMaxLatent || grids[i][k] > kMaxLatent)
                reject("encode: a latent exceeds its range");
    }
    Recorder recorder(words != nullptr);
    bits.assign(sizes.size(), 0.0);
    double before = 0;
    walk(recorder, sizes, nets, context, tables, grids, portable, [&](std::size_t i) {
        bits[i] = recorder.bits() - before;
        before = recorder.bits();
    });
    if (words != nullptr) *words = recorder.words(guard);
}

}  // namespace c3
