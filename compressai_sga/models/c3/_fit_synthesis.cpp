// SPDX-License-Identifier: Apache-2.0
// See _fit_step.hpp. The hidden values of the pointwise layers are computed again for the gradient: 80 floats
// a pixel would not stay in a cache. Images have their border repeated around them, derivatives have zeros.
#include <cstring>
#include <limits>
#include <utility>

#include "_fit_step.hpp"

namespace c3::fit {
namespace {

constexpr int kLayer = 84;  // parameters of a 3x3 layer: weights and three biases
constexpr int kRows = 2;    // around an image: derivatives reach one row beyond it, and read one more
constexpr float kNoLimit = std::numeric_limits<float>::infinity();

int whole(int n, int block) { return (n + block - 1) / block * block; }

void repeat_border(Planes& image, int y) {
    for (int c = 0; c < image.channels; ++c) {
        float* row = image.row(c, y);
        row[-1] = row[0];
        row[image.width] = row[image.width - 1];
        const std::size_t length = (image.width + 2) * sizeof(float);
        if (y == 0) std::memcpy(image.row(c, -1) - 1, row - 1, length);
        if (y == image.height - 1) std::memcpy(image.row(c, y + 1) - 1, row - 1, length);
    }
}

template <typename P, typename Source>
void three_rows(Source& image, int y, int x, P* rows) {
    for (int c = 0; c < 3; ++c) rows[c] = image.row(c, y) + x;
}

}  // namespace

Synthesis::Synthesis(const Shape& shape, const Kernels& kernels)
    : shape_(shape), kernels_(kernels), net_(shape.synthesis), bands_(bands(shape.height, shape.width)) {
    const Planes image(3, shape.height, shape.width, kRows);
    images_.assign(std::max(1, shape.refinements), image);
    if (shape.refinement == Activation::gelu) slopes_.assign(std::max(0, shape.refinements - 1), image);
    d_image_ = d_other_ = image;
}

void Synthesis::pointwise(const Planes& channels, Team& team) {
    while (static_cast<int>(works_.size()) < team.size()) works_.push_back(net_.work(kernels_));
    team.each(static_cast<int>(bands_.size()), [&](int b, int worker) {
        const float* in[kMaxWidth];
        float* out[3];
        for (int y = bands_[b].begin; y < bands_[b].end; ++y) {
            for (int x = 0; x < shape_.width; x += kTile) {
                const int n = whole(std::min(kTile, shape_.width - x), kernels_.block);
                for (int c = 0; c < channels.channels; ++c) in[c] = channels.row(c, y) + x;
                three_rows(images_[0], y, x, out);
                net_.forward(kernels_, works_[worker], in, n, out, false);
            }
            repeat_border(images_[0], y);
        }
    });
}

double Synthesis::run(const Planes& channels, const float* parameters, const float* x, bool clamped,
                      float scale, Team& team) {
    net_.take(parameters);
    pointwise(channels, team);
    return refine(parameters, x, clamped, scale, team);
}

double Synthesis::refine(const float* parameters, const float* x, bool clamped, float scale, Team& team) {
    const float* layers = parameters + net_.parameters();
    const int height = shape_.height, width = shape_.width, last = shape_.refinements - 1;
    const int n = whole(width, 2 * kernels_.lanes);
    const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(images_[0].stride);
    const std::size_t pixels = static_cast<std::size_t>(height) * width;
    while (static_cast<int>(rows_.size()) < team.size()) rows_.emplace_back(3, width);
    std::vector<double> squares(bands_.size(), 0.0);
    const auto compare = [&](int b, int y, const float* const* image) {
        for (int c = 0; c < 3; ++c)
            squares[b] += kernels_.difference(image[c], x + c * pixels + static_cast<std::size_t>(y) * width, n,
                                              width, clamped, scale, scale ? d_image_.row(c, y) : nullptr);
    };
    for (int l = 0; l <= last || l == 0; ++l)
        team.each(static_cast<int>(bands_.size()), [&](int b, int worker) {
            for (int y = bands_[b].begin; y < bands_[b].end; ++y) {
                const float* in[3];
                float *out[3], *slopes[3] = {};
                three_rows(std::as_const(images_[l]), y, 0, in);
                if (last < 0) {
                    compare(b, y, in);
                    continue;
                }
                if (l < last)
                    three_rows(images_[l + 1], y, 0, out);
                else
                    for (int c = 0; c < 3; ++c) out[c] = rows_[worker].row(c);
                const float* layer = layers + l * kLayer;
                kernels_.around(in, stride, layer, layer + 81, out, n);
                if (l == last) {
                    compare(b, y, out);
                    continue;
                }
                const bool keep = scale && !slopes_.empty();
                if (keep) three_rows(slopes_[l], y, 0, slopes);
                kernels_.activate(shape_.refinement, kNoLimit, out, 3, n, keep ? slopes : nullptr);
                repeat_border(images_[l + 1], y);
            }
        });
    return sum(squares);
}

void Synthesis::refine_back(const float* layers, float* gradient, Team& team) {
    const int height = shape_.height, width = shape_.width, lanes = kernels_.lanes;
    const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(images_[0].stride);
    for (int l = shape_.refinements - 1; l >= 0; --l) {
        float flipped[81];
        const float none[3] = {};
        for (int k = 0; k < 81; ++k) flipped[(k / 9 % 3 * 3 + k / 27) * 9 + 8 - k % 9] = layers[l * kLayer + k];
        shares_.reset(static_cast<int>(bands_.size()), kLayer);
        team.each(static_cast<int>(bands_.size()), [&](int b, int worker) {
            float sums[kLayer * kMostLanes] = {}, unused[3 * kMostLanes] = {};
            // One column and one row beyond the image, where derivatives belong to the border.
            const auto transposed = [&](int y, float* const* to) {
                const float* from[3];
                float* out[3];
                three_rows(std::as_const(d_image_), y, -2 * lanes, from);
                for (int c = 0; c < 3; ++c) out[c] = to[c] - 2 * lanes;
                kernels_.around(from, stride, flipped, none, out, whole(width + 1, 2 * lanes) + 2 * lanes);
                for (int c = 0; c < 3; ++c) {
                    to[c][0] += to[c][-1];
                    to[c][width - 1] += to[c][width];
                }
            };
            for (int y = bands_[b].begin; y < bands_[b].end; ++y) {
                const float *d[3], *in[3];
                float *to[3], *beyond[3], *slopes[3] = {};
                three_rows(std::as_const(d_image_), y, 0, d);
                three_rows(std::as_const(images_[l]), y, 0, in);
                kernels_.around_gradient(d, in, stride, whole(width, lanes), sums);
                three_rows(d_other_, y, 0, to);
                transposed(y, to);
                for (int c = 0; c < 3; ++c) beyond[c] = rows_[worker].row(c);
                for (int edge : {-1, height}) {
                    if (edge != y - 1 && edge != y + 1) continue;
                    transposed(edge, beyond);
                    for (int c = 0; c < 3; ++c)
                        for (int x = 0; x < width; ++x) to[c][x] += beyond[c][x];
                }
                for (int c = 0; c < 3; ++c) d_other_.clear_beside(c, y);
                if (l == 0) continue;
                if (!slopes_.empty()) three_rows(slopes_[l - 1], y, 0, slopes);
                kernels_.through(shape_.refinement, kNoLimit, in, slopes, to, 3, whole(width, lanes), unused);
            }
            for (int k = 0; k < kLayer * lanes; ++k) shares_.of(b)[k / lanes] += sums[k];
        });
        shares_.total(gradient + l * kLayer);
        std::swap(d_image_, d_other_);
    }
}

void Synthesis::back(const Planes& channels, const float* parameters, float* gradient, Planes& d_channels,
                     Team& team) {
    refine_back(parameters + net_.parameters(), gradient + net_.parameters(), team);
    shares_.reset(static_cast<int>(bands_.size()), net_.parameters());
    team.each(static_cast<int>(bands_.size()), [&](int b, int worker) {
        Net::Work& work = works_[worker];
        const float *in[kMaxWidth], *d[3];
        float* d_in[kMaxWidth];
        for (int y = bands_[b].begin; y < bands_[b].end; ++y)
            for (int x = 0; x < shape_.width; x += kTile) {
                const int n = whole(std::min(kTile, shape_.width - x), kernels_.block);
                for (int c = 0; c < channels.channels; ++c) {
                    in[c] = channels.row(c, y) + x;
                    d_in[c] = d_channels.row(c, y) + x;
                }
                three_rows(std::as_const(d_image_), y, x, d);
                net_.forward(kernels_, work, in, n, nullptr, true);
                net_.backward(kernels_, work, in, d, n, d_in);
            }
        net_.collect(kernels_, work, shares_.of(b));
    });
    shares_.total(gradient);
}

}  // namespace c3::fit
