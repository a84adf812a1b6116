// SPDX-License-Identifier: Apache-2.0
// _fit_step.hpp for Python, part of the module `_native`. Arrays are checked here; none outlives its call.
#include "_fit_bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "_fit_step.hpp"

namespace py = pybind11;

namespace c3::fit {
namespace {

using Array = py::array_t<float, py::array::c_style>;
using Pairs = std::vector<std::pair<int, int>>;
using NetArguments = std::tuple<std::vector<int>, std::vector<bool>, bool, int>;

constexpr int kMostThreads = 256;
constexpr float kHiddenLimit = static_cast<float>(kLargest) / (1 << kFeatureBits);  // as network.py

// Those of this processor, the fastest first.
std::vector<const Kernels*> able() {
    std::vector<const Kernels*> found;
    for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), portable_kernels()})
        if (kernels) found.push_back(kernels);
    return found;
}

const Kernels& kernels_of(const std::string& name) {
    for (const Kernels* kernels : able())
        if (name == kernels->name) return *kernels;
    throw std::invalid_argument("fit: this processor or build has no kernels called " + name);
}

Activation activation_of(int number) {
    if (number < 0 || number > 2) throw std::invalid_argument("fit: no such activation");
    return static_cast<Activation>(number);
}

NetShape net_of(const NetArguments& net, float limit) {
    const auto& [widths, residual, skip, activation] = net;
    return {widths, residual, skip, activation_of(activation), limit};
}

std::vector<Tap> taps_of(const Pairs& pairs) {
    std::vector<Tap> made;
    for (const auto& [dy, dx] : pairs) made.push_back({dy, dx});
    return made;
}

// An argument without a conversion.
const float* values(const Array& array, const std::vector<py::ssize_t>& shape, const char* name) {
    const std::vector<py::ssize_t> found(array.shape(), array.shape() + array.ndim());
    if (found != shape) throw std::invalid_argument(std::string("fit: ") + name + " has another shape");
    return array.data();
}

int checked_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("fit: threads must be 1 or more");
    return std::min(threads, kMostThreads);
}

class BoundStep {
   public:
    BoundStep(std::pair<int, int> size, std::pair<int, int> plane,
              const std::vector<std::tuple<int, int, int, int>>& places, int first, const Pairs& own,
              const Pairs& other, int source, const NetArguments& entropy, const NetArguments& synthesis,
              bool learned, int refinements, int refinement, const std::string& kernels)
        : step_(shape_of(size, plane, places, first, own, other, source, entropy, synthesis, learned,
                         refinements, refinement),
                kernels_of(kernels)) {}

    py::tuple run(const Array& plane, const Array& parameters, const Array& x, float weight, bool to_latents,
                  int threads) {
        const float *latents = plane_values(plane), *nets = parameter_values(parameters);
        const float* image = image_values(x);
        Array d_parameters(step_.parameters());
        py::object d_plane = py::none();
        float *to_plane = nullptr, *to_parameters = d_parameters.mutable_data();
        if (to_latents) {
            Array made({shape().plane_height, shape().plane_width});
            to_plane = made.mutable_data();
            std::fill(to_plane, to_plane + made.size(), 0.0f);
            d_plane = std::move(made);
        }
        threads = checked_threads(threads);
        Step::Result result{};
        {
            py::gil_scoped_release release;
            result = step_.run(latents, nets, image, weight, to_plane, to_parameters, threads);
        }
        return py::make_tuple(result.squares, result.bits, d_plane, d_parameters);
    }

    void load(const Array& plane, int threads) {
        const float* latents = plane_values(plane);
        threads = checked_threads(threads);
        py::gil_scoped_release release;
        step_.load(latents, threads);
    }

    double bits(const Array& parameters, int threads) {
        const float* nets = parameter_values(parameters);
        threads = checked_threads(threads);
        py::gil_scoped_release release;
        return step_.bits(nets, threads);
    }

    double squares(const Array& plane, const Array& parameters, const Array& x, bool clamped, int since,
                   int threads) {
        const float *latents = plane_values(plane), *nets = parameter_values(parameters);
        const float* image = image_values(x);
        if (since < 0 || since > 2) throw std::invalid_argument("fit: no such stage");
        threads = checked_threads(threads);
        py::gil_scoped_release release;
        return step_.squares(latents, nets, image, clamped, static_cast<Since>(since), threads);
    }

   private:
    static Shape shape_of(std::pair<int, int> size, std::pair<int, int> plane,
                          const std::vector<std::tuple<int, int, int, int>>& places, int first,
                          const Pairs& own, const Pairs& other, int source, const NetArguments& entropy,
                          const NetArguments& synthesis, bool learned, int refinements, int refinement) {
        if (source < 0 || source > 2) throw std::invalid_argument("fit: no such source");
        Shape made{};
        made.height = size.first, made.width = size.second;
        made.plane_height = plane.first, made.plane_width = plane.second;
        for (const auto& [y, x, height, width] : places) made.grids.push_back({y, x, height, width});
        made.first = first;
        made.own = taps_of(own), made.other = taps_of(other);
        made.source = static_cast<Source>(source);
        made.entropy = net_of(entropy, kHiddenLimit);
        made.synthesis = net_of(synthesis, std::numeric_limits<float>::infinity());
        made.learned = learned;
        made.refinements = refinements;
        made.refinement = activation_of(refinement);
        return made;
    }

    const Shape& shape() const { return step_.shape(); }
    const float* plane_values(const Array& plane) const {
        return values(plane, {shape().plane_height, shape().plane_width}, "the plane");
    }
    const float* parameter_values(const Array& parameters) const {
        return values(parameters, {step_.parameters()}, "the parameters");
    }
    const float* image_values(const Array& x) const {
        return values(x, {3, shape().height, shape().width}, "x");
    }

    Step step_;
};

py::tuple soften(const Array& value, const Array& gain, const Array& noise, float temperature,
                 const std::string& kernels) {
    const std::vector<py::ssize_t> shape(value.shape(), value.shape() + value.ndim());
    const float *in = value.data(), *scale = values(gain, shape, "the gain");
    const float* draws = values(noise, shape, "the noise");
    if (!(temperature > 0.0f)) throw std::invalid_argument("fit: the temperature must be > 0");
    const Kernels& chosen = kernels_of(kernels);
    Array out(shape), slope(shape);
    const std::size_t n = static_cast<std::size_t>(value.size());
    float *to = out.mutable_data(), *to_slope = slope.mutable_data();
    {
        py::gil_scoped_release release;
        chosen.soften(in, scale, draws, temperature, n, to, to_slope);
    }
    return py::make_tuple(out, slope);
}

void adam(Array& value, const Array& gradient, Array& mean, Array& square, float first, float second,
          float rate, float epsilon, const std::string& kernels) {
    const std::vector<py::ssize_t> shape(value.shape(), value.shape() + value.ndim());
    const float* slope = values(gradient, shape, "the gradient");
    values(mean, shape, "the mean");
    values(square, shape, "the mean square");
    const Kernels& chosen = kernels_of(kernels);
    const std::size_t n = static_cast<std::size_t>(value.size());
    float *to = value.mutable_data(), *to_mean = mean.mutable_data(), *to_square = square.mutable_data();
    py::gil_scoped_release release;
    chosen.adam(to, slope, to_mean, to_square, {first, second, rate, epsilon}, n);
}

using Places = py::array_t<int32_t, py::array::c_style>;
using SoapArrays = std::tuple<Places, Array, Array, Array, Array, Array>;

// Places and what they say: (rows, columns), squares of that shape, L, R, U, V.
void soap(Array& value, const Array& gradient, Array& mean, std::vector<SoapArrays>& matrices, float first,
          float second, float rate, float epsilon, const std::string& kernels) {
    if (value.ndim() != 1) throw std::invalid_argument("fit: the parameters must be flat");
    const py::ssize_t count = value.size();
    const float* slope = values(gradient, {count}, "the gradient");
    values(mean, {count}, "the mean");
    std::vector<SoapMatrix> made;
    py::ssize_t longest = 1;
    for (auto& [places, squares, left, right, left_basis, right_basis] : matrices) {
        if (places.ndim() != 2) throw std::invalid_argument("fit: places must be a matrix");
        const py::ssize_t m = places.shape(0), n = places.shape(1);
        if (m > 4 * kMaxWidth || n > 4 * kMaxWidth) throw std::invalid_argument("fit: a matrix is too large");
        values(squares, {m, n}, "the mean squares");
        values(left, {m, m}, "L");
        values(right, {n, n}, "R");
        values(left_basis, {m, m}, "U");
        values(right_basis, {n, n}, "V");
        for (py::ssize_t i = 0; i < places.size(); ++i)
            if (places.data()[i] < 0 || places.data()[i] >= count)
                throw std::invalid_argument("fit: a place beyond the parameters");
        made.push_back({static_cast<int>(m), static_cast<int>(n), places.data(), squares.mutable_data(),
                        left.mutable_data(), right.mutable_data(), left_basis.data(), right_basis.data()});
        longest = std::max({longest, m, n});
    }
    const Kernels& chosen = kernels_of(kernels);
    float *to = value.mutable_data(), *to_mean = mean.mutable_data();
    py::gil_scoped_release release;
    std::vector<float> room(4 * longest * longest);
    for (py::ssize_t i = 0; i < count; ++i) to_mean[i] += (slope[i] - to_mean[i]) * first;
    for (const SoapMatrix& matrix : made)
        chosen.soap(to, slope, to_mean, matrix, {first, second, rate, epsilon}, room.data());
}

}  // namespace

void bind(py::module_& m) {
    py::class_<BoundStep>(m, "Step")
        .def(py::init<std::pair<int, int>, std::pair<int, int>,
                      const std::vector<std::tuple<int, int, int, int>>&, int, const Pairs&, const Pairs&, int,
                      const NetArguments&, const NetArguments&, bool, int, int, const std::string&>())
        .def("run", &BoundStep::run, py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(),
             py::arg(), py::arg(), py::arg())
        .def("load", &BoundStep::load, py::arg().noconvert(), py::arg())
        .def("bits", &BoundStep::bits, py::arg().noconvert(), py::arg())
        .def("squares", &BoundStep::squares, py::arg().noconvert(), py::arg().noconvert(),
             py::arg().noconvert(), py::arg(), py::arg(), py::arg());
    m.def("soften", &soften, py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(), py::arg(),
          py::arg());
    m.def("adam", &adam, py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(),
          py::arg().noconvert(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg());
    m.def("soap", &soap, py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(),
          py::arg().noconvert(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg());
    std::vector<std::string> names;
    for (const Kernels* kernels : able()) names.emplace_back(kernels->name);
    m.attr("KERNELS") = names;  // the fastest first
}

}  // namespace c3::fit
