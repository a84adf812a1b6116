// SPDX-License-Identifier: Apache-2.0
// _fit_loops.hpp for x86-64 with AVX-512.
#include "_fit_kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define C3_FIT_SET avx512
#define C3_FIT_NAME "avx512"
#define C3_FIT_INTRINSIC(name) _mm512_##name
#define C3_FIT_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#include "_fit_loops.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const c3::fit::Kernels* c3::fit::avx512_kernels() {
    const bool able = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return able ? &avx512::kKernels : nullptr;
}
#else
const c3::fit::Kernels* c3::fit::avx512_kernels() { return nullptr; }
#endif
