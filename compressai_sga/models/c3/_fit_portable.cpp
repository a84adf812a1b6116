// SPDX-License-Identifier: Apache-2.0
// _fit_loops.hpp for any processor: vectors of 16 bytes, which x86-64 and ARM64 have.
#include "_fit_kernels.hpp"

#if defined(__GNUC__)
#ifdef __SSE2__
#include <immintrin.h>
#define C3_FIT_INTRINSIC(name) _mm_##name
#endif
#define C3_FIT_SET portable
#define C3_FIT_NAME "portable"
#define C3_FIT_BYTES 16
#include "_fit_loops.hpp"

const c3::fit::Kernels* c3::fit::portable_kernels() { return &portable::kKernels; }
#else
const c3::fit::Kernels* c3::fit::portable_kernels() { return nullptr; }
#endif
