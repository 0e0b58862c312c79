// Products of rows with a matrix of weights, which XLA calls on CPUs (lm/cpu/products.py).
//
// With few rows a product takes as long as the weights take to come from memory. So every weight is read
// once, in the layout in which it lies, by all threads. A thread walks along whole rows of the matrix, or
// fetches the next block of it while it multiplies this one.
//
// M rows of x, I inputs, O outputs.

#include "kernels.h"

namespace {

struct Product {
  const float* x;         // [M, I]
  const Weight* weights;  // [I, O], or [O, I]
  float* y;               // [M, O]
  int64_t M, I, O;
};

// ---- Weights [I, O], few rows of x: rows of weights are added up ----

constexpr int kMostStreamed = 4;  // rows of x
constexpr int kAtOnce = 4;        // rows of weights

template <int M, int U>
void AddRows(const Product& p, int64_t i, Range outputs) {
  const Weight* rows = p.weights + i * p.O;
  Vector factor[M][U];
  UNROLLED for (int m = 0; m < M; m++)
    UNROLLED for (int u = 0; u < U; u++) factor[m][u] = p.x[m * p.I + i + u] - Vector{};
  int64_t o = outputs.first;
  for (; o + kWidth <= outputs.last; o += kWidth) {
    Vector row[U];
    UNROLLED for (int u = 0; u < U; u++) row[u] = Load(rows + u * p.O + o);
    UNROLLED for (int m = 0; m < M; m++) {
      float* y = p.y + m * p.O + o;
      Vector sum = i == 0 ? Vector{} : Load(y);
      UNROLLED for (int u = 0; u < U; u++) sum += factor[m][u] * row[u];
      Store(y, sum);
    }
  }
  for (; o < outputs.last; o++)
    for (int m = 0; m < M; m++) {
      float sum = i == 0 ? 0 : p.y[m * p.O + o];
      for (int u = 0; u < U; u++) sum += p.x[m * p.I + i + u] * Number(rows[u * p.O + o]);
      p.y[m * p.O + o] = sum;
    }
}

template <int M>
void Stream(const Product& p, Range outputs) {
  int64_t i = 0;
  for (; i + kAtOnce <= p.I; i += kAtOnce) AddRows<M, kAtOnce>(p, i, outputs);
  for (; i < p.I; i++) AddRows<M, 1>(p, i, outputs);
}

// ---- Weights [I, O], more rows of x: a block of weights is packed, and all rows of x go through it ----

constexpr int kStrips = 4;  // of a block, side by side
constexpr int kBlock = kStrip * kStrips;
constexpr int64_t kDepth = 256;  // inputs of a block, at most

using Panels = float[kStrips][kDepth * kStrip];

void Pack(const Product& p, Range inputs, int64_t o, int64_t width, Panels& panels) {
  for (int64_t i = inputs.first; i < inputs.last; i++) {
    const Weight* row = p.weights + i * p.O + o;
    for (int k = 0; k < kBlock; k += kWidth) {
      float* to = panels[k / kStrip] + (i - inputs.first) * kStrip + k % kStrip;
      if (k + kWidth <= width) {
        Store(to, Load(row + k));
      } else {
        for (int e = 0; e < kWidth; e++) to[e] = k + e < width ? Number(row[k + e]) : 0;
      }
    }
  }
}

void PackAndMultiply(const Product& p, Range outputs) {
  alignas(64) Panels panels;
  alignas(64) float edge[kRows * kStrip];  // the sums of a strip that is wider than what is left
  const int64_t depths = (p.I + kDepth - 1) / kDepth, groups = (p.M + kRows - 1) / kRows;
  for (int64_t o = outputs.first; o < outputs.last; o += kBlock) {
    const int64_t width = std::min<int64_t>(kBlock, p.O - o);
    for (int64_t depth = 0; depth < depths; depth++) {
      // 1. A block of weights.
      const Range inputs = Part(p.I, depth, depths);
      Pack(p, inputs, o, width, panels);
      // 2. The next one: further down, or at the top of the next columns.
      const bool lowest = depth + 1 == depths;
      const Weight* next = p.weights + (lowest ? o + kBlock : inputs.last * p.O + o);
      const int64_t next_width = lowest ? p.O - o - kBlock : width;
      // 3. All rows of x go through it. Each group of them fetches a part of the next one.
      for (int64_t group = 0; group < groups; group++) {
        const Range rows = Part(p.M, group, groups);
        const float* x = p.x + rows.first * p.I + inputs.first;
        const auto multiply = kMultiplyStrip<float>[rows.size()];
        for (int s = 0; s * kStrip < width; s++) {
          const int64_t row = (inputs.size() + groups - 1) / groups * group;
          const Fetch fetch = s * kStrip < next_width ? Fetch{next + s * kStrip + row * p.O, p.O, groups} : Fetch{};
          const int64_t there = std::min<int64_t>(kStrip, width - s * kStrip);
          float* y = p.y + rows.first * p.O + o + s * kStrip;
          if (there == kStrip) {
            multiply(inputs.size(), x, p.I, panels[s], kStrip, y, p.O, depth > 0, fetch);
            continue;
          }
          multiply(inputs.size(), x, p.I, panels[s], kStrip, edge, kStrip, false, fetch);
          for (int64_t m = 0; m < rows.size(); m++)
            for (int64_t k = 0; k < there; k++)
              y[m * p.O + k] = edge[m * kStrip + k] + (depth ? y[m * p.O + k] : 0);
        }
      }
    }
  }
}

void InputsFirst(const Product& p, Range outputs) {
  switch (p.M) {
    case 1: return Stream<1>(p, outputs);
    case 2: return Stream<2>(p, outputs);
    case 3: return Stream<3>(p, outputs);
    case 4: return Stream<4>(p, outputs);
    default: return PackAndMultiply(p, outputs);
  }
}

// ---- Weights [O, I]: each output is the dot product of two rows ----

constexpr int kColumns = 4;  // rows of weights at once

void OutputsFirst(const Product& p, Range outputs) {
  int64_t o = outputs.first;
  for (; o + kColumns <= outputs.last; o += kColumns)
    DotProductsOf<kColumns>(p.M, p.I, p.x, p.I, p.weights + o * p.I, p.I, p.y + o, p.O);
  for (; o < outputs.last; o++) DotProductsOf<1>(p.M, p.I, p.x, p.I, p.weights + o * p.I, p.I, p.y + o, p.O);
}

// ---- The call ----

// x [M, I], of which the first `count` rows are multiplied and the others give zeros; weights [L, I, O] or
// [L, O, I], of which the matrix `layer` is taken; y [M, O].
ffi::Error Multiply(ffi::ThreadPool pool, bool inputs_first, ffi::Buffer<ffi::F32> x, ffi::Buffer<kWeights> weights,
                    ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> count, ffi::ResultBuffer<ffi::F32> y) {
  const int64_t M = x.dimensions()[0], I = x.dimensions()[1], O = y->dimensions()[1];
  const int64_t rows = std::clamp<int64_t>(count.typed_data()[0], 0, M);
  const auto* matrix = static_cast<const Weight*>(weights.untyped_data()) + layer.typed_data()[0] * I * O;
  const Product product = {x.typed_data(), matrix, y->typed_data(), rows, I, O};
  std::fill(product.y + rows * O, product.y + M * O, 0.0f);
  if (rows == 0) return ffi::Error::Success();
  // Whoever streams gets one piece, as wide as can be; otherwise there are some more than threads, so that none
  // waits for long.
  const bool streamed = inputs_first && rows <= kMostStreamed;
  const int64_t unit = streamed ? kStrip : inputs_first ? kBlock : kColumns;
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t pieces = std::min((O + unit - 1) / unit, streamed ? threads : 4 * threads);
  OnAllThreads(pool, pieces, [=](int64_t piece) {
    const Range outputs = Part(O, piece, pieces, unit);
    inputs_first ? InputsFirst(product, outputs) : OutputsFirst(product, outputs);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(rows_product, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("inputs_first")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<kWeights>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
