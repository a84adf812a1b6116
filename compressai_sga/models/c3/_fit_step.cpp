// SPDX-License-Identifier: Apache-2.0
// See _fit_step.hpp.
#include "_fit_step.hpp"

#include <stdexcept>
#include <string>
#include <utility>

namespace c3::fit {
namespace {

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument("fit: " + what); }

void check_net(const NetShape& net, int inputs, int outputs, const char* name) {
    const std::size_t layers = net.widths.empty() ? 0 : net.widths.size() - 1;
    if (layers < 1 || layers > kMaxLayers || net.residual.size() != layers)
        reject(std::string(name) + ": too few or too many layers");
    for (std::size_t l = 0; l <= layers; ++l)
        if (net.widths[l] < 1 || net.widths[l] > kMaxWidth) reject(std::string(name) + ": a width out of range");
    for (std::size_t l = 0; l < layers; ++l)
        if (net.residual[l] && net.widths[l] != net.widths[l + 1])
            reject(std::string(name) + ": a residual layer must keep its width");
    if (net.widths.front() != inputs || net.widths.back() != outputs)
        reject(std::string(name) + ": inputs or outputs do not fit");
}

const Shape& checked(const Shape& shape) {
    const auto side = [](int n) { return 1 <= n && n <= kMaxSide; };
    if (!side(shape.height) || !side(shape.width)) reject("sides must lie in 1 ... 32768");
    if (shape.plane_height < 1 || shape.plane_width < 1 || shape.plane_height > 4 * kMaxSide ||
        shape.plane_width > 4 * kMaxSide)
        reject("the plane is too small or too large");
    const int grids = static_cast<int>(shape.grids.size());
    if (grids < 1 || grids > 16 || shape.first < 0 || shape.first > 15) reject("1 to 16 grids, from 0 to 15");
    for (int i = 0; i < grids; ++i) {
        const Place& grid = shape.grids[i];
        const long part = 1L << (shape.first + i);
        if (grid.height != (shape.height + part - 1) / part || grid.width != (shape.width + part - 1) / part)
            reject("a grid's size does not follow from the image's");
        if (grid.y < 0 || grid.x < 0 || grid.y > shape.plane_height - grid.height ||
            grid.x > shape.plane_width - grid.width)
            reject("a grid lies outside of the plane");
    }
    const auto near = [](int d) { return -kMaxReach <= d && d <= kMaxReach; };
    for (const Tap& tap : shape.own)
        if (!near(tap.dy) || !near(tap.dx) || tap.dy > 0 || (tap.dy == 0 && tap.dx >= 0))
            reject("a tap that is not decoded yet, or too far");
    for (const Tap& tap : shape.other)
        if (!near(tap.dy) || !near(tap.dx) ||
            (shape.source == Source::coarser && ((tap.dy | tap.dx) & ~1) != 0))
            reject("a tap of another grid that is too far");
    if ((shape.source == Source::none) != shape.other.empty()) reject("other taps exactly with a source");
    check_net(shape.entropy, static_cast<int>(shape.own.size() + shape.other.size()), 2, "entropy net");
    check_net(shape.synthesis, grids, 3, "synthesis");
    if (shape.refinements < 0 || shape.refinements > 15) reject("0 to 15 3x3 layers");
    return shape;
}

}  // namespace

Step::Step(Shape shape, const Kernels& kernels)
    : shape_(std::move(shape)), entropy_(checked(shape_), kernels), upsampling_(shape_, kernels),
      synthesis_(shape_, kernels) {}

Step::Result Step::run(const float* plane, const float* parameters, const float* x, float weight,
                       float* d_plane, float* d_parameters, int threads) {
    Team team(threads);
    const float* taps = parameters + entropy_.parameters();
    const float* synthesis = taps + upsampling_.parameters();
    float* d_taps = d_parameters + entropy_.parameters();
    float* d_synthesis = d_taps + upsampling_.parameters();

    entropy_.load(plane, team);
    const double bits = entropy_.run(parameters, team, weight, d_parameters, d_plane != nullptr);
    if (d_plane) entropy_.store_gradient(d_plane, team);

    upsampling_.run(plane, taps, team);
    const Planes& channels = upsampling_.channels();
    const float scale = 2.0f / (3.0f * static_cast<float>(shape_.height) * static_cast<float>(shape_.width));
    const double squares = synthesis_.run(channels, synthesis, x, false, scale, team);
    synthesis_.back(channels, synthesis, d_synthesis, upsampling_.d_channels(), team);
    upsampling_.back(taps, d_taps, d_plane, team);
    return {squares, bits};
}

void Step::load(const float* plane, int threads) {
    Team team(threads);
    entropy_.load(plane, team);
}

double Step::bits(const float* parameters, int threads) {
    Team team(threads);
    return entropy_.run(parameters, team);
}

double Step::squares(const float* plane, const float* parameters, const float* x, bool clamped, Since since,
                     int threads) {
    Team team(threads);
    const float* taps = parameters + entropy_.parameters();
    const float* synthesis = taps + upsampling_.parameters();
    if (since == Since::refinement) return synthesis_.refine(synthesis, x, clamped, 0.0f, team);
    if (since == Since::latents) upsampling_.run(plane, taps, team);
    return synthesis_.run(upsampling_.channels(), synthesis, x, clamped, 0.0f, team);
}

}  // namespace c3::fit
