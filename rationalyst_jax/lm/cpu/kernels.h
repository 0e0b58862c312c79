// What the kernels of this folder share: vectors, the softmax's exp, two products that stay in registers, and threads.
//
// WEIGHT_BITS says what weights, keys and values are: 32 is float32, 16 bfloat16, 8 int8. They become float32 in
// registers, and sums are float32.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

// GCC makes a dozen instructions of a conversion from narrow weights, where these processors have one.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ffi = xla::ffi;

#define UNROLLED _Pragma("GCC unroll 16")

namespace {

// ---- Vectors, as wide as the processor has them ----

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kWidth * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <typename T>
inline auto LoadAs(const void* from) {
  return *static_cast<const typename VectorOf<T>::Type*>(from);
}
using Vector = VectorOf<float>::Type;

inline Vector Load(const float* from) { return LoadAs<float>(from); }
inline void Store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

#if WEIGHT_BITS == 32
using Weight = float;
constexpr auto kWeights = ffi::F32;
inline float Number(Weight w) { return w; }
#elif WEIGHT_BITS == 16
using Weight = uint16_t;  // the upper half of a float32
constexpr auto kWeights = ffi::BF16;
inline Vector Load(const Weight* from) {
#if defined(__AVX512F__)
  const auto wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return reinterpret_cast<Vector>(_mm512_slli_epi32(wide, 16));
#elif defined(__AVX2__)
  const auto wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return reinterpret_cast<Vector>(_mm256_slli_epi32(wide, 16));
#else
  return reinterpret_cast<Vector>(__builtin_convertvector(LoadAs<Weight>(from), VectorOf<uint32_t>::Type) << 16);
#endif
}
inline float Number(Weight w) {
  const union {
    uint32_t bits;
    float number;
  } both = {static_cast<uint32_t>(w) << 16};
  return both.number;
}
#else
using Weight = int8_t;
constexpr auto kWeights = ffi::S8;
inline Vector Load(const Weight* from) {
#if defined(__AVX512F__)
  const auto wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return reinterpret_cast<Vector>(_mm512_cvtepi32_ps(wide));
#elif defined(__AVX2__)
  const auto wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(wide));
#else
  return __builtin_convertvector(__builtin_convertvector(LoadAs<Weight>(from), VectorOf<int32_t>::Type), Vector);
#endif
}
inline float Number(Weight w) { return w; }
#endif

// a * b + c, rounded once where the processor can. A compiler that may choose does so for some numbers of rows and not for
// others.
inline Vector MultiplyAdd(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__) && defined(__FMA__)
  return reinterpret_cast<Vector>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// ---- The softmax ----

constexpr float kUnseen = -1e30f;  // stands for the score of a key that a query doesn't see

// exp of numbers that are at most 0, to the last bits but two (the polynomial of Cephes' expf).
inline Vector Exp(Vector x) {
  using Integers = VectorOf<int32_t>::Type;
  x = x < -87.0f ? Vector{} - 87.0f : x;
  const Integers power = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);
  const Vector n = __builtin_convertvector(power, Vector);
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector value = r * 1.9875691500e-4f + 1.3981999507e-3f;
  value = value * r + 8.3334519073e-3f;
  value = value * r + 4.1665795894e-2f;
  value = value * r + 1.6666665459e-1f;
  value = value * r + 5.0000001201e-1f;
  value = value * r * r + r + 1.0f;
  return value * reinterpret_cast<Vector>((power + 127) << 23);
}

// ---- Two products that stay in registers ----

constexpr int kStrip = 2 * kWidth;  // columns at once
constexpr int kRows = 6;            // rows of x at once, so that their sums of a strip stay in registers

// Lines that are fetched into the cache beside the work: the first of those that are left, how far apart they
// are, and how many steps of work there are for each. Without a line nothing is fetched.
struct Fetch {
  const Weight* line = nullptr;
  int64_t stride = 0;
  int64_t steps = 1;
};

// y[M, kStrip] (+)= x[M, depth] * panel[depth, kStrip]. Strides are in elements; a transposed x lies as
// [depth, M].
template <int M, typename T, bool kTransposed>
void MultiplyStrip(int64_t depth, const float* x, int64_t x_stride, const T* panel, int64_t panel_stride, float* y,
                   int64_t y_stride, bool add, Fetch fetch) {
  Vector sum[M][2];
  UNROLLED for (int m = 0; m < M; m++)
    UNROLLED for (int half = 0; half < 2; half++)
      sum[m][half] = add ? Load(y + m * y_stride + half * kWidth) : Vector{};
  const auto step = [&](int64_t d) {
    const Vector left = Load(panel + d * panel_stride), right = Load(panel + d * panel_stride + kWidth);
    UNROLLED for (int m = 0; m < M; m++) {
      const Vector factor = x[kTransposed ? d * x_stride + m : m * x_stride + d] - Vector{};
      sum[m][0] = MultiplyAdd(factor, left, sum[m][0]);
      sum[m][1] = MultiplyAdd(factor, right, sum[m][1]);
    }
  };
  if (fetch.steps == 1) {  // as below, without an inner loop of one step
    for (int64_t d = 0; d < depth; d++) {
      __builtin_prefetch(fetch.line + d * fetch.stride);
      step(d);
    }
  } else {
    for (int64_t d = 0; d < depth; fetch.line += fetch.stride) {
      __builtin_prefetch(fetch.line);
      for (const int64_t stop = std::min(d + fetch.steps, depth); d < stop; d++) step(d);
    }
  }
  UNROLLED for (int m = 0; m < M; m++)
    UNROLLED for (int half = 0; half < 2; half++) Store(y + m * y_stride + half * kWidth, sum[m][half]);
}

// By the number of rows.
template <typename T, bool kTransposed>
constexpr decltype(&MultiplyStrip<1, T, kTransposed>) kMultiplyStrip[] = {
    nullptr,
    MultiplyStrip<1, T, kTransposed>, MultiplyStrip<2, T, kTransposed>, MultiplyStrip<3, T, kTransposed>,
    MultiplyStrip<4, T, kTransposed>, MultiplyStrip<5, T, kTransposed>, MultiplyStrip<6, T, kTransposed>,
};

inline float Sum(Vector x) {
  float total = 0;
  UNROLLED for (int k = 0; k < kWidth; k++) total += x[k];
  return total;
}

// y[M, C] = x[M, I] * w[C, I] transposed: the dot products of their rows.
template <int M, int C>
void DotProducts(int64_t I, const float* x, int64_t x_stride, const Weight* w, int64_t w_stride, float* y,
                 int64_t y_stride) {
  Vector sum[M][C] = {};
  int64_t i = 0;
  for (; i + kWidth <= I; i += kWidth) {
    Vector row[M];
    UNROLLED for (int m = 0; m < M; m++) row[m] = Load(x + m * x_stride + i);
    UNROLLED for (int c = 0; c < C; c++) {
      const Vector column = Load(w + c * w_stride + i);
      UNROLLED for (int m = 0; m < M; m++) sum[m][c] = MultiplyAdd(row[m], column, sum[m][c]);
    }
  }
  UNROLLED for (int m = 0; m < M; m++)
    UNROLLED for (int c = 0; c < C; c++) {
      float total = Sum(sum[m][c]);
      for (int64_t rest = i; rest < I; rest++) total += x[m * x_stride + rest] * Number(w[c * w_stride + rest]);
      y[m * y_stride + c] = total;
    }
}

// The same for any number of rows of x.
template <int C>
void DotProductsOf(int64_t rows, int64_t I, const float* x, int64_t x_stride, const Weight* w, int64_t w_stride,
                   float* y, int64_t y_stride) {
  int64_t m = 0;
  for (; m + 3 <= rows; m += 3)
    DotProducts<3, C>(I, x + m * x_stride, x_stride, w, w_stride, y + m * y_stride, y_stride);
  if (rows - m == 2) DotProducts<2, C>(I, x + m * x_stride, x_stride, w, w_stride, y + m * y_stride, y_stride);
  if (rows - m == 1) DotProducts<1, C>(I, x + m * x_stride, x_stride, w, w_stride, y + m * y_stride, y_stride);
}

// ---- Parts of the work, and all threads ----

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Part `number` of `parts` nearly equal ones of 0 .. `all`.
inline Range Part(int64_t all, int64_t number, int64_t parts) {
  return {all * number / parts, all * (number + 1) / parts};
}

// Calls work(0) .. work(pieces - 1) on XLA's threads, this one among them, and returns when all are done. A
// thread that comes late finds nothing left to do.
template <typename Work>
void OnAllThreads(ffi::ThreadPool& pool, int64_t pieces, Work work) {
  struct Progress {
    std::atomic<int64_t> taken{0}, done{0};
  };
  const auto progress = std::make_shared<Progress>();
  const auto take = [progress, pieces, work] {
    for (int64_t piece; (piece = progress->taken.fetch_add(1)) < pieces;) {
      work(piece);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t other = 1; other < std::min(pool.num_threads(), pieces); other++) pool.Schedule([take] { take(); });
  take();
  while (progress->done.load(std::memory_order_acquire) < pieces) std::this_thread::yield();
}

}  // namespace
