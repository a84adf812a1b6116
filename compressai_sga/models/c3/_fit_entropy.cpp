// SPDX-License-Identifier: Apache-2.0
// See _fit_step.hpp. A tap of a row of latents is a shifted pointer into the padded grid, so no inputs are
// gathered. Only the taps of a coarser grid have rows of their own, in which each of its latents stands twice.
// The derivatives to a row's inputs are added to the latents when the row is complete: neighbouring bands
// share rows then, so first the even bands are computed, then the odd ones.
#include "_fit_step.hpp"

namespace c3::fit {
namespace {

constexpr int kRows = 8;  // above and below a grid; taps reach kMaxReach
constexpr float kClamp = 127.0f;

static_assert(kRows > kMaxReach && kMargin >= kMostBlock + kMaxReach + kMostLanes, "taps stay in the margins");

int whole(int n, int block) { return (n + block - 1) / block * block; }

int clamped(int i, int count) { return std::max(0, std::min(i, count - 1)); }

// The taps of contexts.halve: row or column 2 i - 1 + k with weight kHalves[k].
constexpr float kHalves[4] = {0.125f, 0.375f, 0.375f, 0.125f};

}  // namespace

Entropy::Entropy(const Shape& shape, const Kernels& kernels)
    : shape_(shape), kernels_(kernels), net_(shape.entropy) {
    for (const Place& place : shape.grids) {
        const Planes grid(1, place.height, place.width, kRows);
        for (std::vector<Planes>* planes : {&latents_, &seen_, &d_latents_, &d_seen_}) planes->push_back(grid);
        for (std::vector<Planes>* planes : {&reduced_, &d_reduced_})
            planes->push_back(shape.source == Source::finer ? grid : Planes());
        bands_.push_back(bands(place.height, place.width));
    }
}

void Entropy::load(const float* plane, Team& team) {
    for (std::size_t g = 0; g < latents_.size(); ++g) {
        const Place& place = shape_.grids[g];
        team.each(static_cast<int>(bands_[g].size()), [&](int b, int) {
            for (int y = bands_[g][b].begin; y < bands_[g][b].end; ++y) {
                const float* from = plane + static_cast<std::size_t>(place.y + y) * shape_.plane_width + place.x;
                float *to = latents_[g].row(0, y), *seen = seen_[g].row(0, y);
                for (int x = 0; x < place.width; ++x) {
                    to[x] = from[x];
                    seen[x] = std::max(-kClamp, std::min(from[x], kClamp));
                }
            }
        });
    }
    if (shape_.source == Source::finer)
        for (std::size_t g = 1; g < latents_.size(); ++g) reduce(static_cast<int>(g));
}

void Entropy::reduce(int grid) {
    const Planes& fine = seen_[grid - 1];
    std::vector<float> mixed(fine.width);
    for (int y = 0; y < reduced_[grid].height; ++y) {
        std::fill(mixed.begin(), mixed.end(), 0.0f);
        for (int k = 0; k < 4; ++k) {
            const float* row = fine.row(0, clamped(2 * y - 1 + k, fine.height));
            for (int x = 0; x < fine.width; ++x) mixed[x] += kHalves[k] * row[x];
        }
        float* to = reduced_[grid].row(0, y);
        for (int x = 0; x < reduced_[grid].width; ++x) {
            to[x] = 0.0f;
            for (int k = 0; k < 4; ++k) to[x] += kHalves[k] * mixed[clamped(2 * x - 1 + k, fine.width)];
        }
    }
}

void Entropy::reduce_back(int grid) {
    Planes& fine = d_seen_[grid - 1];
    std::vector<float> mixed(fine.width);
    for (int y = 0; y < reduced_[grid].height; ++y) {
        std::fill(mixed.begin(), mixed.end(), 0.0f);
        const float* from = d_reduced_[grid].row(0, y);
        for (int x = 0; x < reduced_[grid].width; ++x)
            for (int k = 0; k < 4; ++k) mixed[clamped(2 * x - 1 + k, fine.width)] += kHalves[k] * from[x];
        for (int k = 0; k < 4; ++k) {
            float* row = fine.row(0, clamped(2 * y - 1 + k, fine.height));
            for (int x = 0; x < fine.width; ++x) row[x] += kHalves[k] * mixed[x];
        }
    }
}

// The row of a coarser grid that tap dy of row y sees.
static int row_above(int y, int dy) { return (y >> 1) + dy * (y & 1 ? 1 : -1); }

void Entropy::load_other(int grid, int y, Work& work) const {
    const Planes& coarse = seen_[grid + 1];
    const int count = (shape_.grids[grid].width + 1) / 2;
    for (std::size_t t = 0; t < shape_.other.size(); ++t) {
        const auto [dy, dx] = shape_.other[t];
        const float* from = coarse.row(0, row_above(y, dy));
        float* to = work.other.row(static_cast<int>(t));
        for (int x = 0; x < count; ++x) {
            to[2 * x] = from[x - dx];
            to[2 * x + 1] = from[x + dx];
        }
    }
}

double Entropy::row(int grid, int y, Work& work, float weight, bool backward, bool to_latents) {
    const Place& place = shape_.grids[grid];
    const Planes& seen = seen_[grid];
    const int own = static_cast<int>(shape_.own.size()), inputs = net_.inputs();
    const bool coarser = shape_.source == Source::coarser && grid + 1 < static_cast<int>(seen_.size());
    const float* taps[kMaxTaps];
    float* d_taps[kMaxTaps];
    for (int t = 0; t < own; ++t)
        taps[t] = seen.row(0, y + shape_.own[t].dy) + shape_.own[t].dx;
    if (coarser) load_other(grid, y, work);
    for (int t = own; t < inputs; ++t) {
        const Tap& tap = shape_.other[t - own];
        taps[t] = shape_.source == Source::finer ? reduced_[grid].row(0, y + tap.dy) + tap.dx
                                                 : work.other.row(t - own);
    }
    if (to_latents)
        for (int t = 0; t < inputs; ++t) d_taps[t] = work.inputs.row(t);
    const float* latents = latents_[grid].row(0, y);
    float* d_latents = backward ? d_latents_[grid].row(0, y) : nullptr;
    float* outputs[2] = {work.location, work.log2_scale};
    double bits = 0.0;
    for (int x = 0; x < place.width; x += kTile) {
        const int valid = std::min(kTile, place.width - x), n = whole(valid, kernels_.block);
        net_.forward(kernels_, work.net, taps, n, outputs, backward);
        bits += kernels_.laplace(latents + x, work.location, work.log2_scale, n, valid, weight,
                                 backward ? d_latents + x : nullptr);
        if (backward) net_.backward(kernels_, work.net, taps, outputs, n, to_latents ? d_taps : nullptr);
        for (int t = 0; t < inputs; ++t) taps[t] += kTile;
        if (to_latents)
            for (int t = 0; t < inputs; ++t) d_taps[t] += kTile;
    }
    return bits;
}

// Beyond the grid's width, the derivatives of a row are zero.
void Entropy::add_taps(int grid, int y, Work& work) {
    const int own = static_cast<int>(shape_.own.size()), width = shape_.grids[grid].width;
    const auto add_row_of = [&](const std::vector<Tap>& taps, int first, int dy, Planes& to) {
        const float* from[kMaxTaps];
        int count = 0;
        for (std::size_t t = 0; t < taps.size(); ++t)
            if (taps[t].dy == dy) from[count++] = work.inputs.row(first + static_cast<int>(t)) - taps[t].dx;
        // Taps outside of the grid are no latents: their sums are never read.
        if (count) kernels_.add_rows(from, count, to.row(0, y + dy), whole(width, kernels_.lanes));
    };
    for (int dy = -kMaxReach; dy <= 0; ++dy) add_row_of(shape_.own, 0, dy, d_seen_[grid]);
    if (shape_.source == Source::finer)
        for (int dy = -kMaxReach; dy <= kMaxReach; ++dy) add_row_of(shape_.other, own, dy, d_reduced_[grid]);
    if (shape_.source != Source::coarser || grid + 1 == static_cast<int>(seen_.size())) return;
    for (std::size_t t = 0; t < shape_.other.size(); ++t) {
        const auto [dy, dx] = shape_.other[t];
        const float* from = work.inputs.row(own + static_cast<int>(t));
        float* to = d_seen_[grid + 1].row(0, row_above(y, dy));
        for (int x = 0; x < (width + 1) / 2; ++x) to[x] += from[2 * (x + dx)] + from[2 * (x - dx) + 1];
    }
}

double Entropy::run(const float* parameters, Team& team, float weight, float* gradient, bool to_latents) {
    net_.take(parameters);
    const bool backward = gradient != nullptr;
    const int workers = team.size(), grids = static_cast<int>(latents_.size());
    while (static_cast<int>(works_.size()) < workers) {
        const int width = shape_.grids.front().width;
        works_.push_back({net_.work(kernels_),
                          RowBuffer(static_cast<int>(shape_.other.size()), width + 1),
                          RowBuffer(net_.inputs(), width + 1),
                          {},
                          {}});
    }
    if (to_latents)
        for (std::vector<Planes>* planes : {&d_seen_, &d_reduced_})
            for (Planes& plane : *planes) plane.clear();
    std::vector<int> starts{0};
    for (const std::vector<Band>& of_grid : bands_) starts.push_back(starts.back() + static_cast<int>(of_grid.size()));
    std::vector<double> bits(starts.back());
    Shares shares;
    if (backward) shares.reset(starts.back(), net_.parameters());
    const auto compute = [&](int grid, int b, int worker) {
        Work& work = works_[worker];
        for (int y = bands_[grid][b].begin; y < bands_[grid][b].end; ++y) {
            bits[starts[grid] + b] += row(grid, y, work, weight, backward, to_latents);
            if (to_latents) add_taps(grid, y, work);
        }
        if (backward) net_.collect(kernels_, work.net, shares.of(starts[grid] + b));
    };
    for (int grid = 0; grid < grids; ++grid) {
        // A worker's rows hold the last grid's values beyond the end of this one's.
        for (Work& work : works_) {
            work.other.clear();
            work.inputs.clear();
        }
        const int count = static_cast<int>(bands_[grid].size());
        for (int parity = 0; parity < 2; ++parity)
            team.each((count + 1 - parity) / 2, [&](int i, int worker) { compute(grid, 2 * i + parity, worker); });
        if (to_latents && shape_.source == Source::finer && grid > 0) reduce_back(grid);
    }
    if (backward) shares.total(gradient);
    return sum(bits);
}

void Entropy::store_gradient(float* plane, Team& team) const {
    for (std::size_t g = 0; g < latents_.size(); ++g) {
        const Place& place = shape_.grids[g];
        team.each(static_cast<int>(bands_[g].size()), [&](int b, int) {
            for (int y = bands_[g][b].begin; y < bands_[g][b].end; ++y) {
                float* to = plane + static_cast<std::size_t>(place.y + y) * shape_.plane_width + place.x;
                const float *own = d_latents_[g].row(0, y), *seen = d_seen_[g].row(0, y);
                const float* values = latents_[g].row(0, y);
                for (int x = 0; x < place.width; ++x)
                    to[x] = own[x] + (values[x] > -kClamp && values[x] < kClamp ? seen[x] : 0.0f);
            }
        });
    }
}

}  // namespace c3::fit
