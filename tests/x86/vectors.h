// A software model of the AVX-512 intrinsics that csrc/cpu uses, and of AVX_VNNI's, on vectors that any x86-64
// processor can work with. Functions of the intrinsics' names in the kernels' own namespace hide them. Rounding to
// nearest even, whatever the processor is set to: nothing here sets it. test_x86_model.py holds each to the real one
// where there is AVX-512.
#pragma once

#include <cmath>

#include "faults.h"

// Macros in some compilers or without optimisation.
#undef _mm256_dpbusd_avx_epi32
#undef _mm512_cmp_pd_mask
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_dpbusd_epi32
#undef _mm512_extracti64x4_epi64
#undef _mm512_inserti64x4
#undef _mm512_roundscale_pd
#undef _mm512_roundscale_ps
#undef _mm512_setr_epi64
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_f64x2
#undef _mm512_shuffle_ps
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32

// Calls, which compile several times as fast as what would be inlined.
#define X86_MODEL [[gnu::noinline]] inline

namespace x86_model {

typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint32_t HalfWords __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(64)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(64)));
typedef int8_t QuarterBytes __attribute__((vector_size(16)));

inline thread_local int64_t dots = 0;  // vdpbf16ps run by this thread

template <class To, class From>
X86_MODEL To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <class V>
constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);

// Lane i is f(i).
template <class V, class F>
X86_MODEL V lanes(const F& f) {
  V out{};
  for (int i = 0; i < kLanes<V>; ++i) out[i] = f(i);
  return out;
}
template <class F>
X86_MODEL unsigned mask_of(int count, const F& f) {
  unsigned mask = 0;
  for (int i = 0; i < count; ++i) mask |= static_cast<unsigned>(f(i)) << i;
  return mask;
}
template <class V, class T>
X86_MODEL V masked_load(unsigned mask, const T* from) {  // touches nothing else
  return lanes<V>([&](int i) { return mask >> i & 1 ? from[i] : T(0); });
}
template <class V, class T>
X86_MODEL void masked_store(T* to, unsigned mask, const V& v) {
  for (int i = 0; i < kLanes<V>; ++i)
    if (mask >> i & 1) to[i] = v[i];
}
template <class V>
X86_MODEL unsigned compared(const V& a, const V& b, int how) {
  return mask_of(kLanes<V>, [&](int i) {
    if (how == _CMP_NLT_UQ) return !(a[i] < b[i]);
    if (how == _CMP_UNORD_Q) return a[i] != a[i] || b[i] != b[i];
    std::abort();
  });
}
// Only lanes that do not leave the normal numbers are modelled.
template <class V>
X86_MODEL V scaled(const V& a, const V& b) {
  return lanes<V>([&](int i) { return b[i] != b[i] ? b[i] : std::ldexp(a[i], static_cast<int>(std::floor(b[i]))); });
}
X86_MODEL __m512 flushed(__m512 x) {  // subnormals to zero
  const Words bits = as<Words>(x);
  return as<__m512>((bits & 0x7fffffff) < 0x00800000 ? bits & 0x80000000 : bits);
}
X86_MODEL __m512 fused(__m512 a, __m512 b, __m512 c) {
#ifdef __FMA__
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; ++i) z[i] = ::_mm256_fmadd_ps(x[i], y[i], z[i]);
  return as<__m512>(z);
#else
  return lanes<__m512>([&](int i) { return __builtin_fmaf(a[i], b[i], c[i]); });
#endif
}
// vpdpbusd: four bytes of each word, those of a without sign, those of w with one; sums wrap.
template <class V>
X86_MODEL V byte_dot(V sum, V a, V w) {
  for (int shift = 0; shift < 32; shift += 8) {
    V left = a >> shift & 0xff, right = w >> shift & 0xff;
    right = (right ^ 0x80) - 0x80;
    if (fault == kSignedBytes) left = (left ^ 0x80) - 0x80;
    sum += left * right;
  }
  return sum;
}

}  // namespace x86_model

namespace gru::cpu {

using x86_model::as;
using x86_model::lanes;
using x86_model::Words;

X86_MODEL __m512 _mm512_set1_ps(float x) { return __m512{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
X86_MODEL __m512d _mm512_set1_pd(double x) { return __m512d{x, x, x, x, x, x, x, x}; }
X86_MODEL __m512i _mm512_set1_epi32(int x) { return as<__m512i>(Words{} + static_cast<unsigned>(x)); }
X86_MODEL __m512i _mm512_setr_epi64(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g,
                                    int64_t h) {
  return __m512i{a, b, c, d, e, f, g, h};
}

X86_MODEL __m512 _mm512_castsi512_ps(__m512i x) { return as<__m512>(x); }
X86_MODEL __m512i _mm512_castps_si512(__m512 x) { return as<__m512i>(x); }
X86_MODEL __m512i _mm512_castsi256_si512(__m256i x) {
  return lanes<__m512i>([&](int i) { return i < 4 ? x[i] : 0; });
}
X86_MODEL __m256i _mm512_castsi512_si256(__m512i x) {
  return lanes<__m256i>([&](int i) { return x[i]; });
}
X86_MODEL __m256i _mm512_extracti64x4_epi64(__m512i x, int which) {
  return lanes<__m256i>([&](int i) { return x[4 * which + i]; });
}
X86_MODEL __m512i _mm512_inserti64x4(__m512i x, __m256i y, int which) {
  return lanes<__m512i>([&](int i) { return i / 4 == which ? y[i % 4] : x[i]; });
}

X86_MODEL __m512 _mm512_loadu_ps(const void* from) {
  __m512 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
X86_MODEL __m512d _mm512_loadu_pd(const void* from) { return as<__m512d>(_mm512_loadu_ps(from)); }
X86_MODEL void _mm512_storeu_ps(void* to, __m512 x) { std::memcpy(to, &x, sizeof x); }
X86_MODEL void _mm512_stream_ps(void* to, __m512 x) {
  if (reinterpret_cast<uintptr_t>(to) % 64 != 0) x86_model::misuse("vmovntps", "the address is not a line's");
  std::memcpy(to, &x, sizeof x);
}
X86_MODEL void _mm512_storeu_pd(void* to, __m512d x) { std::memcpy(to, &x, sizeof x); }
X86_MODEL __m256i _mm256_loadu_si256(const __m256i* from) {
  __m256i x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
X86_MODEL void _mm256_storeu_si256(__m256i* to, __m256i x) { std::memcpy(to, &x, sizeof x); }
X86_MODEL __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) {
  return x86_model::masked_load<__m512>(mask, static_cast<const float*>(from));
}
X86_MODEL __m512d _mm512_maskz_loadu_pd(__mmask8 mask, const void* from) {
  return x86_model::masked_load<__m512d>(mask, static_cast<const double*>(from));
}
X86_MODEL __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* from) {
  uint16_t halves[16] = {};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) std::memcpy(halves + i, static_cast<const char*>(from) + 2 * i, 2);
  return as<__m256i>(halves);
}
X86_MODEL void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 x) {
  x86_model::masked_store(static_cast<float*>(to), mask, x);
}
X86_MODEL void _mm512_mask_storeu_pd(void* to, __mmask8 mask, __m512d x) {
  x86_model::masked_store(static_cast<double*>(to), mask, x);
}
X86_MODEL void _mm256_mask_storeu_epi16(void* to, __mmask16 mask, __m256i x) {
  const auto halves = as<x86_model::Halves>(x);
  for (int i = 0; i < 16; ++i) {
    const uint16_t half = halves[i];
    if (mask >> i & 1) std::memcpy(static_cast<char*>(to) + 2 * i, &half, 2);
  }
}

X86_MODEL __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
X86_MODEL __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
X86_MODEL __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
X86_MODEL __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
X86_MODEL __m512d _mm512_add_pd(__m512d a, __m512d b) { return a + b; }
X86_MODEL __m512d _mm512_sub_pd(__m512d a, __m512d b) { return a - b; }
X86_MODEL __m512d _mm512_mul_pd(__m512d a, __m512d b) { return a * b; }
X86_MODEL __m512d _mm512_div_pd(__m512d a, __m512d b) { return a / b; }
X86_MODEL __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return x86_model::fused(a, b, c); }
X86_MODEL __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return x86_model::fused(-a, b, c); }
X86_MODEL __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
  return lanes<__m512d>([&](int i) { return __builtin_fma(a[i], b[i], c[i]); });
}
X86_MODEL __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
X86_MODEL __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
X86_MODEL __m512d _mm512_min_pd(__m512d a, __m512d b) { return a < b ? a : b; }
X86_MODEL __m512d _mm512_max_pd(__m512d a, __m512d b) { return a > b ? a : b; }
// Any estimate within 2^-14 would do: this one drops the last eight bits of the quotient.
X86_MODEL __m512 _mm512_rcp14_ps(__m512 x) { return as<__m512>(as<Words>(1 / x) & 0xffffff00); }
X86_MODEL __m512 _mm512_roundscale_ps(__m512 x, int) {  // to whole numbers
  return lanes<__m512>([&](int i) { return __builtin_rintf(x[i]); });
}
X86_MODEL __m512d _mm512_roundscale_pd(__m512d x, int) {
  return lanes<__m512d>([&](int i) { return __builtin_rint(x[i]); });
}
X86_MODEL __m512 _mm512_scalef_ps(__m512 a, __m512 b) { return x86_model::scaled(a, b); }
X86_MODEL __m512d _mm512_scalef_pd(__m512d a, __m512d b) { return x86_model::scaled(a, b); }

X86_MODEL __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  return static_cast<__mmask16>(x86_model::compared(a, b, how));
}
X86_MODEL __mmask8 _mm512_cmp_pd_mask(__m512d a, __m512d b, int how) {
  return static_cast<__mmask8>(x86_model::compared(a, b, how));
}
X86_MODEL __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) {
  return lanes<__m512>([&](int i) { return mask >> i & 1 ? x[i] : 0; });
}
X86_MODEL __m512d _mm512_maskz_mov_pd(__mmask8 mask, __m512d x) {
  return lanes<__m512d>([&](int i) { return mask >> i & 1 ? x[i] : 0; });
}
X86_MODEL __m512i _mm512_mask_mov_epi32(__m512i other, __mmask16 mask, __m512i x) {
  const Words a = as<Words>(x), b = as<Words>(other);
  return as<__m512i>(lanes<Words>([&](int i) { return mask >> i & 1 ? a[i] : b[i]; }));
}

X86_MODEL __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
X86_MODEL __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
X86_MODEL __m512i _mm512_add_epi32(__m512i a, __m512i b) { return as<__m512i>(as<Words>(a) + as<Words>(b)); }
X86_MODEL __m512i _mm512_slli_epi32(__m512i x, unsigned by) { return as<__m512i>(as<Words>(x) << by); }
X86_MODEL __m512i _mm512_srli_epi32(__m512i x, unsigned by) { return as<__m512i>(as<Words>(x) >> by); }

X86_MODEL __m512i _mm512_cvtepu16_epi32(__m256i x) {
  const auto halves = as<x86_model::Halves>(x);
  const uint32_t above = x86_model::fault == x86_model::kUpperHalves ? 0x3f800000 : 0;
  return as<__m512i>(lanes<Words>([&](int i) { return halves[i] | above; }));
}
X86_MODEL __m256i _mm512_cvtepi32_epi16(__m512i x) {
  const Words words = as<Words>(x);
  return as<__m256i>(lanes<x86_model::Halves>([&](int i) { return static_cast<uint16_t>(words[i]); }));
}
X86_MODEL __m512 _mm512_cvtph_ps(__m256i x) {
  const auto halves = as<x86_model::Halves>(x);
  return lanes<__m512>([&](int i) { return to_float(Float16{halves[i]}); });
}
X86_MODEL __m256i _mm512_cvtps_ph(__m512 x, int) {
  return as<__m256i>(lanes<x86_model::Halves>([&](int i) { return to_float16(x[i]).bits; }));
}
// Subnormals become zero.
X86_MODEL __m256i _mm512_cvtneps_pbh(__m512 x) {
  const __m512 flushed = x86_model::flushed(x);
  return as<__m256i>(lanes<x86_model::Halves>([&](int i) { return to_bfloat16(flushed[i]).bits; }));
}
// Each product is added by itself, the odd one first; subnormals are zero on the way in and out.
template <class V>
X86_MODEL __m512 _mm512_dpbf16_ps(__m512 sum, V a, V b) {
  using x86_model::flushed;
  ++x86_model::dots;
  const Words x = as<Words>(a), y = as<Words>(b);
  const auto add = [&](Words left, Words right) {
    sum = flushed(x86_model::fused(flushed(as<__m512>(left)), flushed(as<__m512>(right)), flushed(sum)));
  };
  add(x & 0xffff0000, y & 0xffff0000);
  add(x << 16, y << 16);
  return sum;
}

X86_MODEL __m512i _mm512_setzero_si512() { return __m512i{}; }
X86_MODEL __m512i _mm512_set1_epi16(short x) { return as<__m512i>(x86_model::Shorts{} + x); }
X86_MODEL __m512i _mm512_sub_epi32(__m512i a, __m512i b) { return as<__m512i>(as<Words>(a) - as<Words>(b)); }
X86_MODEL __m512i _mm512_max_epi32(__m512i a, __m512i b) {
  const auto x = as<x86_model::Integers>(a), y = as<x86_model::Integers>(b);
  return as<__m512i>(x > y ? x : y);
}
X86_MODEL __m512 _mm512_cvtepi32_ps(__m512i x) {
  const auto words = as<x86_model::Integers>(x);
  return lanes<__m512>([&](int i) { return static_cast<float>(words[i]); });
}
X86_MODEL __m512i _mm512_cvtps_epi32(__m512 x) {  // the least number for one that is too large, and for NaN
  return as<__m512i>(lanes<x86_model::Integers>([&](int i) {
    return __builtin_fabsf(x[i]) < 0x1p31f ? static_cast<int32_t>(__builtin_rintf(x[i])) : INT32_MIN;
  }));
}
X86_MODEL __m128i _mm512_cvtepi32_epi8(__m512i x) {
  const Words words = as<Words>(x);
  return as<__m128i>(lanes<x86_model::QuarterBytes>([&](int i) { return static_cast<int8_t>(words[i] & 0xff); }));
}
X86_MODEL __mmask64 _mm512_movepi8_mask(__m512i x) {
  const auto bytes = as<x86_model::Bytes>(x);
  __mmask64 mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<__mmask64>(bytes[i] < 0) << i;
  return mask;
}
X86_MODEL __m512i _mm512_mask_sub_epi8(__m512i other, __mmask64 mask, __m512i a, __m512i b) {
  const auto difference = as<x86_model::UnsignedBytes>(a) - as<x86_model::UnsignedBytes>(b);
  const auto rest = as<x86_model::UnsignedBytes>(other);
  return as<__m512i>(lanes<x86_model::UnsignedBytes>([&](int i) { return mask >> i & 1 ? difference[i] : rest[i]; }));
}
X86_MODEL __m512i _mm512_abs_epi8(__m512i x) {
  const auto bytes = as<x86_model::UnsignedBytes>(x);
  return as<__m512i>(as<x86_model::Bytes>(x) < 0 ? -bytes : bytes);
}
X86_MODEL __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {  // the bytes of a have no sign
  const auto x = as<x86_model::UnsignedBytes>(a);
  const auto y = as<x86_model::Bytes>(b);
  return as<__m512i>(lanes<x86_model::Shorts>([&](int i) {
    const int sum = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    return static_cast<int16_t>(sum < INT16_MIN ? INT16_MIN : sum > INT16_MAX ? INT16_MAX : sum);
  }));
}
X86_MODEL __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  const auto x = as<x86_model::Shorts>(a), y = as<x86_model::Shorts>(b);
  return as<__m512i>(lanes<Words>([&](int i) {
    const auto product = [&](int at) { return static_cast<uint32_t>(x[at] * y[at]); };
    return product(2 * i) + product(2 * i + 1);
  }));
}
X86_MODEL __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i w) {
  return as<__m512i>(x86_model::byte_dot(as<Words>(sum), as<Words>(a), as<Words>(w)));
}
X86_MODEL __m256i _mm256_dpbusd_avx_epi32(__m256i sum, __m256i a, __m256i w) {
  using V = x86_model::HalfWords;
  return as<__m256i>(x86_model::byte_dot(as<V>(sum), as<V>(a), as<V>(w)));
}

// Within each 128 bits.
X86_MODEL __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  return lanes<__m512>([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + i % 4 / 2]; });
}
X86_MODEL __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  return lanes<__m512>([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + 2 + i % 4 / 2]; });
}
X86_MODEL __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int how) {
  return lanes<__m512>([&](int i) { return (i % 4 < 2 ? a : b)[i / 4 * 4 + (how >> i % 4 * 2 & 3)]; });
}
// Of each 128 bits.
X86_MODEL __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int how) {
  if (x86_model::fault == x86_model::kMixLanes) how ^= 1;
  return lanes<__m512>([&](int i) { return (i < 8 ? a : b)[(how >> i / 4 * 2 & 3) * 4 + i % 4]; });
}
X86_MODEL __m512d _mm512_shuffle_f64x2(__m512d a, __m512d b, int how) {
  return lanes<__m512d>([&](int i) { return (i < 4 ? a : b)[(how >> i / 2 * 2 & 3) * 2 + i % 2]; });
}
X86_MODEL __m512d _mm512_permutex2var_pd(__m512d a, __m512i which, __m512d b) {
  return lanes<__m512d>([&](int i) { return (which[i] & 8 ? b : a)[which[i] & 7]; });
}

}  // namespace gru::cpu
