// Products of rows with matrices of weights, which XLA calls on CPUs (lm/cpu/products.py). Those of the same rows are
// one call, so that no thread waits between them.
//
// With few rows a product takes as long as the weights take to come from memory. So every weight is read
// once, in the layout in which it lies, by all threads. A thread walks through rows of the matrix that lie side
// by side, or fetches the next block of it while it multiplies this one.
//
// M rows of x, I inputs, O outputs.

#include <vector>

#include "kernels.h"

namespace {

struct Product {
  const float* x;         // [M, I]
  const Weight* weights;  // [I, O], or [O, I]
  float* y;               // [M, O]
  int64_t M, I, O;
};

// Pieces of several products, which all threads share as if they were one's.
class Pieces {
 public:
  void Add(int64_t pieces) { last_.push_back((last_.empty() ? 0 : last_.back()) + pieces); }

  // Calls work(number of the product, piece of it, how many pieces it has).
  template <typename Work>
  void OnThreads(ffi::ThreadPool& pool, Work work) const {
    OnAllThreads(pool, last_.back(), [&](int64_t piece) {
      const int64_t number = std::upper_bound(last_.begin(), last_.end(), piece) - last_.begin();
      const int64_t first = number ? last_[number - 1] : 0;
      work(number, piece - first, last_[number] - first);
    });
  }

 private:
  std::vector<int64_t> last_;
};

// ---- Weights [I, O], few rows of x: rows of weights are added up ----

constexpr int kMostStreamed = 4;  // rows of x
constexpr int kAtOnce = 8;        // rows of weights

template <int M, int U>
void AddRows(const Product& p, int64_t i, Range outputs, bool add, float* to) {
  const Weight* rows = p.weights + i * p.O;
  Vector factor[M][U];
  UNROLLED for (int m = 0; m < M; m++)
    UNROLLED for (int u = 0; u < U; u++) factor[m][u] = p.x[m * p.I + i + u] - Vector{};
  int64_t o = outputs.first;
  for (; o + kWidth <= outputs.last; o += kWidth) {
    Vector row[U];
    UNROLLED for (int u = 0; u < U; u++) row[u] = Load(rows + u * p.O + o);
    UNROLLED for (int m = 0; m < M; m++) {
      float* y = to + m * p.O + o;
      Vector sum = add ? Load(y) : Vector{};
      UNROLLED for (int u = 0; u < U; u++) sum += factor[m][u] * row[u];
      Store(y, sum);
    }
  }
  for (; o < outputs.last; o++)
    for (int m = 0; m < M; m++) {
      float sum = add ? to[m * p.O + o] : 0;
      for (int u = 0; u < U; u++) sum += p.x[m * p.I + i + u] * Number(rows[u * p.O + o]);
      to[m * p.O + o] = sum;
    }
}

template <int M>
void Stream(const Product& p, Range inputs, Range outputs, float* to) {
  int64_t i = inputs.first;
  for (; i + kAtOnce <= inputs.last; i += kAtOnce) AddRows<M, kAtOnce>(p, i, outputs, i > inputs.first, to);
  for (; i < inputs.last; i++) AddRows<M, 1>(p, i, outputs, i > inputs.first, to);
}

constexpr decltype(&Stream<1>) kStream[] = {nullptr, Stream<1>, Stream<2>, Stream<3>, Stream<4>};

// ---- Weights [I, O], some more rows of x: a few rows of weights at a time, and all rows of x go through them ----

constexpr int kMostInSlabs = 10;  // rows of x
constexpr int64_t kSlab = 16;     // rows of weights, which the cache holds

// `next`: the slab that is fetched meanwhile.
void MultiplySlab(const Product& p, Range inputs, Range outputs, bool add, const Weight* next, float* to) {
  alignas(64) float edge[kRows * kStrip];  // the sums of a strip that is wider than what is left
  alignas(64) float padded[kSlab * kStrip];
  const int64_t groups = (p.M + kRows - 1) / kRows, deep = inputs.size();
  const Weight* slab = p.weights + inputs.first * p.O;
  for (int64_t o = outputs.first; o < outputs.last; o += kStrip) {
    const int64_t there = std::min<int64_t>(kStrip, outputs.last - o);
    for (int64_t i = 0; i < deep && there < kStrip; i++)
      for (int64_t k = 0; k < kStrip; k++) padded[i * kStrip + k] = k < there ? Number(slab[i * p.O + o + k]) : 0;
    for (int64_t group = 0; group < groups; group++) {
      const Range rows = Part(p.M, group, groups);
      const float* x = p.x + rows.first * p.I + inputs.first;
      float* y = to + rows.first * p.O + o;
      if (there < kStrip) {
        kMultiplyStrip<float, false>[rows.size()](deep, x, p.I, padded, kStrip, edge, kStrip, false, {});
        for (int64_t m = 0; m < rows.size(); m++)
          for (int64_t k = 0; k < there; k++) y[m * p.O + k] = edge[m * kStrip + k] + (add ? y[m * p.O + k] : 0);
        continue;
      }
      const int64_t fetched = (o - outputs.first) * deep + deep / groups * group * kStrip;
      const Fetch fetch = next ? Fetch{next + fetched, kStrip, groups} : Fetch{};
      kMultiplyStrip<Weight, false>[rows.size()](deep, x, p.I, slab + o, p.O, y, p.O, add, fetch);
    }
  }
}

void MultiplySlabs(const Product& p, Range inputs, Range outputs, float* to) {
  for (int64_t i = inputs.first; i < inputs.last; i += kSlab) {
    const Range slab = {i, std::min(i + kSlab, inputs.last)};
    const Weight* next = slab.last < inputs.last ? p.weights + slab.last * p.O + outputs.first : nullptr;
    MultiplySlab(p, slab, outputs, i > inputs.first, next, to);
  }
}

// ---- Both in parts of the inputs, which lie side by side in memory ----

// Parts of the inputs, whatever the threads are: they decide how sums are rounded.
constexpr int kPartsStreamed = 8, kPartsInSlabs = 4;
constexpr int64_t kLeastColumns = 256;

void InParts(ffi::ThreadPool& pool, const std::vector<Product>& products) {
  // 1. Parts of the inputs; where threads are left, of the outputs too. All products have the same inputs.
  const int64_t M = products[0].M, I = products[0].I;
  const bool streamed = M <= kMostStreamed;
  const int64_t unit = streamed ? kAtOnce : kSlab;
  const int64_t parts = std::min<int64_t>(streamed ? kPartsStreamed : kPartsInSlabs, (I + unit - 1) / unit);
  Pieces pieces;
  int64_t size = 0;
  for (const Product& p : products) {
    pieces.Add(parts * std::clamp<int64_t>(pool.num_threads() / parts, 1, std::max<int64_t>(1, p.O / kLeastColumns)));
    size += (parts - 1) * p.M * p.O;
  }
  // 2. The sums of each part.
  thread_local std::vector<float> sums;
  sums.resize(std::max<size_t>(sums.size(), size));
  std::vector<float*> others;
  for (float* next = sums.data(); const Product& p : products) {
    others.push_back(next);
    next += (parts - 1) * p.M * p.O;
  }
  pieces.OnThreads(pool, [&](int64_t number, int64_t piece, int64_t of) {
    const Product& p = products[number];
    const int64_t columns = of / parts, part = piece / columns;
    const Range inputs = Part(p.I, part, parts, unit), outputs = Part(p.O, piece % columns, columns, kStrip);
    float* to = part ? others[number] + (part - 1) * p.M * p.O : p.y;
    streamed ? kStream[p.M](p, inputs, outputs, to) : MultiplySlabs(p, inputs, outputs, to);
  });
  // 3. Their sum.
  for (size_t number = 0; number < products.size(); number++)
    for (int64_t part = 1; part < parts; part++) {
      const int64_t size = products[number].M * products[number].O;
      for (int64_t k = 0; k < size; k++) products[number].y[k] += others[number][(part - 1) * size + k];
    }
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
        const auto multiply = kMultiplyStrip<float, false>[rows.size()];
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

// ---- Weights [O, I]: each output is the dot product of two rows ----

constexpr int kColumns = 4;  // rows of weights at once

void OutputsFirst(const Product& p, Range outputs) {
  int64_t o = outputs.first;
  for (; o + kColumns <= outputs.last; o += kColumns)
    DotProductsOf<kColumns>(p.M, p.I, p.x, p.I, p.weights + o * p.I, p.I, p.y + o, p.O);
  for (; o < outputs.last; o++) DotProductsOf<1>(p.M, p.I, p.x, p.I, p.weights + o * p.I, p.I, p.y + o, p.O);
}

// ---- The call ----

// x [M, I], of which the first `count` rows are multiplied and the others give zeros; of each of the weights,
// [L, I, O] or [L, O, I], the matrix `layer` is taken, for a y [M, O].
ffi::Error Multiply(ffi::ThreadPool pool, bool inputs_first, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> layer,
                    ffi::Buffer<ffi::S32> count, ffi::RemainingArgs weights, ffi::RemainingRets results) {
  const int64_t M = x.dimensions()[0], I = x.dimensions()[1];
  const int64_t rows = std::clamp<int64_t>(count.typed_data()[0], 0, M);
  std::vector<Product> products;
  for (size_t number = 0; number < weights.size(); number++) {
    const auto stack = weights.get<ffi::Buffer<kWeights>>(number);
    auto y = results.get<ffi::Buffer<ffi::F32>>(number);
    if (!stack.has_value()) return stack.error();
    if (!y.has_value()) return y.error();
    const int64_t O = (*y)->dimensions()[1];
    const auto* matrix = static_cast<const Weight*>(stack->untyped_data()) + layer.typed_data()[0] * I * O;
    products.push_back({x.typed_data(), matrix, (*y)->typed_data(), rows, I, O});
    std::fill(products.back().y + rows * O, products.back().y + M * O, 0.0f);
  }
  if (rows == 0) return ffi::Error::Success();
  if (inputs_first && rows <= kMostInSlabs) {
    InParts(pool, products);
    return ffi::Error::Success();
  }
  // There are some more pieces than threads, so that none waits for long.
  const int64_t unit = inputs_first ? kBlock : kColumns;
  Pieces pieces;
  for (const Product& p : products)
    pieces.Add(std::min((p.O + unit - 1) / unit, 4 * std::max<int64_t>(1, pool.num_threads())));
  pieces.OnThreads(pool, [&](int64_t number, int64_t piece, int64_t of) {
    const Range outputs = Part(products[number].O, piece, of, unit);
    inputs_first ? PackAndMultiply(products[number], outputs) : OutputsFirst(products[number], outputs);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(rows_products, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("inputs_first")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .RemainingRets());
