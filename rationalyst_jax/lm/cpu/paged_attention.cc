// Attention of a step's queries over the pages of their sequences, which XLA calls on CPUs
// (lm/engine/attention/cpu.py).
//
// R rows of Q queries each, with N query heads of size H; the cache has pages of S keys and values of K heads,
// so that G = N / K query heads share one. WEIGHT_BITS says what keys and values are. Pages are read one after the
// other, with the softmax accumulated (arXiv 2205.14135).

#include <cmath>
#include <vector>

#include "kernels.h"

namespace {

constexpr int64_t kTogether = 48;  // queries that go through the shared prefix together, at most
constexpr int64_t kLine = 64;      // bytes that come from memory together

struct Step {
  const float* q;          // [R, Q, N, H]
  const Weight* cache;     // [pages, S, 2 K, H], a head's keys and values side by side
  const int32_t* prefix;   // [P]: the pages with which rows `in_prefix` begin, `prefixed` of them
  int64_t prefixed;
  const int32_t* position;  // [R, Q], -1 for fillers, which come last
  const int32_t* page;      // [R, P]
  const bool* in_prefix;    // [R]
  float* out;               // [R, Q, N, H]
  int64_t R, Q, N, H, S, K, P;
};

// Queries of one key-value head on their way through the pages.
struct Queries {
  int64_t H, S, width;  // `width`: S in whole vectors
  std::vector<float> q, out, largest, sum;  // [Y, H], [Y, H], [Y], [Y]
  std::vector<int32_t> last;                // [Y]: the last key that each sees
  std::vector<float> scores;                // [Y, width]

  // Keys `first` .. of a page, each with its value behind it, for some queries. Keys are `stride` apart. Those of the
  // page that is visited `next` are fetched into the cache meanwhile.
  void Visit(const Weight* keys, int64_t stride, int64_t first, Range some, const Weight* next) {
    const Weight* values = keys + H;
    for (int64_t s = 0; s < S; s++)
      for (int64_t byte = 0; byte < 2 * H * static_cast<int64_t>(sizeof(Weight)); byte += kLine)
        __builtin_prefetch(reinterpret_cast<const char*>(next + s * stride) + byte);
    // 1. Scores.
    float* score = scores.data() + some.first * width;
    const float* x = q.data() + some.first * H;
    int64_t s = 0;
    for (; s + 4 <= S; s += 4) DotProductsOf<4>(some.size(), H, x, H, keys + s * stride, stride, score + s, width);
    for (; s < S; s++) DotProductsOf<1>(some.size(), H, x, H, keys + s * stride, stride, score + s, width);
    // 2. The softmax so far.
    for (int64_t y = some.first; y < some.last; y++) {
      float* row = scores.data() + y * width;
      const int64_t seen = std::clamp<int64_t>(last[y] + 1 - first, 0, S);
      float best = largest[y];
      for (int64_t k = 0; k < seen; k++) best = std::max(best, row[k]);
      std::fill(row + seen, row + width, kUnseen);
      if (best > largest[y]) {
        const float shrunk = std::exp(largest[y] - best);
        sum[y] *= shrunk;
        for (int64_t h = 0; h < H; h += kWidth) Store(out.data() + y * H + h, Load(out.data() + y * H + h) * shrunk);
        largest[y] = best;
      }
      Vector total = {};
      for (int64_t k = 0; k < width; k += kWidth) {
        const Vector of_page = Load(row + k);
        const Vector weight = of_page > kUnseen ? Exp(of_page - best) : Vector{};
        Store(row + k, weight);
        total += weight;
      }
      sum[y] += Sum(total);
    }
    // 3. The values, weighted.
    for (int64_t y = some.first; y < some.last; y += kRows) {
      const auto multiply = kMultiplyStrip<Weight, false>[std::min<int64_t>(kRows, some.last - y)];
      for (int64_t h = 0; h < H; h += kStrip)
        multiply(S, scores.data() + y * width, width, values + h, stride, out.data() + y * H + h, H, true, {.steps = S});
    }
  }
};

// Rows of queries, those in the prefix first, of one key-value head.
void Attend(const Step& step, const std::vector<int64_t>& rows, int64_t k) {
  const int64_t G = step.N / step.K, H = step.H, S = step.S;
  const int64_t stride = 2 * step.K * H, page_size = S * stride;
  const float scale = 1 / std::sqrt(static_cast<float>(H));
  const Weight* keys = step.cache + 2 * k * H;

  // 1. The queries, scaled, side by side.
  Queries queries{H, S, (S + kWidth - 1) / kWidth * kWidth};
  std::vector<int64_t> begins;
  int64_t prefixed = 0;
  for (const int64_t row : rows) {
    begins.push_back(queries.last.size());
    for (int64_t i = row * step.Q; i < (row + 1) * step.Q && step.position[i] >= 0; i++)
      for (int64_t g = 0; g < G; g++) {
        const float* q = step.q + (i * step.N + k * G + g) * H;
        for (int64_t h = 0; h < H; h++) queries.q.push_back(q[h] * scale);
        queries.last.push_back(step.position[i]);
      }
    if (step.in_prefix[row]) prefixed = queries.last.size();
  }
  const int64_t Y = queries.last.size();
  begins.push_back(Y);
  queries.out.assign(Y * H, 0);
  queries.largest.assign(Y, kUnseen);
  queries.sum.assign(Y, 0);
  queries.scores.resize(Y * queries.width);

  // 2. What is visited: the shared prefix, once for all of them, and what a row has for itself.
  struct Visited {
    const Weight* keys;
    int64_t first;
    Range some;
  };
  std::vector<Visited> pages;
  for (int64_t p = 0; p < step.prefixed && prefixed; p++)
    pages.push_back({keys + step.prefix[p] * page_size, p * S, {0, prefixed}});
  for (size_t number = 0; number < rows.size(); number++) {
    const Range some = {begins[number], begins[number + 1]};
    if (some.size() == 0) continue;
    const int64_t row = rows[number];
    for (int64_t p = step.in_prefix[row] ? step.prefixed : 0; p * S <= queries.last[some.last - 1]; p++)
      pages.push_back({keys + step.page[row * step.P + p] * page_size, p * S, some});
  }

  // 3. Page after page.
  for (size_t number = 0; number < pages.size(); number++) {
    const Visited& page = pages[number];
    const Visited& next = pages[std::min(number + 1, pages.size() - 1)];
    queries.Visit(page.keys, stride, page.first, page.some, next.keys);
  }

  // 4. Their outputs, where they belong.
  for (size_t number = 0; number < rows.size(); number++)
    for (int64_t y = begins[number]; y < begins[number + 1]; y++) {
      const int64_t i = rows[number] * step.Q + (y - begins[number]) / G, g = (y - begins[number]) % G;
      float* out = step.out + (i * step.N + k * G + g) * H;
      for (int64_t h = 0; h < H; h++) out[h] = queries.out[y * H + h] / queries.sum[y];
    }
}

ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<kWeights> cache,
                     ffi::Buffer<ffi::S32> prefix, ffi::Buffer<ffi::S32> prefixed, ffi::Buffer<ffi::S32> position,
                     ffi::Buffer<ffi::S32> page, ffi::Buffer<ffi::PRED> in_prefix,
                     ffi::ResultBuffer<ffi::F32> out) {
  const auto q_shape = q.dimensions(), cache_shape = cache.dimensions();
  const Step step = {
      .q = q.typed_data(),
      .cache = static_cast<const Weight*>(cache.untyped_data()),
      .prefix = prefix.typed_data(),
      .prefixed = prefixed.typed_data()[0],
      .position = position.typed_data(),
      .page = page.typed_data(),
      .in_prefix = in_prefix.typed_data(),
      .out = out->typed_data(),
      .R = q_shape[0],
      .Q = q_shape[1],
      .N = q_shape[2],
      .H = q_shape[3],
      .S = cache_shape[1],
      .K = cache_shape[2] / 2,
      .P = page.dimensions()[1],
  };
  std::fill(step.out, step.out + q.element_count(), 0.0f);
  // 1. Rows in the prefix are dealt out in groups, so that a group reads it once; but there are some more pieces than
  // threads, so that none waits for long. Each other row is a group. They come last, for they are shorter.
  std::vector<std::vector<int64_t>> groups;
  std::vector<int64_t> begin_alike, others;
  for (int64_t row = 0; row < step.R; row++)
    if (step.position[row * step.Q] >= 0) (step.in_prefix[row] ? begin_alike : others).push_back(row);
  const int64_t alike = begin_alike.size(), of_row = step.Q * step.N / step.K;
  const int64_t least = std::min((2 * pool.num_threads() + step.K - 1) / step.K, alike);
  const int64_t parts = std::max(least, (alike * of_row + kTogether - 1) / kTogether);
  for (int64_t part = 0; part < std::min(parts, alike); part++) {
    const Range some = Part(alike, part, std::min(parts, alike));
    groups.emplace_back(begin_alike.begin() + some.first, begin_alike.begin() + some.last);
  }
  for (const int64_t row : others) groups.push_back({row});
  // 2. The groups' key-value heads. A thread that comes when nothing is left doesn't touch what is referred to here.
  OnAllThreads(pool, groups.size() * step.K,
               [&](int64_t piece) { Attend(step, groups[piece / step.K], piece % step.K); });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(paged_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<kWeights>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
