// Attention over packed token trees and its gradients, which XLA calls on CPUs (lm/attention/cpu.py).
//
// B rows of T nodes in depth-first order, N query heads and K key-value heads of size H, so that G = N / K query heads
// share one. Node i sees node j exactly when j <= i < end[j]. A tile is kPlaces nodes, one after the other, with the
// query heads of one key-value head: X queries. It sees S keys, its own nodes' and those of its first node's
// ancestors. They are gathered, so that nothing is computed with a key that no query sees.
//
// Scores lie transposed, one row for each key. A key is seen by nodes side by side, so a mask is the two ends of a row,
// and the softmax goes down the columns in whole vectors. It is accumulated over kChunk keys at a time (arXiv 2205.14135).
//
// Outputs are divided among threads by tiles. Gradients are by whole trees, because all queries of a tree add to the
// same keys: a row that is one tree gives work to K threads.

#include <cmath>
#include <vector>

#include "kernels.h"

namespace {

constexpr int64_t kPlaces = 32;   // of a tile
constexpr int64_t kChunk = 128;   // keys at once, so that their scores stay in a core's cache
constexpr int64_t kForest = 128;  // places of trees that are one piece of work, at least

struct Shape {
  int64_t B, T, N, K, H;
  int64_t group() const { return N / K; }
  // The first place after the subtree of node j of a row, in the row and after j whatever its size claims.
  int64_t End(const int32_t* size, int64_t j) const { return j + std::clamp<int64_t>(size[j], 1, T - j); }
};

using Floats = std::vector<float>;

// y[rows, columns] (+)= x * panel[depth, columns], where x is [rows, depth], or [depth, rows] if kTransposed. The
// panel is in strips, `strip` apart, with lines `stride` apart; columns are a multiple of a strip's.
template <bool kTransposed>
void Multiply(int64_t rows, int64_t columns, int64_t depth, const float* x, int64_t x_stride, const float* panel,
              int64_t stride, int64_t strip, float* y, bool add) {
  for (int64_t c = 0; c < columns; c += kStrip, panel += strip)
    for (int64_t m = 0; m < rows; m += kRows)
      kMultiplyStrip<float, kTransposed>[std::min<int64_t>(kRows, rows - m)](
          depth, x + m * (kTransposed ? 1 : x_stride), x_stride, panel, stride, y + m * columns + c, columns, add,
          {.steps = depth});
}

// The tiles of one row and one key-value head, one after the other.
class Tiles {
 public:
  Tiles(const Shape& shape, const int32_t* size, const float* k, const float* v, int64_t row, int64_t head)
      : shape_(shape), size_(size + row * shape.T), keys_(Head(k, row, head)), values_(Head(v, row, head)), head_(head) {}

  int64_t X;                   // queries, in whole strips
  Floats scores;               // [S, X]
  Floats key, value;           // [S, H]
  std::vector<int64_t> place;  // of the keys, [S]

  // Goes to a tile, and finds what it sees.
  void Enter(Range tile) {
    tile_ = tile;
    X = (tile.size() * shape_.group() + kStrip - 1) / kStrip * kStrip;
    seen_.clear();
    for (int64_t j = 0; j < tile.first;) {
      if (End(j) > tile.first) seen_.push_back(j);
      j = End(j) > tile.first ? j + 1 : End(j);
    }
    for (int64_t j = tile.first; j < tile.last; j++) seen_.push_back(j);
  }

  int64_t chunks() const { return (seen_.size() + kChunk - 1) / kChunk; }

  // Gathers the keys and values of a chunk; returns how many they are.
  int64_t Gather(int64_t chunk) {
    place.assign(seen_.begin() + chunk * kChunk, seen_.begin() + std::min<int64_t>((chunk + 1) * kChunk, seen_.size()));
    const int64_t S = place.size(), H = shape_.H, stride = shape_.K * H;
    key.resize(S * H);
    value.resize(S * H);
    scores.resize(S * X);
    for (int64_t s = 0; s < S; s++) {
      std::copy_n(keys_ + place[s] * stride, H, &key[s * H]);
      std::copy_n(values_ + place[s] * stride, H, &value[s * H]);
    }
    return S;
  }

  // Queries that see the key `s` of the chunk.
  Range Seeing(int64_t s) const {
    const int64_t G = shape_.group();
    return {std::max<int64_t>(place[s] - tile_.first, 0) * G, (std::min(End(place[s]), tile_.last) - tile_.first) * G};
  }

  // The tile's part of [B, T, N, H] as [X, H], times `factor`, with zeros at the end.
  void Rows(const float* all, int64_t row, float factor, Floats& rows) const {
    const int64_t H = shape_.H, G = shape_.group();
    rows.assign(X * H, 0.0f);
    for (int64_t i = 0; i < tile_.size(); i++) {
      const float* from = Place(all, row, i);
      for (int64_t n = 0; n < G * H; n++) rows[i * G * H + n] = from[n] * factor;
    }
  }

  // The tile's query heads at its place i.
  template <typename T>
  T* Place(T* all, int64_t row, int64_t i, int64_t size) const {
    return all + ((row * shape_.T + tile_.first + i) * shape_.N + head_ * shape_.group()) * size;
  }
  template <typename T>
  T* Place(T* all, int64_t row, int64_t i) const {
    return Place(all, row, i, shape_.H);
  }

 private:
  int64_t End(int64_t j) const { return shape_.End(size_, j); }
  const float* Head(const float* all, int64_t row, int64_t head) const {
    return all + (row * shape_.T * shape_.K + head) * shape_.H;
  }

  const Shape shape_;
  const int32_t* size_;
  const float *keys_, *values_;
  const int64_t head_;
  Range tile_;
  std::vector<int64_t> seen_;
};

// [X, H] as strips of [H, kStrip]: the columns of a product.
void Transpose(int64_t X, int64_t H, const Floats& rows, Floats& strips) {
  strips.resize(X * H);
  for (int64_t x = 0; x < X; x++)
    for (int64_t h = 0; h < H; h++) strips[(x / kStrip * H + h) * kStrip + x % kStrip] = rows[x * H + h];
}

// ---- Forward ----

void Forward(const Shape& shape, const float* q, const float* k, const float* v, const int32_t* size, float* out,
             float* lse, int64_t row, int64_t head, Range tile) {
  const int64_t H = shape.H, G = shape.group();
  Tiles tiles(shape, size, k, v, row, head);
  tiles.Enter(tile);
  const int64_t X = tiles.X;
  Floats rows, queries, largest(X, kUnseen), sum(X, 0.0f), summed(X * H), shrink(X);
  tiles.Rows(q, row, 1 / std::sqrt(static_cast<float>(H)), rows);
  Transpose(X, H, rows, queries);
  for (int64_t chunk = 0; chunk < tiles.chunks(); chunk++) {
    // 1. Scores, [S, X].
    const int64_t S = tiles.Gather(chunk);
    float* scores = tiles.scores.data();
    Multiply<false>(S, X, H, tiles.key.data(), H, queries.data(), kStrip, H * kStrip, scores, false);
    // 2. What isn't seen, and the largest of each column.
    std::copy(largest.begin(), largest.end(), shrink.begin());
    for (int64_t s = 0; s < S; s++) {
      float* line = scores + s * X;
      const Range seeing = tiles.Seeing(s);
      std::fill(line, line + seeing.first, kUnseen);
      std::fill(line + seeing.last, line + X, kUnseen);
      for (int64_t x = 0; x < X; x += kWidth) {
        const Vector score = Load(line + x), best = Load(&largest[x]);
        Store(&largest[x], score > best ? score : best);
      }
    }
    // 3. Weights, and their sums.
    for (int64_t x = 0; x < X; x += kWidth) {
      const Vector less = Exp(Load(&shrink[x]) - Load(&largest[x]));
      Store(&shrink[x], less);
      Store(&sum[x], Load(&sum[x]) * less);
    }
    for (int64_t s = 0; s < S; s++)
      for (int64_t x = 0; x < X; x += kWidth) {
        const Vector score = Load(scores + s * X + x);
        const Vector weight = score <= kUnseen ? Vector{} : Exp(score - Load(&largest[x]));  // NaN stays NaN
        Store(scores + s * X + x, weight);
        Store(&sum[x], Load(&sum[x]) + weight);
      }
    // 4. Values, weighted.
    if (chunk)
      for (int64_t x = 0; x < X; x++)
        for (int64_t h = 0; h < H; h++) summed[x * H + h] *= shrink[x];
    Multiply<true>(X, H, S, scores, X, tiles.value.data(), H, kStrip, summed.data(), chunk > 0);
  }
  // 5. Outputs and log-sum-exps, where they belong.
  for (int64_t i = 0; i < tile.size(); i++) {
    float* to = tiles.Place(out, row, i);
    float* to_lse = tiles.Place(lse, row, i, 1);
    for (int64_t g = 0; g < G; g++) {
      const int64_t x = i * G + g;
      for (int64_t h = 0; h < H; h++) to[g * H + h] = summed[x * H + h] / sum[x];
      to_lse[g] = largest[x] + std::log(sum[x]);
    }
  }
}

// ---- Backward ----

struct Gradients {
  const float *q, *k, *v, *out, *lse, *dout;
  const int32_t* size;
  float *dq, *dk, *dv;
};

// Of the trees at `forest`, whose keys nobody else sees.
void Backward(const Shape& shape, const Gradients& g, int64_t row, int64_t head, Range forest) {
  const int64_t H = shape.H, G = shape.group(), stride = shape.K * H;
  const float scale = 1 / std::sqrt(static_cast<float>(H));
  float* dk = g.dk + (row * shape.T * shape.K + head) * H;
  float* dv = g.dv + (row * shape.T * shape.K + head) * H;
  for (int64_t j = forest.first; j < forest.last; j++) {
    std::fill_n(dk + j * stride, H, 0.0f);
    std::fill_n(dv + j * stride, H, 0.0f);
  }
  const auto add = [&](const Floats& rows, const std::vector<int64_t>& place, float* to) {
    for (size_t s = 0; s < place.size(); s++)
      for (int64_t h = 0; h < H; h++) to[place[s] * stride + h] += rows[s * H + h];
  };
  Tiles tiles(shape, g.size, g.k, g.v, row, head);
  Floats q, dout, queries, douts, lse, delta, dscores, dq, of_keys;
  for (int64_t first = forest.first; first < forest.last; first += kPlaces) {
    // 1. The tile's queries and the gradients of its outputs, both ways; delta is what the softmax takes away.
    const Range tile = {first, std::min(first + kPlaces, forest.last)};
    tiles.Enter(tile);
    const int64_t X = tiles.X;
    tiles.Rows(g.q, row, scale, q);
    tiles.Rows(g.dout, row, 1.0f, dout);
    Transpose(X, H, q, queries);
    Transpose(X, H, dout, douts);
    lse.assign(X, 0.0f);
    delta.assign(X, 0.0f);
    for (int64_t i = 0; i < tile.size(); i++)
      for (int64_t n = 0; n < G; n++) {
        const float* out = tiles.Place(g.out, row, i) + n * H;
        lse[i * G + n] = tiles.Place(g.lse, row, i, 1)[n];
        for (int64_t h = 0; h < H; h++) delta[i * G + n] += out[h] * dout[(i * G + n) * H + h];
      }
    dq.resize(X * H);
    for (int64_t chunk = 0; chunk < tiles.chunks(); chunk++) {
      // 2. The weights once more, and the gradient of each.
      const int64_t S = tiles.Gather(chunk);
      float* weights = tiles.scores.data();
      dscores.resize(S * X);
      of_keys.resize(S * H);
      Multiply<false>(S, X, H, tiles.key.data(), H, queries.data(), kStrip, H * kStrip, weights, false);
      Multiply<false>(S, X, H, tiles.value.data(), H, douts.data(), kStrip, H * kStrip, dscores.data(), false);
      for (int64_t s = 0; s < S; s++) {
        float* line = weights + s * X;
        const Range seeing = tiles.Seeing(s);
        std::fill(line, line + seeing.first, kUnseen);
        std::fill(line + seeing.last, line + X, kUnseen);
        for (int64_t x = 0; x < X; x += kWidth) {
          const Vector score = Load(line + x);
          const Vector weight = score <= kUnseen ? Vector{} : Exp(score - Load(&lse[x]));
          Store(line + x, weight);
          Store(&dscores[s * X + x], weight * (Load(&dscores[s * X + x]) - Load(&delta[x])));
        }
      }
      // 3. Values, keys, queries.
      Multiply<false>(S, H, X, weights, X, dout.data(), H, kStrip, of_keys.data(), false);
      add(of_keys, tiles.place, dv);
      Multiply<false>(S, H, X, dscores.data(), X, q.data(), H, kStrip, of_keys.data(), false);
      add(of_keys, tiles.place, dk);
      Multiply<true>(X, H, S, dscores.data(), X, tiles.key.data(), H, kStrip, dq.data(), chunk > 0);
    }
    for (int64_t i = 0; i < tile.size(); i++) {
      float* to = tiles.Place(g.dq, row, i);
      for (int64_t n = 0; n < G * H; n++) to[n] = dq[i * G * H + n] * scale;
    }
  }
}

// ---- What XLA calls ----

using Numbers = ffi::Buffer<ffi::F32>;
using Sizes = ffi::Buffer<ffi::S32>;
using Result = ffi::ResultBuffer<ffi::F32>;

Shape ShapeOf(const Numbers& q, const Numbers& k) {
  const auto dimensions = q.dimensions();
  return {dimensions[0], dimensions[1], dimensions[2], k.dimensions()[2], dimensions[3]};
}

ffi::Error Attention(ffi::ThreadPool pool, Numbers q, Numbers k, Numbers v, Sizes size, Result out, Result lse) {
  const Shape shape = ShapeOf(q, k);
  const int64_t tiles = (shape.T + kPlaces - 1) / kPlaces;
  OnAllThreads(pool, shape.B * shape.K * tiles, [&](int64_t piece) {
    const int64_t first = piece % tiles * kPlaces;
    Forward(shape, q.typed_data(), k.typed_data(), v.typed_data(), size.typed_data(), out->typed_data(),
            lse->typed_data(), piece / tiles / shape.K, piece / tiles % shape.K,
            {first, std::min(first + kPlaces, shape.T)});
  });
  return ffi::Error::Success();
}

ffi::Error Gradient(ffi::ThreadPool pool, Numbers q, Numbers k, Numbers v, Sizes size, Numbers out, Numbers lse,
                    Numbers dout, Result dq, Result dk, Result dv) {
  const Shape shape = ShapeOf(q, k);
  const Gradients all = {q.typed_data(), k.typed_data(), v.typed_data(), out.typed_data(), lse.typed_data(),
                         dout.typed_data(), size.typed_data(), dq->typed_data(), dk->typed_data(), dv->typed_data()};
  struct Piece {
    int64_t row, head;
    Range forest;
  };
  std::vector<Piece> pieces;
  for (int64_t row = 0; row < shape.B; row++)
    for (int64_t first = 0; first < shape.T;) {
      int64_t last = first;
      while (last < shape.T && last - first < kForest) last = shape.End(all.size + row * shape.T, last);
      for (int64_t head = 0; head < shape.K; head++) pieces.push_back({row, head, {first, last}});
      first = last;
    }
  // The largest first, so that no thread begins one when the others have ended.
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const Piece& a, const Piece& b) { return a.forest.size() > b.forest.size(); });
  OnAllThreads(pool, pieces.size(),
               [&](int64_t piece) { Backward(shape, all, pieces[piece].row, pieces[piece].head, pieces[piece].forest); });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(tree_attention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Sizes>()
                                  .Ret<Numbers>()
                                  .Ret<Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tree_attention_gradient, Gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Sizes>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Numbers>());
