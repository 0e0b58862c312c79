// Products of rows with matrices of weights, which XLA calls on CPUs (lm/cpu/products.py). Those of the same rows are
// one call, so that no thread waits between them.
//
// With few rows a product takes as long as the weights take to come from memory, with many as long as the arithmetic
// takes. So weights lie in panels: kStrip outputs side by side, one input after the other. A panel is read from its
// beginning to its end; it stays in the cache while all rows go through it, and meanwhile the next one is fetched.
//
// M rows of x, I inputs, O outputs.

#include <vector>

#include "kernels.h"

namespace {

struct Product {
  const float* x;         // [M, I]
  const Weight* weights;  // [S, I, kStrip]: S panels, the last of them filled up
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

constexpr int64_t kDepth = 2048;  // inputs of a panel that the cache holds beside the rows
constexpr int kFew = 2;           // rows with which a panel goes by so fast that the processor fetches it by itself

void ThroughPanels(const Product& p, Range panels) {
  alignas(64) float edge[kRows * kStrip];  // the sums of a panel that is wider than what is left
  const int64_t groups = (p.M + kRows - 1) / kRows, depths = (p.I + kDepth - 1) / kDepth;
  for (int64_t panel = panels.first; panel < panels.last; panel++) {
    const int64_t o = panel * kStrip, there = std::min<int64_t>(kStrip, p.O - o);
    for (int64_t depth = 0; depth < depths; depth++) {
      // 1. A block of a panel. The next one lies behind it.
      const Range inputs = Part(p.I, depth, depths);
      const Weight* block = p.weights + (panel * p.I + inputs.first) * kStrip;
      const Weight* next = block + inputs.size() * kStrip;
      // 2. All rows go through it. Each group of them fetches a part of the next one.
      for (int64_t group = 0; group < groups; group++) {
        const Range rows = Part(p.M, group, groups);
        const auto multiply = kMultiplyStrip<Weight, false>[rows.size()];
        const float* x = p.x + rows.first * p.I + inputs.first;
        float* y = p.y + rows.first * p.O + o;
        const Fetch fetch =
            p.M <= kFew ? Fetch{.steps = inputs.size()}
                        : Fetch{next + inputs.size() / groups * group * kStrip, kStrip, groups};
        if (there == kStrip) {
          multiply(inputs.size(), x, p.I, block, kStrip, y, p.O, depth > 0, fetch);
          continue;
        }
        multiply(inputs.size(), x, p.I, block, kStrip, edge, kStrip, false, fetch);
        for (int64_t m = 0; m < rows.size(); m++)
          for (int64_t k = 0; k < there; k++) y[m * p.O + k] = edge[m * kStrip + k] + (depth ? y[m * p.O + k] : 0);
      }
    }
  }
}

constexpr int64_t kPieces = 2;  // for each thread, so that none waits for long

// x [M, I], of which the first `count` rows are multiplied and the others give zeros; of each of the weights,
// [L, S, I, kStrip], the matrix `layer` is taken (of 0 .. L - 1 the nearest), for a y [M, O].
ffi::Error Multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> layer,
                    ffi::Buffer<ffi::S32> count, ffi::RemainingArgs weights, ffi::RemainingRets results) {
  const int64_t M = x.dimensions()[0], I = x.dimensions()[1];
  const int64_t rows = std::clamp<int64_t>(count.typed_data()[0], 0, M);
  // 1. The products, each in some pieces.
  std::vector<Product> products;
  Pieces pieces;
  for (size_t number = 0; number < weights.size(); number++) {
    const auto stack = weights.get<ffi::Buffer<kWeights>>(number);
    auto y = results.get<ffi::Buffer<ffi::F32>>(number);
    if (!stack.has_value()) return stack.error();
    if (!y.has_value()) return y.error();
    const int64_t O = (*y)->dimensions()[1], S = stack->dimensions()[1];
    if (stack->dimensions()[2] != I || stack->dimensions()[3] != kStrip || S * kStrip < O)
      return ffi::Error::InvalidArgument("panels that do not fit the rows, the outputs or this processor");
    const int64_t which = std::clamp<int64_t>(layer.typed_data()[0], 0, stack->dimensions()[0] - 1);
    const auto* matrix = static_cast<const Weight*>(stack->untyped_data()) + which * S * I * kStrip;
    products.push_back({x.typed_data(), matrix, (*y)->typed_data(), rows, I, O});
    std::fill(products.back().y + rows * O, products.back().y + M * O, 0.0f);  // rows that don't matter
    pieces.Add(std::min(S, kPieces * std::max<int64_t>(1, pool.num_threads())));
  }
  if (rows == 0) return ffi::Error::Success();
  // 2. All pieces, by all threads.
  pieces.OnThreads(pool, [&](int64_t number, int64_t piece, int64_t of) {
    ThroughPanels(products[number], Part((products[number].O + kStrip - 1) / kStrip, piece, of));
  });
  return ffi::Error::Success();
}

}  // namespace

extern "C" const int32_t panel_width = kStrip;

XLA_FFI_DEFINE_HANDLER_SYMBOL(rows_products, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .RemainingRets());
