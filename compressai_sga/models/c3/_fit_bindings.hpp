// SPDX-License-Identifier: Apache-2.0
// The fused fit for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace c3::fit {

// Adds `Step`, `soften` and `KERNELS` to the module.
void bind(pybind11::module_& m);

}  // namespace c3::fit
