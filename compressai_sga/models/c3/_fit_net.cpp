// SPDX-License-Identifier: Apache-2.0
// See _fit_net.hpp.
#include "_fit_net.hpp"

#include <utility>

namespace c3::fit {
namespace {

constexpr int kMostRows = kMaxWidth + 3;  // of a layer, with a skip's
constexpr float kZeros[kMaxWidth] = {};

}  // namespace

Net::Net(NetShape shape) : shape_(std::move(shape)) {
    const std::vector<int>& widths = shape_.widths;
    const int count = static_cast<int>(widths.size()) - 1;
    wide_ = shape_.skip && count > 1;
    for (int i = 0; i < count; ++i) {
        Layer layer{};
        layer.inputs = widths[i];
        layer.outputs = widths[i + 1] + (wide_ && i == 0 ? outputs() : 0);
        layer.weight.resize(static_cast<std::size_t>(layer.inputs) * layer.outputs);
        layer.transposed.resize(layer.weight.size());
        if (!(wide_ && i == count - 1)) layer.bias.resize(layer.outputs);
        layer.sums = sums_;
        sums_ += layer.weight.size() + layer.bias.size();
        parameters_ += (widths[i] + 1) * widths[i + 1];
        if (i < count - 1) hidden_ += widths[i + 1];
        layers_.push_back(std::move(layer));
    }
    if (shape_.skip) parameters_ += inputs() * outputs();
}

void Net::take(const float* parameters) {
    const float* at = parameters;
    const auto set = [](Layer& layer, int output, int input, float value) {
        layer.weight[static_cast<std::size_t>(input) * layer.outputs + output] = value;
        layer.transposed[static_cast<std::size_t>(output) * layer.inputs + input] = value;
    };
    Layer& first = layers_.front();
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        Layer& layer = layers_[l];
        const int outputs = shape_.widths[l + 1];
        for (int o = 0; o < outputs; ++o)
            for (int i = 0; i < layer.inputs; ++i)
                set(layer, o, i, *at++ + (shape_.residual[l] && o == i ? 1.0f : 0.0f));
        Layer& biased = layer.bias.empty() ? first : layer;
        const int start = layer.bias.empty() ? shape_.widths[1] : 0;
        for (int o = 0; o < outputs; ++o) biased.bias[start + o] = *at++;
    }
    if (!shape_.skip) return;
    const int start = wide_ ? shape_.widths[1] : 0;
    for (int o = 0; o < outputs(); ++o)
        for (int i = 0; i < inputs(); ++i) {
            const float before = wide_ ? 0.0f : first.transposed[static_cast<std::size_t>(o) * inputs() + i];
            set(first, start + o, i, before + *at++);
        }
}

Net::Work Net::work(const Kernels& kernels) const {
    Work made;
    // Rows are a vector longer than a tile: powers of two would fall on the same lines of the cache.
    constexpr std::size_t kRow = kTile + kMostLanes;
    const auto rows = [&](std::vector<float>& values, std::vector<float*>& pointers, int count) {
        values.assign(count * kRow + kMostLanes, 0.0f);
        for (int k = 0; k < count; ++k) pointers.push_back(values.data() + k * kRow);
    };
    rows(made.values, made.value_rows, hidden_ + outputs());
    rows(made.slopes, made.slope_rows, shape_.activation == Activation::gelu ? hidden_ : 0);
    made.slope_rows.resize(hidden_);
    rows(made.gradients, made.gradient_rows, hidden_);
    made.sums.assign(sums_ * kernels.lanes, 0.0f);
    return made;
}

void Net::forward(const Kernels& kernels, Work& work, Inputs x, int n, Outputs out, bool slopes) const {
    std::vector<float*>& rows = work.value_rows;
    std::size_t begin = 0;  // of the layer's values among the rows
    Inputs in = x;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        const int width = shape_.widths[l + 1];
        if (l + 1 == layers_.size()) {
            if (out)
                kernels.dense(in, layer.inputs, layer.weight.data(), width,
                              layer.bias.empty() ? nullptr : layer.bias.data(), out, n);
            return;
        }
        float* to[kMostRows];
        std::copy_n(rows.begin() + begin, width, to);
        if (wide_ && l == 0) std::copy_n(out ? out : rows.data() + hidden_, outputs(), to + width);
        kernels.dense(in, layer.inputs, layer.weight.data(), layer.outputs, layer.bias.data(), to, n);
        kernels.activate(shape_.activation, shape_.limit, rows.data() + begin, width, n,
                         slopes ? work.slope_rows.data() + begin : nullptr);
        in = rows.data() + begin;
        begin += width;
    }
}

void Net::backward(const Kernels& kernels, Work& work, Inputs x, Inputs d_out, int n, Outputs d_x) const {
    const int lanes = kernels.lanes;
    const float* d[kMostRows];
    std::copy_n(d_out, outputs(), d);
    int begin = hidden_;  // of the values that the layer reads
    for (std::size_t l = layers_.size(); l-- > 0;) {
        const Layer& layer = layers_[l];
        float* sums = work.sums.data() + layer.sums * lanes;
        float* bias_sums = sums + layer.weight.size() * lanes;
        const int width = shape_.widths[l + 1];
        if (l + 1 == layers_.size()) {
            if (!layer.bias.empty()) kernels.add_up(d, width, n, bias_sums);
        } else {
            const int own = begin;  // of this layer's values; `begin` moves on to those before
            kernels.through(shape_.activation, shape_.limit, work.value_rows.data() + own,
                            work.slope_rows.data() + own, work.gradient_rows.data() + own, width, n,
                            bias_sums);
            if (wide_ && l == 0) kernels.add_up(d_out, outputs(), n, bias_sums + width * lanes);
            std::copy_n(work.gradient_rows.begin() + own, width, d);
            if (wide_ && l == 0) std::copy_n(d_out, outputs(), d + width);
        }
        if (l > 0) begin -= layer.inputs;
        Inputs in = l > 0 ? work.value_rows.data() + begin : x;
        kernels.weight_gradient(d, layer.outputs, in, layer.inputs, n, sums);
        Outputs to = l > 0 ? work.gradient_rows.data() + begin : d_x;
        if (!to) return;
        kernels.dense(d, layer.outputs, layer.transposed.data(), layer.inputs, kZeros, to, n);
    }
}

void Net::collect(const Kernels& kernels, Work& work, double* gradient) const {
    const auto taken = [&](std::size_t index) {
        double found = 0.0;
        for (int k = 0; k < kernels.lanes; ++k) found += work.sums[index * kernels.lanes + k];
        return found;
    };
    const Layer& first = layers_.front();
    const std::size_t first_bias = first.sums + first.weight.size();
    double* to = gradient;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        const int outputs = shape_.widths[l + 1];
        for (std::size_t k = 0; k < static_cast<std::size_t>(outputs) * layer.inputs; ++k)
            *to++ += taken(layer.sums + k);
        const std::size_t bias =
            layer.bias.empty() ? first_bias + shape_.widths[1] : layer.sums + layer.weight.size();
        for (int o = 0; o < outputs; ++o) *to++ += taken(bias + o);
    }
    if (shape_.skip) {
        const std::size_t skip = wide_ ? static_cast<std::size_t>(shape_.widths[1]) * inputs() : 0;
        for (std::size_t k = 0; k < static_cast<std::size_t>(outputs()) * inputs(); ++k)
            *to++ += taken(first.sums + skip + k);
    }
    std::fill(work.sums.begin(), work.sums.end(), 0.0f);
}

}  // namespace c3::fit
