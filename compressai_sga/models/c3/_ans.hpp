// SPDX-License-Identifier: Apache-2.0
// Asymmetric numeral systems with the words of constriction's AnsCoder<u32, u64>, 24 bits of precision: a
// stack, so that the encoder works backwards. `Ans` reads values of rows of cumulative counts; `Recorder`
// stands in its place where the values are known.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "_entropy.hpp"

namespace c3 {

// The stream is no encoder's.
struct Damaged : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Ans {
   public:
    Ans(const uint8_t* data, std::size_t length) : data_(data), length_(length) {
        if (length == 0 || data[length - 1] == 0) throw Damaged("the stream is empty or ends in a zero");
        words_ = (length + 3) / 4;
        state_ = pop();
        if (words_ > 0) state_ = state_ << 32 | pop();
    }

    static constexpr bool kKnown = false;

    // Value of a row: cdf[0] = 0 < ... < cdf[count] = 2^24.
    int code(const uint32_t* cdf, int count, int guess) {
        const uint32_t quantile = static_cast<uint32_t>(state_ & (kTotal - 1));
        int value = guess;
        if (count > 48) {
            value = static_cast<int>(std::upper_bound(cdf, cdf + count, quantile) - cdf) - 1;
        } else {
            while (quantile < cdf[value]) --value;
            while (quantile >= cdf[value + 1]) ++value;
        }
        const uint64_t left = cdf[value], size = cdf[value + 1] - cdf[value];
        state_ = (state_ >> kPrecision) * size + (quantile - left);
        if (state_ < (uint64_t{1} << 32) && words_ > 0) state_ = state_ << 32 | pop();
        return value;
    }

    bool is_empty() const { return state_ == 0 && words_ == 0; }
    uint64_t state() const { return state_; }
    bool at_end() const { return words_ == 0; }

   private:
    uint32_t pop() {
        const std::size_t at = 4 * --words_;
        uint32_t word = 0;
        for (std::size_t i = 0; i < 4; ++i)
            if (at + i < length_) word |= static_cast<uint32_t>(data_[at + i]) << (8 * i);
        return word;
    }

    const uint8_t* data_;
    std::size_t length_, words_;
    uint64_t state_;
};

// In the decoder's place where the latents are known: measures their code, and keeps it for the encoder.
class Recorder {
   public:
    static constexpr bool kKnown = true;

    explicit Recorder(bool keep) : keep_(keep) {}

    int code(const uint32_t* cdf, int, int value) {
        const uint32_t left = cdf[value], size = cdf[value + 1] - left;
        bits_ += kPrecision - std::log2(static_cast<double>(size));
        if (keep_) intervals_.push_back({left, size});
        return value;
    }

    static constexpr bool is_empty() { return false; }
    double bits() const { return bits_; }

    std::vector<uint32_t> words(uint32_t guard) const {
        std::vector<uint32_t> made;
        uint64_t state = guard;
        for (std::size_t i = intervals_.size(); i-- > 0;) {
            const auto [left, size] = intervals_[i];
            if (state >> (64 - kPrecision) >= size) {
                made.push_back(static_cast<uint32_t>(state));
                state >>= 32;
            }
            state = (state / size << kPrecision) | (left + state % size);
        }
        for (; state > 0; state >>= 32) made.push_back(static_cast<uint32_t>(state));
        return made;
    }

   private:
    struct Interval {
        uint32_t left, size;
    };
    bool keep_;
    double bits_ = 0;
    std::vector<Interval> intervals_;
};

}  // namespace c3
