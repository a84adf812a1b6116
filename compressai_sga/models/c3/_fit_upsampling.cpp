// SPDX-License-Identifier: Apache-2.0
// See _fit_step.hpp. Channels do not depend on one another, so each is one task.
#include <cstring>

#include "_fit_step.hpp"

namespace c3::fit {
namespace {

int whole(int n, int lanes) { return (n + lanes - 1) / lanes * lanes; }

int halves(int side, int exponent) { return static_cast<int>((side + (1L << exponent) - 1) >> exponent); }

void repeat_columns(float* row, int width) {
    row[-2] = row[-1] = row[0];
    row[width] = row[width + 1] = row[width - 1];
}

// Rows i - 2 ... i + 2 of a channel, those outside being the first or the last.
template <typename P, typename Source>
void five_rows(Source& planes, int channel, int i, P* rows) {
    for (int k = 0; k < 5; ++k)
        rows[k] = planes.row(channel, std::max(0, std::min(i + k - 2, planes.height - 1)));
}

}  // namespace

Upsampling::Upsampling(const Shape& shape, const Kernels& kernels)
    : shape_(shape), kernels_(kernels),
      doublings_(shape.learned ? shape.first + static_cast<int>(shape.grids.size()) - 1 : 0) {
    const int grids = static_cast<int>(shape.grids.size());
    for (int e = 0; e <= doublings_; ++e) {
        const int channels = grids - std::max(0, e - shape.first);
        const int height = halves(shape.height, e), width = halves(shape.width, e);
        levels_.emplace_back(shape.learned ? channels : grids, height, width, 0);
        d_levels_.push_back(levels_.back());
    }
    if (shape.learned) return;
    for (const Place& grid : shape.grids) {
        std::array<Linear, 2> both;
        for (int axis = 0; axis < 2; ++axis) {
            const int from = axis ? grid.width : grid.height, to = axis ? shape.width : shape.height;
            for (int i = 0; i < to; ++i) {
                const double at = std::max((i + 0.5) * from / to - 0.5, 0.0);
                const int low = std::min(static_cast<int>(at), from - 1);
                both[axis].low.push_back(low);
                both[axis].high.push_back(std::min(low + 1, from - 1));
                both[axis].part.push_back(static_cast<float>(at - low));
            }
        }
        linear_.push_back(std::move(both));
    }
}

int Upsampling::first_channel(int exponent) const { return exponent >= shape_.first ? 1 : 0; }

void Upsampling::run(const float* plane, const float* taps, Team& team) {
    while (static_cast<int>(works_.size()) < team.size()) works_.emplace_back(6, shape_.width + 1);
    if (!shape_.learned) {
        team.each(levels_[0].channels, [&](int grid, int) { stretch(grid, plane); });
        return;
    }
    for (int e = doublings_; e >= 0; --e) {
        if (e < doublings_)
            team.each(levels_[e + 1].channels, [&](int c, int worker) {
                enlarge(e, c, taps + 4 * e, works_[worker]);
            });
        if (!first_channel(e)) continue;
        const Place& grid = shape_.grids[e - shape_.first];
        for (int y = 0; y < grid.height; ++y)
            std::memcpy(levels_[e].row(0, y),
                        plane + static_cast<std::size_t>(grid.y + y) * shape_.plane_width + grid.x,
                        grid.width * sizeof(float));
    }
}

void Upsampling::enlarge(int exponent, int channel, const float* taps, RowBuffer& rows) {
    const Planes& coarse = levels_[exponent + 1];
    Planes& fine = levels_[exponent];
    const int n = whole(coarse.width, kernels_.lanes);
    for (int i = 0; i < coarse.height; ++i) {
        const float* x[5];
        five_rows(coarse, channel, i, x);
        kernels_.double_rows(x, taps, n, rows.row(0), rows.row(1));
        for (int k = 0; k < 2 && 2 * i + k < fine.height; ++k) {
            repeat_columns(rows.row(k), coarse.width);
            kernels_.double_columns(rows.row(k), taps, n, fine.row(channel + first_channel(exponent), 2 * i + k));
        }
    }
}

void Upsampling::enlarge_back(int exponent, int channel, const float* taps, RowBuffer& rows,
                              double* gradient) {
    const Planes &coarse = levels_[exponent + 1], &d_fine = d_levels_[exponent];
    Planes& d_coarse = d_levels_[exponent + 1];
    const int w = coarse.width, n = whole(w, kernels_.lanes);
    float sums[4 * kMostLanes] = {};
    rows.clear();
    for (int y = 0; y < d_coarse.height; ++y)
        std::memset(d_coarse.row(channel, y), 0, n * sizeof(float));
    for (int i = 0; i < coarse.height; ++i) {
        const float* x[5];
        float* d[5];
        five_rows(coarse, channel, i, x);
        five_rows(d_coarse, channel, i, d);
        kernels_.double_rows(x, taps, n, rows.row(0), rows.row(1));
        for (int k = 0; k < 2; ++k) {
            float* to = rows.row(2 + k);
            if (2 * i + k >= d_fine.height) {
                std::memset(to, 0, n * sizeof(float));
                continue;
            }
            repeat_columns(rows.row(k), w);
            kernels_.double_columns_back(d_fine.row(channel + first_channel(exponent), 2 * i + k),
                                         rows.row(k), taps, n, d_fine.width, rows.row(4), rows.row(5), to,
                                         sums);
            to[0] += to[-1] + to[-2];
            to[w - 1] += to[w] + to[w + 1];
            std::fill(to + w, to + n, 0.0f);
        }
        kernels_.double_rows_back(rows.row(2), rows.row(3), x, taps, n, d, sums);
    }
    for (int k = 0; k < 4 * kernels_.lanes; ++k) gradient[k / kernels_.lanes] += sums[k];
}

void Upsampling::back(const float* taps, float* gradient, float* plane, Team& team) {
    const auto add = [&](int exponent, int grid_index) {
        const Place& grid = shape_.grids[grid_index];
        for (int y = 0; plane && y < grid.height; ++y) {
            float* to = plane + static_cast<std::size_t>(grid.y + y) * shape_.plane_width + grid.x;
            const float* from = d_levels_[exponent].row(0, y);
            for (int x = 0; x < grid.width; ++x) to[x] += from[x];
        }
    };
    if (!shape_.learned) {
        if (plane) team.each(levels_[0].channels, [&](int grid, int) { stretch_back(grid, plane); });
        return;
    }
    for (int e = 0; e <= doublings_; ++e) {
        if (first_channel(e)) add(e, e - shape_.first);
        if (e == doublings_) continue;
        shares_.reset(levels_[e + 1].channels, 4);
        team.each(levels_[e + 1].channels, [&](int c, int worker) {
            enlarge_back(e, c, taps + 4 * e, works_[worker], shares_.of(c));
        });
        shares_.total(gradient + 4 * e);
    }
}

void Upsampling::stretch(int grid, const float* plane) {
    const Place& place = shape_.grids[grid];
    const auto& [rows, columns] = linear_[grid];
    std::vector<float> mixed(place.width);
    for (int y = 0; y < shape_.height; ++y) {
        const float* low = plane + static_cast<std::size_t>(place.y + rows.low[y]) * shape_.plane_width + place.x;
        const float* high =
            plane + static_cast<std::size_t>(place.y + rows.high[y]) * shape_.plane_width + place.x;
        for (int x = 0; x < place.width; ++x) mixed[x] = low[x] + rows.part[y] * (high[x] - low[x]);
        float* to = levels_[0].row(grid, y);
        for (int x = 0; x < shape_.width; ++x) {
            const float a = mixed[columns.low[x]], b = mixed[columns.high[x]];
            to[x] = a + columns.part[x] * (b - a);
        }
    }
}

void Upsampling::stretch_back(int grid, float* plane) {
    const Place& place = shape_.grids[grid];
    const auto& [rows, columns] = linear_[grid];
    std::vector<float> mixed(place.width);
    for (int y = 0; y < shape_.height; ++y) {
        std::fill(mixed.begin(), mixed.end(), 0.0f);
        const float* from = d_levels_[0].row(grid, y);
        for (int x = 0; x < shape_.width; ++x) {
            const float part = columns.part[x] * from[x];
            mixed[columns.low[x]] += from[x] - part;
            mixed[columns.high[x]] += part;
        }
        float* low = plane + static_cast<std::size_t>(place.y + rows.low[y]) * shape_.plane_width + place.x;
        float* high = plane + static_cast<std::size_t>(place.y + rows.high[y]) * shape_.plane_width + place.x;
        for (int x = 0; x < place.width; ++x) {
            low[x] += (1.0f - rows.part[y]) * mixed[x];
            high[x] += rows.part[y] * mixed[x];
        }
    }
}

}  // namespace c3::fit
