// SPDX-License-Identifier: Apache-2.0
// Work in bands of rows, on any number of threads with the same result to the last bit: what a band computes
// depends on the band alone, and bands are added in their order. Buffers with margins.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace c3::fit {

constexpr int kTile = 256;    // positions at a time: a layer's values stay in the nearest cache
constexpr int kMargin = 96;   // columns beside a plane: a block, the farthest tap, a vector
constexpr int kPixels = 8192;  // about, in a band

// Threads for the time of one step; a process may fork between two.
class Team {
   public:
    explicit Team(int threads) {
        threads_.reserve(threads);  // lack of memory is told while no thread runs
        try {
            for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { work(i); });
        } catch (const std::system_error&) {  // as many as there are
        }
    }
    ~Team() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            over_ = true;
        }
        start_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // task(index, worker) for each index below count; returns when all are done. Tasks must not throw.
    void each(int count, const std::function<void(int, int)>& task) {
        if (threads_.empty() || count < 2) {
            for (int i = 0; i < count; ++i) task(i, 0);
            return;
        }
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            task_ = &task, count_ = count, next_ = 0, busy_ = static_cast<int>(threads_.size()), ++round_;
        }
        start_.notify_all();
        take(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

   private:
    void take(int worker) {
        for (int i = next_++; i < count_; i = next_++) (*task_)(i, worker);
    }
    void work(int worker) {
        for (long seen = 0;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                start_.wait(lock, [&] { return over_ || round_ != seen; });
                if (over_) return;
                seen = round_;
            }
            take(worker);
            const std::lock_guard<std::mutex> lock(mutex_);
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable start_, done_;
    const std::function<void(int, int)>* task_ = nullptr;
    int count_ = 0, busy_ = 0;
    std::atomic<int> next_{0};
    long round_ = 0;
    bool over_ = false;
    std::vector<std::thread> threads_;  // last: they use the others
};

struct Band {
    int begin, end;
};

// Rows in bands of at least `fewest` and an even number, some kPixels positions each.
inline std::vector<Band> bands(int height, int width, int fewest = 16) {
    const int rows = std::max(fewest, kPixels / std::max(width, 1) / 2 * 2);
    std::vector<Band> made;
    for (int y = 0; y < height; y += rows) made.push_back({y, std::min(y + rows, height)});
    return made;
}

inline double sum(const std::vector<double>& values) {
    double found = 0.0;
    for (double value : values) found += value;
    return found;
}

// Channels of one size with zeros around: kMargin columns, `rows` rows.
class Planes {
   public:
    Planes() = default;
    Planes(int channels_, int height_, int width_, int rows)
        : channels(channels_), height(height_), width(width_),
          stride((static_cast<std::size_t>(width_) + 2 * kMargin + 15) / 16 * 16),
          each_((static_cast<std::size_t>(height_) + 2 * rows) * stride), first_(rows * stride + kMargin),
          values_(channels_ * each_, 0.0f) {}

    float* row(int channel, int y) {
        return values_.data() + channel * each_ + first_ + static_cast<std::ptrdiff_t>(stride) * y;
    }
    const float* row(int channel, int y) const { return const_cast<Planes*>(this)->row(channel, y); }
    void clear() { std::fill(values_.begin(), values_.end(), 0.0f); }
    // Zeros in the margins beside a row again.
    void clear_beside(int channel, int y) {
        float* values = row(channel, y);
        std::fill(values - kMargin, values, 0.0f);
        std::fill(values + width, values + stride - kMargin, 0.0f);
    }

    int channels = 0, height = 0, width = 0;
    std::size_t stride = 0;

   private:
    std::size_t each_ = 0, first_ = 0;
    std::vector<float> values_;
};

// Rows of `length` floats with kMargin zeros before and after.
class RowBuffer {
   public:
    RowBuffer() = default;
    RowBuffer(int rows, int length) : stride_(length + 2 * kMargin), values_(rows * stride_, 0.0f) {}
    float* row(int k) { return values_.data() + k * stride_ + kMargin; }
    void clear() { std::fill(values_.begin(), values_.end(), 0.0f); }

   private:
    std::size_t stride_ = 0;
    std::vector<float> values_;
};

// Numbers of which each band has its own; `total` adds them in the order of the bands.
class Shares {
   public:
    void reset(int bands, int count) {
        count_ = count;
        values_.assign(static_cast<std::size_t>(bands) * count, 0.0);
    }
    double* of(int band) { return values_.data() + static_cast<std::size_t>(band) * count_; }
    void total(float* out) const {
        std::vector<double> sums(count_, 0.0);
        for (std::size_t i = 0; i < values_.size(); ++i) sums[i % count_] += values_[i];
        for (int k = 0; k < count_; ++k) out[k] = static_cast<float>(sums[k]);
    }

   private:
    int count_ = 0;
    std::vector<double> values_;
};

}  // namespace c3::fit
