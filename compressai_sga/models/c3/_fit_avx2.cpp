// SPDX-License-Identifier: Apache-2.0
// _fit_loops.hpp for x86-64 with AVX2 and FMA.
#include "_fit_kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define C3_FIT_SET avx2
#define C3_FIT_NAME "avx2"
#define C3_FIT_INTRINSIC(name) _mm256_##name
#define C3_FIT_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "_fit_loops.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const c3::fit::Kernels* c3::fit::avx2_kernels() {
    const bool able = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return able ? &avx2::kKernels : nullptr;
}
#else
const c3::fit::Kernels* c3::fit::avx2_kernels() { return nullptr; }
#endif
