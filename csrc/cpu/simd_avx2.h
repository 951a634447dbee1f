// Vectors of 32 bytes: AVX2, FMA and F16C. The interface is described in simd_portable.h.
#pragma once

constexpr int kVectorRegisters = 16;

template <class T>
struct Vec;

inline __m256i tail_mask32(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i tail_mask64(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }

template <>
struct Vec<float> {
  static constexpr int width = 8;
  __m256 v;
  static Vec set(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, tail_mask32(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, tail_mask32(n), v); }
};

template <>
struct Vec<double> {
  static constexpr int width = 4;
  __m256d v;
  static Vec set(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const double* p, int n) { return {_mm256_maskload_pd(p, tail_mask64(n))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, int n) const { _mm256_maskstore_pd(p, tail_mask64(n), v); }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}

// min and max give their second operand when either is NaN: x must stand there.
inline Vec<float> clamp(Vec<float> x, float low, float high) {
  return {_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), x.v))};
}
inline Vec<double> clamp(Vec<double> x, double low, double high) {
  return {_mm256_min_pd(_mm256_set1_pd(high), _mm256_max_pd(_mm256_set1_pd(low), x.v))};
}
inline Vec<float> reciprocal(Vec<float> x) { return {_mm256_div_ps(_mm256_set1_ps(1), x.v)}; }
inline Vec<double> reciprocal(Vec<double> x) { return {_mm256_div_pd(_mm256_set1_pd(1), x.v)}; }
inline Vec<float> divide(Vec<float> a, Vec<float> b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec<double> divide(Vec<double> a, Vec<double> b) { return {_mm256_div_pd(a.v, b.v)}; }
inline Vec<float> zero_where_below(Vec<float> y, Vec<float> x, float limit) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_LT_OQ), y.v)};
}
inline Vec<double> zero_where_below(Vec<double> y, Vec<double> x, double limit) {
  return {_mm256_andnot_pd(_mm256_cmp_pd(x.v, _mm256_set1_pd(limit), _CMP_LT_OQ), y.v)};
}
inline Vec<float> round_nearest(Vec<float> x) {
  return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec<double> round_nearest(Vec<double> x) {
  return {_mm256_round_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec<float> power_of_two(Vec<float> n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline Vec<double> power_of_two(Vec<double> n) {
  const __m256i exponent = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v)), _mm256_set1_epi64x(1023));
  return {_mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52))};
}

inline Vec<float> load_as(const float* p) { return Vec<float>::load(p); }
inline Vec<float> load_as(const float* p, int n) { return Vec<float>::load(p, n); }
inline Vec<double> load_as(const double* p) { return Vec<double>::load(p); }
inline Vec<double> load_as(const double* p, int n) { return Vec<double>::load(p, n); }
inline void store_as(float* p, Vec<float> x) { x.store(p); }
inline void store_as(float* p, Vec<float> x, int n) { x.store(p, n); }
inline void store_as(double* p, Vec<double> x) { x.store(p); }
inline void store_as(double* p, Vec<double> x, int n) { x.store(p, n); }

inline Vec<float> load_as(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline Vec<float> load_as(const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store_as(BFloat16* p, Vec<float> x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, is_nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store_as(Float16* p, Vec<float> x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
template <class S>
inline Vec<float> load_as(const S* p, int n) {
  S lanes[8] = {};
  std::memcpy(lanes, p, n * sizeof(S));
  return load_as(lanes);
}
template <class S>
inline void store_as(S* p, Vec<float> x, int n) {
  S lanes[8];
  store_as(lanes, x);
  std::memcpy(p, lanes, n * sizeof(S));
}

// Two vectors of values that fit in 16 bits, as one: bfloat16 with the odd ones in the upper halves of the lanes, which
// is quickly undone; float16 one after the other, as its conversion wants them.
#define GRU_WIDENING
inline Vec<float> pack_halves(Vec<float> even, Vec<float> odd, BFloat16) {
  const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(even.v), 16);
  return {_mm256_castsi256_ps(_mm256_blend_epi16(low, _mm256_castps_si256(odd.v), 0xaa))};
}
inline Vec<float> pack_halves(Vec<float> even, Vec<float> odd, Float16) {
  const __m128i low = _mm256_cvtps_ph(even.v, _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(odd.v, _MM_FROUND_TO_NEAREST_INT);
  return {_mm256_castsi256_ps(_mm256_set_m128i(high, low))};
}
template <int Odd>
inline Vec<float> widen_half(const float* packed, BFloat16) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed));
  if constexpr (Odd) return {_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))};
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))};
}
template <int Odd>
inline Vec<float> widen_half(const float* packed, Float16) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed) + Odd))};
}

// Products of bytes; simd_portable.h says what each does. vpdpbusd takes the bytes of A unsigned. Without it pairs are
// summed in 16 bits, which hold 2 * 127 * 127.
inline Vec<float> broadcast_bits(const float* p) {
  int bits;
  std::memcpy(&bits, p, sizeof bits);
  return {_mm256_castsi256_ps(_mm256_set1_epi32(bits))};
}
#ifdef GRU_BYTE_DOT
constexpr int kByteOffset = 128;
inline Vec<float> add_bytes(Vec<float> a, Vec<float> w, Vec<float> sum) {
  const __m256i sums = _mm256_castps_si256(sum.v);
  return {_mm256_castsi256_ps(_mm256_dpbusd_avx_epi32(sums, _mm256_castps_si256(a.v), _mm256_castps_si256(w.v)))};
}
#else
constexpr int kByteOffset = 0;
inline Vec<float> add_bytes(Vec<float> a, Vec<float> w, Vec<float> sum) {
  const __m256i bytes = _mm256_castps_si256(a.v), turned = _mm256_sign_epi8(_mm256_castps_si256(w.v), bytes);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), turned);
  const __m256i words = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum.v), words))};
}
#endif
inline Vec<float> from_integers(Vec<float> sums, [[maybe_unused]] Vec<float> row_sums) {
  __m256i words = _mm256_castps_si256(sums.v);
#ifdef GRU_BYTE_DOT
  words = _mm256_sub_epi32(words, _mm256_slli_epi32(_mm256_cvtps_epi32(row_sums.v), 7));
#endif
  return {_mm256_cvtepi32_ps(words)};
}
inline Vec<float> larger_magnitude(Vec<float> x, Vec<float> so_far) {
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x7fffffff));
  return {_mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_castps_si256(so_far.v)))};
}
inline void store_bytes(int8_t* p, Vec<float> x) {
  const __m256i words = _mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(kByteOffset));
  const __m256i first = _mm256_shuffle_epi8(words, _mm256_set1_epi32(0x0c080400));  // of each word, in every word
  const int32_t halves[] = {_mm256_extract_epi32(first, 0), _mm256_extract_epi32(first, 4)};
  std::memcpy(p, halves, sizeof halves);
}

inline void stream_line(const void* from, void* to) {
  for (int i = 0; i < 2; ++i)
    _mm256_stream_si256(static_cast<__m256i*>(to) + i, _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
}
inline void stream_fence() { _mm_sfence(); }

inline void transpose(Vec<float>* rows) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}
inline void transpose(Vec<double>* rows) {
  const __m256d a = _mm256_unpacklo_pd(rows[0].v, rows[1].v), b = _mm256_unpackhi_pd(rows[0].v, rows[1].v);
  const __m256d c = _mm256_unpacklo_pd(rows[2].v, rows[3].v), d = _mm256_unpackhi_pd(rows[2].v, rows[3].v);
  rows[0].v = _mm256_permute2f128_pd(a, c, 0x20);
  rows[1].v = _mm256_permute2f128_pd(b, d, 0x20);
  rows[2].v = _mm256_permute2f128_pd(a, c, 0x31);
  rows[3].v = _mm256_permute2f128_pd(b, d, 0x31);
}
