// SPDX-License-Identifier: Apache-2.0
// The entropy net in integers; see _entropy.hpp and integer.py. Values are packed in pairs, two of 16 bits to
// a word, and weights alike, so that one instruction of AVX2 multiplies 16 of them and adds the pairs, and one
// that every x86-64 processor has 8. Right shifts of negative numbers round down, as with every compiler there
// is (and in C++20's text).
#include "_entropy.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define C3_AVX2 1
#include <immintrin.h>
#endif

#if defined(__SSE2__) || defined(_M_X64)
#define C3_SSE2 1
#include <emmintrin.h>
#endif

namespace c3 {
namespace {

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument(what); }

// --- One layer on blocks of positions -------------------------------------------------------------------

int act(int a, const Net::Packed& layer, const Tables& tables) {
    a = std::min(std::max(a >> layer.shift, -kLargest), kLargest);
    if (layer.activation == Activation::none) return a;
    int result = std::max(a, 0);
    if (layer.activation == Activation::gelu) {
        const int end = static_cast<int>(tables.gelu_rest.size()) - 1;
        result -= tables.gelu_rest[static_cast<std::size_t>(std::min(std::abs(a), end))];
    }
    return result;
}

// Adds an output's products at kBlock positions.
void add_products(const uint32_t* weight, int pairs, const uint32_t* const* in, int start, int32_t* sum) {
#ifdef C3_SSE2
    constexpr int kVectors = kBlock / 4;
    __m128i* to = reinterpret_cast<__m128i*>(sum);
    __m128i sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = _mm_loadu_si128(to + v);
    for (int p = 0; p < pairs; ++p) {
        const __m128i w = _mm_set1_epi32(static_cast<int>(weight[p]));
        const __m128i* x = reinterpret_cast<const __m128i*>(in[p] + start);
        for (int v = 0; v < kVectors; ++v)
            sums[v] = _mm_add_epi32(sums[v], _mm_madd_epi16(_mm_loadu_si128(x + v), w));
    }
    for (int v = 0; v < kVectors; ++v) _mm_storeu_si128(to + v, sums[v]);
#else
    for (int p = 0; p < pairs; ++p) {
        const int32_t w0 = static_cast<int16_t>(weight[p]), w1 = static_cast<int16_t>(weight[p] >> 16);
        const uint32_t* x = in[p] + start;
        for (int i = 0; i < kBlock; ++i)
            sum[i] += w0 * static_cast<int16_t>(x[i]) + w1 * static_cast<int16_t>(x[i] >> 16);
    }
#endif
}

void layer_portable(const Net::Packed& layer, const uint32_t* const* in, int n, const Tables& tables,
                    uint32_t* const* out, bool last) {
    for (int start = 0; start < n; start += kBlock) {
        for (int o = 0; o < layer.out_pairs; ++o) {
            int32_t sums[2][kBlock];
            for (int k = 0; k < 2; ++k) {
                const uint32_t* weight = layer.weight.data() + (2 * o + k) * layer.in_pairs;
                int32_t* sum = sums[k];
                std::fill(sum, sum + kBlock, layer.bias[static_cast<std::size_t>(2 * o + k)]);
                add_products(weight, layer.in_pairs, in, start, sum);
            }
            if (last) {
                std::memcpy(out[0] + start, sums[0], sizeof sums[0]);
                std::memcpy(out[1] + start, sums[1], sizeof sums[1]);
            } else {
                for (int i = 0; i < kBlock; ++i)
                    out[o][start + i] = pack(act(sums[0][i], layer, tables), act(sums[1][i], layer, tables));
            }
        }
    }
}

#ifdef C3_AVX2
__attribute__((target("avx2"))) inline __m256i act_avx2(__m256i a, int shift, Activation activation,
                                                         const int32_t* rest, int rest_end) {
    a = _mm256_sra_epi32(a, _mm_cvtsi32_si128(shift));
    a = _mm256_max_epi32(_mm256_min_epi32(a, _mm256_set1_epi32(kLargest)), _mm256_set1_epi32(-kLargest));
    if (activation == Activation::none) return a;
    const __m256i positive = _mm256_max_epi32(a, _mm256_setzero_si256());
    if (activation == Activation::relu) return positive;
    const __m256i at = _mm256_min_epi32(_mm256_abs_epi32(a), _mm256_set1_epi32(rest_end));
    return _mm256_sub_epi32(positive, _mm256_i32gather_epi32(rest, at, 4));
}

__attribute__((target("avx2"))) void layer_avx2(const Net::Packed& layer, const uint32_t* const* in, int n,
                                                const Tables& tables, uint32_t* const* out, bool last) {
    const int32_t* rest = tables.gelu_rest.data();
    const int rest_end = static_cast<int>(tables.gelu_rest.size()) - 1;
    const __m256i low = _mm256_set1_epi32(0xffff);
    constexpr int kVectors = kBlock / 8;
    for (int start = 0; start < n; start += kBlock) {
        for (int o = 0; o < layer.out_pairs; ++o) {
            const uint32_t* weight0 = &layer.weight[static_cast<std::size_t>(2 * o * layer.in_pairs)];
            const uint32_t* weight1 = weight0 + layer.in_pairs;
            __m256i sum0[kVectors], sum1[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                sum0[v] = _mm256_set1_epi32(layer.bias[static_cast<std::size_t>(2 * o)]);
                sum1[v] = _mm256_set1_epi32(layer.bias[static_cast<std::size_t>(2 * o + 1)]);
            }
            for (int p = 0; p < layer.in_pairs; ++p) {
                const __m256i w0 = _mm256_set1_epi32(static_cast<int>(weight0[p]));
                const __m256i w1 = _mm256_set1_epi32(static_cast<int>(weight1[p]));
                const __m256i* x = reinterpret_cast<const __m256i*>(in[p] + start);
                for (int v = 0; v < kVectors; ++v) {
                    const __m256i value = _mm256_loadu_si256(x + v);
                    sum0[v] = _mm256_add_epi32(sum0[v], _mm256_madd_epi16(value, w0));
                    sum1[v] = _mm256_add_epi32(sum1[v], _mm256_madd_epi16(value, w1));
                }
            }
            for (int v = 0; v < kVectors; ++v) {
                const int at = start + 8 * v;
                if (last) {
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[0] + at), sum0[v]);
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[1] + at), sum1[v]);
                } else {
                    const __m256i a = act_avx2(sum0[v], layer.shift, layer.activation, rest, rest_end);
                    const __m256i b = act_avx2(sum1[v], layer.shift, layer.activation, rest, rest_end);
                    _mm256_storeu_si256(
                        reinterpret_cast<__m256i*>(out[o] + at),
                        _mm256_or_si256(_mm256_and_si256(a, low), _mm256_slli_epi32(b, 16)));
                }
            }
        }
    }
}
#endif

}  // namespace

Kernel choose_kernel(bool portable) {
#ifdef C3_AVX2
    if (!portable && __builtin_cpu_supports("avx2")) return layer_avx2;
#endif
    (void)portable;
    return layer_portable;
}

// --- Checked descriptions -------------------------------------------------------------------------------

Tables::Tables(std::vector<uint32_t> cdf_, std::vector<int32_t> start_, std::vector<int32_t> counts_,
               std::vector<int32_t> first_, std::vector<int32_t> base_, std::vector<int32_t> fraction_bits_,
               int escape_row_, int coin_row_, std::vector<int32_t> gelu_rest_)
    : cdf(std::move(cdf_)), start(std::move(start_)), counts(std::move(counts_)), first(std::move(first_)),
      base(std::move(base_)), fraction_bits(std::move(fraction_bits_)), escape_row(escape_row_),
      coin_row(coin_row_), gelu_rest(std::move(gelu_rest_)) {
    const int64_t rows = static_cast<int64_t>(start.size());
    if (counts.size() != start.size() || first.size() != start.size() || base.size() != kScales ||
        fraction_bits.size() != kScales || gelu_rest.empty() || gelu_rest.size() > kLargest)
        reject("tables: arrays of different length");
    for (std::size_t r = 0; r < start.size(); ++r) {
        const int64_t begin = start[r], end = begin + counts[r];
        if (begin < 0 || counts[r] < 2 || end >= static_cast<int64_t>(cdf.size()) || first[r] < -(1 << 20) ||
            first[r] > 1 << 20)
            reject("tables: a row out of bounds");
        if (cdf[static_cast<std::size_t>(begin)] != 0 || cdf[static_cast<std::size_t>(end)] != kTotal)
            reject("tables: a row does not go from 0 to 2^24");
        for (int64_t i = begin; i < end; ++i)
            if (cdf[static_cast<std::size_t>(i)] >= cdf[static_cast<std::size_t>(i) + 1])
                reject("tables: a row does not rise");
    }
    for (std::size_t s = 0; s < kScales; ++s)
        if (fraction_bits[s] < 0 || fraction_bits[s] > kLocationBits || base[s] < 0 ||
            base[s] + (int64_t{1} << fraction_bits[s]) > rows)
            reject("tables: a scale without rows");
    for (int r : {escape_row, coin_row})
        if (r < 0 || r >= rows) reject("tables: no escapes");
    if (counts[static_cast<std::size_t>(escape_row)] > 18 || counts[static_cast<std::size_t>(coin_row)] != 2)
        reject("tables: escapes of another size");
    for (int32_t rest : gelu_rest)
        if (rest < 0 || rest > kLargest) reject("tables: GELU out of range");
}

Net::Net(std::vector<Layer> layers, int clamp, bool skip) : width_(0), clamp_(clamp), skip_(skip) {
    if (layers.empty() || layers.size() > kMaxLayers || (skip && layers.size() < 2))
        reject("net: too few or too many layers");
    if (clamp < 1 || clamp > 127) reject("net: the clamp must lie in 1 ... 127");
    width_ = layers[0].inputs;
    const int64_t limit = int64_t{clamp} << kFeatureBits;
    std::vector<int64_t> bounds(static_cast<std::size_t>(std::max(width_, 0)), limit);
    const std::vector<int64_t> first = bounds;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const Layer& layer = layers[i];
        const bool last = i + 1 == layers.size();
        const int before = static_cast<int>(bounds.size());
        if (last && skip) bounds.insert(bounds.end(), first.begin(), first.end());
        if (layer.inputs != static_cast<int>(bounds.size()) || before < 1 || before > kMaxWidth ||
            width_ > kMaxWidth || layer.outputs < 1 || layer.outputs > kMaxWidth || layer.shift < 0 ||
            layer.shift > kMaxShift || (last && layer.outputs != 2) ||
            layer.weight.size() != static_cast<std::size_t>(layer.inputs) * layer.outputs ||
            layer.bias.size() != static_cast<std::size_t>(layer.outputs))
            reject("net: layer " + std::to_string(i) + " has a wrong size");
        // Where the inputs' columns begin: hidden values, then (with a skip) a new pair.
        const int hidden_pairs = (before + 1) / 2;
        Packed packed;
        packed.shift = layer.shift;
        packed.activation = layer.activation;
        packed.out_pairs = (layer.outputs + 1) / 2;
        packed.in_pairs = hidden_pairs + (last && skip ? (width_ + 1) / 2 : 0);
        packed.weight.assign(static_cast<std::size_t>(2 * packed.out_pairs) * packed.in_pairs, 0);
        packed.bias.assign(static_cast<std::size_t>(2 * packed.out_pairs), 0);
        std::vector<int64_t> reached;
        for (int o = 0; o < layer.outputs; ++o) {
            const int16_t* row = &layer.weight[static_cast<std::size_t>(o) * layer.inputs];
            int64_t worst = std::abs(int64_t{layer.bias[static_cast<std::size_t>(o)]}) +
                            (int64_t{1} << (layer.shift + kFeatureBits - kScaleBits - 1));
            for (int j = 0; j < layer.inputs; ++j) {
                const int weight = row[j];
                if (weight < -kLargest) reject("net: a weight out of range");
                worst += std::abs(weight) * bounds[static_cast<std::size_t>(j)];
                const int column = j < before ? j : 2 * hidden_pairs + (j - before);
                uint32_t& pair = packed.weight[static_cast<std::size_t>(o) * packed.in_pairs + column / 2];
                pair |= column & 1 ? pack(0, weight) : pack(weight, 0);
            }
            if (worst >= int64_t{1} << 31)
                reject("net: the sums of layer " + std::to_string(i) + " could leave 32 bits");
            reached.push_back(std::min<int64_t>(kLargest, (worst >> layer.shift) + 1));
            const int half = last ? 0 : 1 << layer.shift >> 1;
            packed.bias[static_cast<std::size_t>(o)] = layer.bias[static_cast<std::size_t>(o)] + half;
        }
        bounds = reached;
        packed_.push_back(std::move(packed));
    }
}

}  // namespace c3
