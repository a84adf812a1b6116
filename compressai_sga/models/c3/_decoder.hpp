// SPDX-License-Identifier: Apache-2.0
// The decoder (and encoder) of C3's latents in C++17, which needs the standard library only. What it computes
// is specified in contexts.py, integer.py, tables.py and latent_codec.py; the Python decoder gives the
// same latents. Every function checks its arguments and throws std::invalid_argument where they are no
// decoder's, and Damaged where the stream cannot be an encoder's; no stream leads out of a buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "_ans.hpp"
#include "_entropy.hpp"

namespace c3 {

constexpr int kMaxReach = 7;
constexpr int kMaxTaps = kMaxWidth;
constexpr int kMaxSide = 1 << 15;

enum class Source { none = 0, coarser = 1, finer = 2 };

struct Tap {
    int dy, dx;
};

struct Size {
    int height, width;
};

class Context {
   public:
    Context(std::vector<Tap> own, std::vector<Tap> other, Source source, int slope);

    std::vector<Tap> own, other;
    Source source;
    int slope;
    int look_back;  // fronts
};

// Decodes all grids. `nets[i]` belongs to grid i; `grids[i]` points to height * width int32 of it.
// Returns the coder's last state, which the caller compares with the latents' checksum.
// `portable` keeps to plain C++ where faster instructions are there.
uint64_t decode(const uint8_t* data, std::size_t length, const std::vector<Size>& sizes,
                const std::vector<const Net*>& nets, const Context& context, const Tables& tables,
                const std::vector<int32_t*>& grids, bool portable);

// The same walk over known latents: adds the code length of each grid to `bits` and, where `words` is not
// null, writes the coder's words with `guard` as its first state.
void encode(const std::vector<Size>& sizes, const std::vector<const Net*>& nets, const Context& context,
            const Tables& tables, const std::vector<const int32_t*>& grids, uint32_t guard, bool portable,
            std::vector<double>& bits, std::vector<uint32_t>* words);

}  // namespace c3
