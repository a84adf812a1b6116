// SPDX-License-Identifier: Apache-2.0
// A step of C3's fit for one image: loss and all gradients, fused, in float32. What it computes is specified
// in network.py, and the parts' classes follow its functions:
//   Entropy     context_of, entropy_net, latent_bits       (_fit_entropy.cpp)
//   Upsampling  upsample                                   (_fit_upsampling.cpp)
//   Synthesis   synthesise, and the squared error           (_fit_synthesis.cpp)
// A part owns its buffers; nothing is allocated during a step but some numbers. All work is done in bands
// (_fit_bands.hpp), so threads do not change the result.
//
// Memory: some 25 floats a pixel and 8 a latent; no layer's values are held for more than a tile.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "_decoder.hpp"
#include "_fit_bands.hpp"
#include "_fit_kernels.hpp"
#include "_fit_net.hpp"

namespace c3::fit {

// Where a grid lies in the plane that the optimiser moves (grid_plane.py).
struct Place {
    int y, x, height, width;
};

struct Shape {
    int height, width;              // of the image
    int plane_height, plane_width;
    std::vector<Place> grids;       // the finest first
    int first;                      // its exponent
    std::vector<Tap> own, other;
    Source source;
    NetShape entropy, synthesis;
    bool learned;                   // upsampling
    int refinements;
    Activation refinement;          // of all of these but the last
};


class Entropy {
   public:
    Entropy(const Shape& shape, const Kernels& kernels);

    int parameters() const { return net_.parameters(); }
    // Takes the grids out of a plane.
    void load(const float* plane, Team& team);
    // Bits of all latents. With a `gradient` of the net also the derivatives of weight * bits, to it and, if
    // `to_latents`, to the latents (see `add_gradient`).
    double run(const float* parameters, Team& team, float weight = 0.0f, float* gradient = nullptr,
               bool to_latents = false);
    // The latents' derivatives of the last run, to their places in a plane.
    void store_gradient(float* plane, Team& team) const;

   private:
    struct Work {
        Net::Work net;
        RowBuffer other, inputs;  // taps of a coarser grid; derivatives to all taps
        float location[kTile + kMostLanes], log2_scale[kTile + kMostLanes];
    };

    double row(int grid, int y, Work& work, float weight, bool backward, bool to_latents);
    void load_other(int grid, int y, Work& work) const;
    void add_taps(int grid, int y, Work& work);
    void reduce(int grid);
    void reduce_back(int grid);

    const Shape& shape_;
    const Kernels& kernels_;
    Net net_;
    // Of each grid: latents, clamped ones, those of the finer grid at half the size; and their derivatives.
    std::vector<Planes> latents_, seen_, reduced_, d_latents_, d_seen_, d_reduced_;
    std::vector<std::vector<Band>> bands_;
    std::vector<Work> works_;
};

class Upsampling {
   public:
    Upsampling(const Shape& shape, const Kernels& kernels);

    int parameters() const { return shape_.learned ? 4 * doublings_ : 0; }
    void run(const float* plane, const float* taps, Team& team);
    const Planes& channels() const { return levels_.front(); }
    // The caller fills these; they need zeros beside their rows.
    Planes& d_channels() { return d_levels_.front(); }
    // Derivatives to the taps, and added to those of the latents in `plane`, unless it is null.
    void back(const float* taps, float* gradient, float* plane, Team& team);

   private:
    struct Linear {  // where the pixels of a row or column lie in a grid
        std::vector<int> low, high;
        std::vector<float> part;
    };

    void stretch(int grid, const float* plane);
    void stretch_back(int grid, float* plane);
    void enlarge(int exponent, int channel, const float* taps, RowBuffer& rows);
    void enlarge_back(int exponent, int channel, const float* taps, RowBuffer& rows, double* gradient);
    int first_channel(int exponent) const;

    const Shape& shape_;
    const Kernels& kernels_;
    int doublings_;
    // At 2^-exponent of the image's size, all channels from that size on; bilinear: at full size only.
    std::vector<Planes> levels_, d_levels_;
    std::vector<std::array<Linear, 2>> linear_;
    std::vector<RowBuffer> works_;
    Shares shares_;
};

class Synthesis {
   public:
    Synthesis(const Shape& shape, const Kernels& kernels);

    int parameters() const { return net_.parameters() + 84 * shape_.refinements; }
    // The sum of (image - x)^2, x being (3, height, width). With a scale, the derivatives of scale / 2 times
    // it are kept for `back`. `clamped`: of the image within [0, 1].
    double run(const Planes& channels, const float* parameters, const float* x, bool clamped, float scale,
               Team& team);
    // The same from the first 3x3 layer on, with what the last call of `run` gave to it.
    double refine(const float* parameters, const float* x, bool clamped, float scale, Team& team);
    // The derivatives to the parameters and to the channels.
    void back(const Planes& channels, const float* parameters, float* gradient, Planes& d_channels, Team& team);

   private:
    void pointwise(const Planes& channels, Team& team);
    void refine_back(const float* layers, float* gradient, Team& team);

    const Shape& shape_;
    const Kernels& kernels_;
    Net net_;
    std::vector<Band> bands_;
    std::vector<Planes> images_;  // what each 3x3 layer reads
    std::vector<Planes> slopes_;  // of the activations between
    Planes d_image_, d_other_;
    std::vector<Net::Work> works_;
    std::vector<RowBuffer> rows_;
    Shares shares_;
};

// What the search for the weights' steps may keep of the image's last evaluation.
enum class Since { latents = 0, channels = 1, refinement = 2 };

// All of it.
class Step {
   public:
    // Throws std::invalid_argument for a shape that no fit has.
    Step(Shape shape, const Kernels& kernels);

    struct Result {
        double squares, bits;
    };

    int parameters() const { return entropy_.parameters() + upsampling_.parameters() + synthesis_.parameters(); }
    const Shape& shape() const { return shape_; }

    // For latents in steps (a plane), all nets' parameters in the order of config.layout and x (3, height,
    // width): the squared error, the bits of the latents, and the derivatives of their mean over the channels'
    // pixels + weight * bits. `d_plane` is left alone outside of the grids; null: not needed.
    Result run(const float* plane, const float* parameters, const float* x, float weight, float* d_plane,
               float* d_parameters, int threads);
    // Bits of the latents alone; the plane that was `load`ed last.
    void load(const float* plane, int threads);
    double bits(const float* parameters, int threads);
    // The squared error alone, of the image within [0, 1] if `clamped`.
    double squares(const float* plane, const float* parameters, const float* x, bool clamped, Since since,
                   int threads);

   private:
    Shape shape_;
    Entropy entropy_;
    Upsampling upsampling_;
    Synthesis synthesis_;
};

}  // namespace c3::fit
