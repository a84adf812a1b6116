// SPDX-License-Identifier: Apache-2.0
// _decoder.hpp and _synthesis.hpp for Python, module `_native`; _fit_bindings.cpp adds the fit. Arrays are
// checked here; none outlives its call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "_decoder.hpp"
#include "_fit_bindings.hpp"
#include "_synthesis.hpp"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::vector<T> values(const Array<T>& array) {
    return std::vector<T>(array.data(), array.data() + array.size());
}

std::vector<c3::Tap> taps(const std::vector<std::pair<int, int>>& pairs) {
    std::vector<c3::Tap> made;
    for (const auto& [dy, dx] : pairs) made.push_back({dy, dx});
    return made;
}

c3::Net make_net(const std::vector<std::tuple<Array<int32_t>, Array<int32_t>, int, int>>& layers, int clamp,
                 bool skip) {
    std::vector<c3::Layer> made;
    for (const auto& [weight, bias, shift, activation] : layers) {
        if (weight.ndim() != 2 || weight.shape(0) > 4096 || weight.shape(1) > 4096 || activation < 0 ||
            activation > 2)
            throw std::invalid_argument("net: a weight must be a matrix, its activation 0, 1 or 2");
        c3::Layer layer;
        layer.outputs = static_cast<int>(weight.shape(0));
        layer.inputs = static_cast<int>(weight.shape(1));
        layer.shift = shift;
        layer.activation = static_cast<c3::Activation>(activation);
        for (int32_t w : values(weight)) {
            if (w < -c3::kLargest || w > c3::kLargest)
                throw std::invalid_argument("net: a weight out of range");
            layer.weight.push_back(static_cast<int16_t>(w));
        }
        layer.bias = values(bias);
        made.push_back(std::move(layer));
    }
    return c3::Net(std::move(made), clamp, skip);
}

void require(const std::vector<const c3::Net*>& nets) {
    for (const c3::Net* net : nets)
        if (net == nullptr) throw std::invalid_argument("sizes: a net is None");
}

py::tuple decode(const py::bytes& data, const std::vector<std::pair<int, int>>& sizes,
                 const std::vector<const c3::Net*>& nets, const c3::Context& context,
                 const c3::Tables& tables, bool portable) {
    std::vector<c3::Size> shapes;
    std::vector<int32_t*> pointers;
    py::list grids;
    for (const auto& [height, width] : sizes) {
        if (height < 1 || width < 1 || height > c3::kMaxSide || width > c3::kMaxSide)
            throw std::invalid_argument("decode: a grid's sides must lie in 1 ... 32768");
        shapes.push_back({height, width});
        py::array_t<int32_t> grid({height, width});
        pointers.push_back(grid.mutable_data());
        grids.append(std::move(grid));
    }
    require(nets);
    char* begin = nullptr;
    py::ssize_t length = 0;
    if (PyBytes_AsStringAndSize(data.ptr(), &begin, &length) != 0) throw py::error_already_set();
    uint64_t state = 0;
    {
        py::gil_scoped_release release;
        state = c3::decode(reinterpret_cast<const uint8_t*>(begin), static_cast<std::size_t>(length), shapes,
                           nets, context, tables, pointers, portable);
    }
    return py::make_tuple(grids, state);
}

py::tuple encode(const std::vector<Array<int32_t>>& grids, const std::vector<const c3::Net*>& nets,
                 const c3::Context& context, const c3::Tables& tables, uint32_t guard, bool write,
                 bool portable) {
    std::vector<c3::Size> shapes;
    std::vector<const int32_t*> pointers;
    for (const auto& grid : grids) {
        if (grid.ndim() != 2 || grid.shape(0) > c3::kMaxSide || grid.shape(1) > c3::kMaxSide)
            throw std::invalid_argument("encode: a grid must be a matrix with sides in 1 ... 32768");
        shapes.push_back({static_cast<int>(grid.shape(0)), static_cast<int>(grid.shape(1))});
        pointers.push_back(grid.data());
    }
    require(nets);
    std::vector<double> bits;
    std::vector<uint32_t> words;
    {
        py::gil_scoped_release release;
        c3::encode(shapes, nets, context, tables, pointers, guard, portable, bits, write ? &words : nullptr);
    }
    return py::make_tuple(py::array_t<uint32_t>(static_cast<py::ssize_t>(words.size()), words.data()), bits);
}

c3::FloatLayer make_layer(const Array<float>& weight, const Array<float>& bias, int activation, bool residual,
                          const std::optional<Array<float>>& skip, std::size_t channels) {
    if (weight.ndim() != 4 || weight.shape(2) != weight.shape(3) || weight.shape(0) > c3::kMaxChannels ||
        weight.shape(1) > c3::kMaxChannels || weight.shape(2) > 3 || activation < 0 || activation > 2)
        throw std::invalid_argument("synthesis: a weight is (out, in, k, k), its activation 0, 1 or 2");
    c3::FloatLayer layer;
    layer.outputs = static_cast<int>(weight.shape(0));
    layer.inputs = static_cast<int>(weight.shape(1));
    layer.kernel = static_cast<int>(weight.shape(2));
    layer.activation = static_cast<c3::Activation>(activation);
    layer.residual = residual;
    layer.weight = values(weight);
    layer.bias = values(bias);
    if (skip) {
        if (skip->ndim() != 2 || skip->shape(0) != weight.shape(0) ||
            static_cast<std::size_t>(skip->shape(1)) != channels)
            throw std::invalid_argument("synthesis: a skip is (outputs of its layer, channels)");
        layer.skip = values(*skip);
    }
    return layer;
}

py::array_t<float> synthesise(
    const std::vector<Array<float>>& channels, const std::optional<Array<float>>& doublings, int first,
    const std::vector<std::tuple<Array<float>, Array<float>, int, bool, std::optional<Array<float>>>>& layers,
    std::pair<int, int> size, bool portable) {
    std::vector<c3::Channel> inputs;
    for (const auto& channel : channels) {
        if (channel.ndim() != 2 || channel.size() < 1 || channel.shape(0) > c3::kMaxSide ||
            channel.shape(1) > c3::kMaxSide)
            throw std::invalid_argument("synthesis: a channel must be a matrix");
        const c3::Size shape{static_cast<int>(channel.shape(0)), static_cast<int>(channel.shape(1))};
        inputs.push_back({channel.data(), shape});
    }
    c3::Synthesis made;
    made.first = first;
    if (doublings) {
        if (doublings->ndim() != 2 || doublings->shape(0) < 1 || doublings->shape(0) > c3::kMaxDoublings ||
            doublings->shape(1) != 4)
            throw std::invalid_argument("synthesis: taps are (doublings, 4), at most 30 doublings");
        for (py::ssize_t i = 0; i < doublings->shape(0); ++i) {
            const float* taps = doublings->data(i, 0);
            made.doublings.push_back({taps[0], taps[1], taps[2], taps[3]});
        }
    }
    for (const auto& [weight, bias, activation, residual, skip] : layers)
        made.layers.push_back(make_layer(weight, bias, activation, residual, skip, inputs.size()));
    const int outputs = c3::check_layers(made.layers, inputs.size());
    const auto [height, width] = size;
    if (height < 1 || width < 1 || height > c3::kMaxSide || width > c3::kMaxSide)
        throw std::invalid_argument("synthesis: sides must lie in 1 ... 32768");
    py::array_t<float> image({outputs, height, width});
    float* pixels = image.mutable_data();
    {
        py::gil_scoped_release release;
        c3::synthesise(inputs, made, {height, width}, portable, pixels);
    }
    return image;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "C3's decoder and fit in C++; see native.py";
    py::register_exception<c3::Damaged>(m, "Damaged", PyExc_ValueError);
    py::class_<c3::Tables>(m, "Tables")
        .def(py::init([](const Array<uint32_t>& cdf, const Array<int32_t>& start,
                         const Array<int32_t>& counts, const Array<int32_t>& first,
                         const Array<int32_t>& base,
                         const Array<int32_t>& fraction_bits, int escape_row, int coin_row,
                         const Array<int32_t>& gelu_rest) {
            return c3::Tables(values(cdf), values(start), values(counts), values(first), values(base),
                              values(fraction_bits), escape_row, coin_row, values(gelu_rest));
        }));
    py::class_<c3::Net>(m, "Net").def(py::init(&make_net));
    py::class_<c3::Context>(m, "Context")
        .def(py::init([](const std::vector<std::pair<int, int>>& own,
                         const std::vector<std::pair<int, int>>& other, int source, int slope) {
            if (source < 0 || source > 2) throw std::invalid_argument("context: no such source");
            return c3::Context(taps(own), taps(other), static_cast<c3::Source>(source), slope);
        }));
    m.def("decode", &decode);
    m.def("encode", &encode);
    m.def("synthesise", &synthesise);
    m.attr("FAST") = c3::has_fast_kernels();
    c3::fit::bind(m);
    m.attr("VERSION") = 3;  // of this interface; see native.py
}
