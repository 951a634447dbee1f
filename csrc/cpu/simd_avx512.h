// Vectors of 64 bytes: AVX-512 F, BW, DQ and VL; with GRU_BFLOAT16_DOT also the bfloat16 dot product of AVX512_BF16,
// with GRU_BYTE_DOT that of bytes of AVX512_VNNI.
// The interface is described in simd_portable.h.
#pragma once

constexpr int kVectorRegisters = 32;

template <class T>
struct Vec;

inline __mmask16 tail_mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }

template <>
struct Vec<float> {
  static constexpr int width = 16;
  __m512 v;
  static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(tail_mask(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, tail_mask(n), v); }
};

template <>
struct Vec<double> {
  static constexpr int width = 8;
  __m512d v;
  static Vec set(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const double* p, int n) { return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(tail_mask(n)), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, int n) const { _mm512_mask_storeu_pd(p, static_cast<__mmask8>(tail_mask(n)), v); }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}

// min and max give their second operand when either is NaN: x must stand there.
inline Vec<float> clamp(Vec<float> x, float low, float high) {
  return {_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x.v))};
}
inline Vec<double> clamp(Vec<double> x, double low, double high) {
  return {_mm512_min_pd(_mm512_set1_pd(high), _mm512_max_pd(_mm512_set1_pd(low), x.v))};
}
// The 14-bit estimate and one Newton step give full precision at a third of a division's price. Sigmoid and tanh only
// ask for finite denominators of at least one.
inline Vec<float> reciprocal(Vec<float> x) {
  const __m512 estimate = _mm512_rcp14_ps(x.v);
  const __m512 error = _mm512_fnmadd_ps(x.v, estimate, _mm512_set1_ps(1));
  return {_mm512_fmadd_ps(estimate, error, estimate)};
}
inline Vec<double> reciprocal(Vec<double> x) { return {_mm512_div_pd(_mm512_set1_pd(1), x.v)}; }
// A true division, for a quotient of one must come out as one.
inline Vec<float> divide(Vec<float> a, Vec<float> b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec<double> divide(Vec<double> a, Vec<double> b) { return {_mm512_div_pd(a.v, b.v)}; }
inline Vec<float> zero_where_below(Vec<float> y, Vec<float> x, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), y.v)};
}
inline Vec<double> zero_where_below(Vec<double> y, Vec<double> x, double limit) {
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x.v, _mm512_set1_pd(limit), _CMP_NLT_UQ), y.v)};
}
inline Vec<float> round_nearest(Vec<float> x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec<double> round_nearest(Vec<double> x) {
  return {_mm512_roundscale_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec<float> power_of_two(Vec<float> n) { return {_mm512_scalef_ps(_mm512_set1_ps(1), n.v)}; }
inline Vec<double> power_of_two(Vec<double> n) { return {_mm512_scalef_pd(_mm512_set1_pd(1), n.v)}; }

inline Vec<float> load_as(const float* p) { return Vec<float>::load(p); }
inline Vec<float> load_as(const float* p, int n) { return Vec<float>::load(p, n); }
inline Vec<double> load_as(const double* p) { return Vec<double>::load(p); }
inline Vec<double> load_as(const double* p, int n) { return Vec<double>::load(p, n); }
inline void store_as(float* p, Vec<float> x) { x.store(p); }
inline void store_as(float* p, Vec<float> x, int n) { x.store(p, n); }
inline void store_as(double* p, Vec<double> x) { x.store(p); }
inline void store_as(double* p, Vec<double> x, int n) { x.store(p, n); }

inline Vec<float> widen(__m256i half, BFloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline Vec<float> widen(__m256i half, Float16) { return {_mm512_cvtph_ps(half)}; }
inline __m256i narrow(Vec<float> x, BFloat16) {
#ifdef GRU_BFLOAT16_DOT
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
#else
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
#endif
}
inline __m256i narrow(Vec<float> x, Float16) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT); }

template <class S>
inline Vec<float> load_as(const S* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), S{});
}
template <class S>
inline Vec<float> load_as(const S* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(tail_mask(n), p), S{});
}
template <class S>
inline void store_as(S* p, Vec<float> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x, S{}));
}
template <class S>
inline void store_as(S* p, Vec<float> x, int n) {
  _mm256_mask_storeu_epi16(p, tail_mask(n), narrow(x, S{}));
}

// Two vectors of values that fit in 16 bits, as one: bfloat16 with the odd ones in the upper halves of the lanes, which
// is quickly undone; float16 one after the other, as its conversion wants them.
#define GRU_WIDENING
inline Vec<float> pack_halves(Vec<float> even, Vec<float> odd, BFloat16) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
  const __m512i high = _mm512_and_si512(_mm512_castps_si512(odd.v), _mm512_set1_epi32(-65536));
  return {_mm512_castsi512_ps(_mm512_or_si512(low, high))};
}
inline Vec<float> pack_halves(Vec<float> even, Vec<float> odd, Float16) {
  const __m512i low = _mm512_castsi256_si512(narrow(even, Float16{}));
  return {_mm512_castsi512_ps(_mm512_inserti64x4(low, narrow(odd, Float16{}), 1))};
}
template <int Odd>
inline Vec<float> widen_half(const float* packed, BFloat16) {
  const __m512i pairs = _mm512_castps_si512(_mm512_loadu_ps(packed));
  if constexpr (Odd) return {_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
  return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
}
template <int Odd>
inline Vec<float> widen_half(const float* packed, Float16) {
  return load_as(reinterpret_cast<const Float16*>(packed) + Odd * Vec<float>::width);
}

// A vector of words: even[i] in the low half, odd[i] in the high half. n: how many, zeros beyond; no odd: zeros.
template <class S>
inline Vec<float> pair_words(const S* even, const S* odd, int n) {
  const __mmask16 mask = tail_mask(n);
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even));
  if (!odd) return {_mm512_castsi512_ps(low)};
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd));
  return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)))};
}
#ifdef GRU_BFLOAT16_DOT
// sum + the products of the lanes' bfloat16.
inline Vec<float> dot_halves(Vec<float> a, Vec<float> w, Vec<float> sum) {
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(w.v))};
}
#endif
// Of 32 elements the first 16 and the others; of 16 words the low halves and the high ones.
inline __m256i first_half(Vec<float> x) { return _mm512_castsi512_si256(_mm512_castps_si512(x.v)); }
inline __m256i second_half(Vec<float> x) { return _mm512_extracti64x4_epi64(_mm512_castps_si512(x.v), 1); }
inline __m256i low_halves(Vec<float> x) { return _mm512_cvtepi32_epi16(_mm512_castps_si512(x.v)); }
inline __m256i high_halves(Vec<float> x) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x.v), 16));
}

// Products of bytes; simd_portable.h says what each does. vpdpbusd takes the bytes of A unsigned. Without it pairs are
// summed in 16 bits, which hold 2 * 127 * 127.
inline Vec<float> broadcast_bits(const float* p) {
  int bits;
  std::memcpy(&bits, p, sizeof bits);
  return {_mm512_castsi512_ps(_mm512_set1_epi32(bits))};
}
#ifdef GRU_BYTE_DOT
constexpr int kByteOffset = 128;
inline Vec<float> add_bytes(Vec<float> a, Vec<float> w, Vec<float> sum) {
  const __m512i sums = _mm512_castps_si512(sum.v);
  return {_mm512_castsi512_ps(_mm512_dpbusd_epi32(sums, _mm512_castps_si512(a.v), _mm512_castps_si512(w.v)))};
}
#else
constexpr int kByteOffset = 0;
inline Vec<float> add_bytes(Vec<float> a, Vec<float> w, Vec<float> sum) {
  const __m512i bytes = _mm512_castps_si512(a.v), weights = _mm512_castps_si512(w.v);
  const __m512i turned =
      _mm512_mask_sub_epi8(weights, _mm512_movepi8_mask(bytes), _mm512_setzero_si512(), weights);  // the signs of A
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(bytes), turned);
  const __m512i words = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum.v), words))};
}
#endif
inline Vec<float> from_integers(Vec<float> sums, [[maybe_unused]] Vec<float> row_sums) {
  __m512i words = _mm512_castps_si512(sums.v);
#ifdef GRU_BYTE_DOT
  words = _mm512_sub_epi32(words, _mm512_slli_epi32(_mm512_cvtps_epi32(row_sums.v), 7));
#endif
  return {_mm512_cvtepi32_ps(words)};
}
inline Vec<float> larger_magnitude(Vec<float> x, Vec<float> so_far) {
  const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
  return {_mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_castps_si512(so_far.v)))};
}
inline void store_bytes(int8_t* p, Vec<float> x) {
  const __m512i words = _mm512_add_epi32(_mm512_cvtps_epi32(x.v), _mm512_set1_epi32(kByteOffset));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(words));
}

inline void stream_line(const void* from, void* to) {
  _mm512_stream_ps(static_cast<float*>(to), _mm512_loadu_ps(from));
}
inline void stream_fence() { _mm_sfence(); }

inline void transpose(Vec<float>* rows) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {  // each 128-bit lane q of b[i + j] now holds column 4 q + j of rows i to i + 3
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {  // a 4 x 4 transpose of the 128-bit lanes
    const __m512 low = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x44), high = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xee);
    const __m512 low2 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x44);
    const __m512 high2 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xee);
    rows[j].v = _mm512_shuffle_f32x4(low, low2, 0x88);
    rows[j + 4].v = _mm512_shuffle_f32x4(low, low2, 0xdd);
    rows[j + 8].v = _mm512_shuffle_f32x4(high, high2, 0x88);
    rows[j + 12].v = _mm512_shuffle_f32x4(high, high2, 0xdd);
  }
}
inline void transpose(Vec<double>* rows) {
  const __m512i low = _mm512_setr_epi64(0, 8, 2, 10, 4, 12, 6, 14), high = _mm512_setr_epi64(1, 9, 3, 11, 5, 13, 7, 15);
  __m512d a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm512_permutex2var_pd(rows[i].v, low, rows[i + 1].v);
    a[i + 1] = _mm512_permutex2var_pd(rows[i].v, high, rows[i + 1].v);
  }
  const __m512i pairs_low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i pairs_high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + j] = _mm512_permutex2var_pd(a[i + j], pairs_low, a[i + j + 2]);
      b[i + j + 2] = _mm512_permutex2var_pd(a[i + j], pairs_high, a[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm512_shuffle_f64x2(b[i], b[i + 4], 0x44);
    rows[i + 4].v = _mm512_shuffle_f64x2(b[i], b[i + 4], 0xee);
  }
}

// Lane i of the result is the sum of all lanes of sums[i]: half the shuffles of a transpose, as sums are halved on the
// way.
inline Vec<float> sum_lanes(Vec<float>* sums) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps(sums[2 * i].v, sums[2 * i + 1].v),
                         _mm512_unpackhi_ps(sums[2 * i].v, sums[2 * i + 1].v));
  for (int i = 0; i < 4; ++i)
    b[i] =
        _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
  for (int i = 0; i < 2; ++i)
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x44),
                         _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xee));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd))};
}
