// SPDX-License-Identifier: Apache-2.0
// The entropy net in integers and its tables of probabilities, as specified in integer.py and tables.py.
// Constructors throw std::invalid_argument for what no decoder has.
#pragma once

#include <cstdint>
#include <vector>

namespace c3 {

constexpr int kPrecision = 24;
constexpr int kFeatureBits = 8;
constexpr int kLocationBits = 6;
constexpr int kScaleZero = 40;
constexpr int kScales = 101;
constexpr int kScaleBits = 3;
constexpr int kMaxLatent = 32767;
constexpr int kLargest = 32767;
constexpr int kMaxShift = 14;
constexpr int kMaxWidth = 128;
constexpr int kMaxLayers = 8;
constexpr uint64_t kTotal = uint64_t{1} << kPrecision;
constexpr int kBlock = 32;  // positions that the kernels take at a time; buffers are multiples of it

enum class Activation { none = 0, relu = 1, gelu = 2 };

// Cumulative counts, as class Rows in tables.py.
class Tables {
   public:
    Tables(std::vector<uint32_t> cdf, std::vector<int32_t> start, std::vector<int32_t> counts,
           std::vector<int32_t> first, std::vector<int32_t> base, std::vector<int32_t> fraction_bits,
           int escape_row, int coin_row, std::vector<int32_t> gelu_rest);

    std::vector<uint32_t> cdf;
    std::vector<int32_t> start, counts, first, base, fraction_bits;
    int escape_row, coin_row;
    std::vector<int32_t> gelu_rest;
};

struct Layer {
    int outputs = 0;
    int inputs = 0;
    int shift = 0;
    Activation activation = Activation::none;
    std::vector<int16_t> weight;  // (outputs, inputs)
    std::vector<int32_t> bias;    // (outputs)
};

// As class IntegerNet in integer.py; checks the bounds there once more.
class Net {
   public:
    Net(std::vector<Layer> layers, int clamp, bool skip);

    struct Packed {
        int out_pairs, in_pairs, shift;
        Activation activation;
        std::vector<uint32_t> weight;  // (2 out_pairs, in_pairs): two weights of 16 bits each
        std::vector<int32_t> bias;     // (2 out_pairs), with half a unit of the result added
    };

    int width() const { return width_; }
    int clamp() const { return clamp_; }
    bool skip() const { return skip_; }
    const std::vector<Packed>& layers() const { return packed_; }

   private:
    int width_, clamp_;
    bool skip_;
    std::vector<Packed> packed_;
};

// Two 16-bit values of one word, the first in the low half.
inline uint32_t pack(int low, int high) {
    return (static_cast<uint32_t>(low) & 0xffffu) | (static_cast<uint32_t>(high) << 16);
}

// A layer on n positions, a multiple of kBlock. in: a row for each pair of inputs, each entry a pair of
// values of one position. out: likewise, or for the last layer two rows of sums, int32. Net's constructor
// has shown that no sum leaves 32 bits.
using Kernel = void (*)(const Net::Packed& layer, const uint32_t* const* in, int n, const Tables& tables,
                        uint32_t* const* out, bool last);

// The fastest kernel that this processor runs; `portable`: the one without special instructions.
Kernel choose_kernel(bool portable);

}  // namespace c3
