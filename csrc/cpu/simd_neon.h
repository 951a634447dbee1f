// Vectors of 16 bytes: NEON as every AArch64 processor has it, conversions of float16 included; with GRU_BFLOAT16_DOT
// also the bfloat16 dot product of FEAT_BF16 (BFDOT), with GRU_BYTE_DOT that of bytes of FEAT_DotProd (SDOT). The
// interface is described in simd_portable.h.
#pragma once

constexpr int kVectorRegisters = 32;

template <class T>
struct Vec;

// By memcpy, for words of 16-bit elements are moved about as floats.
template <class V, class T>
inline V load_lanes(const T* p, int n = sizeof(V) / sizeof(T)) {
  V v{};
  if (n == sizeof(V) / sizeof(T)) {
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  T lanes[sizeof(V) / sizeof(T)] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  std::memcpy(&v, lanes, sizeof v);
  return v;
}
template <class V, class T>
inline void store_lanes(T* p, V v, int n = sizeof(V) / sizeof(T)) {
  if (n == sizeof(V) / sizeof(T)) {
    std::memcpy(static_cast<void*>(p), &v, sizeof v);
    return;
  }
  T lanes[sizeof(V) / sizeof(T)];
  std::memcpy(static_cast<void*>(lanes), &v, sizeof v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

template <>
struct Vec<float> {
  static constexpr int width = 4;
  float32x4_t v;
  static Vec set(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p, int n = width) { return {load_lanes<float32x4_t>(p, n)}; }
  void store(float* p, int n = width) const { store_lanes(p, v, n); }
};

template <>
struct Vec<double> {
  static constexpr int width = 2;
  float64x2_t v;
  static Vec set(double x) { return {vdupq_n_f64(x)}; }
  static Vec load(const double* p, int n = width) { return {load_lanes<float64x2_t>(p, n)}; }
  void store(double* p, int n = width) const { store_lanes(p, v, n); }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {vaddq_f64(a.v, b.v)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {vsubq_f64(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {vmulq_f64(a.v, b.v)}; }
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) { return {vfmaq_f64(c.v, a.v, b.v)}; }

// min and max give NaN when either operand is.
inline Vec<float> clamp(Vec<float> x, float low, float high) {
  return {vminq_f32(vmaxq_f32(x.v, vdupq_n_f32(low)), vdupq_n_f32(high))};
}
inline Vec<double> clamp(Vec<double> x, double low, double high) {
  return {vminq_f64(vmaxq_f64(x.v, vdupq_n_f64(low)), vdupq_n_f64(high))};
}
inline Vec<float> reciprocal(Vec<float> x) { return {vdivq_f32(vdupq_n_f32(1), x.v)}; }
inline Vec<double> reciprocal(Vec<double> x) { return {vdivq_f64(vdupq_n_f64(1), x.v)}; }
inline Vec<float> divide(Vec<float> a, Vec<float> b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec<double> divide(Vec<double> a, Vec<double> b) { return {vdivq_f64(a.v, b.v)}; }
inline Vec<float> zero_where_below(Vec<float> y, Vec<float> x, float limit) {
  return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y.v), vcltq_f32(x.v, vdupq_n_f32(limit))))};
}
inline Vec<double> zero_where_below(Vec<double> y, Vec<double> x, double limit) {
  return {vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(y.v), vcltq_f64(x.v, vdupq_n_f64(limit))))};
}
inline Vec<float> round_nearest(Vec<float> x) { return {vrndnq_f32(x.v)}; }
inline Vec<double> round_nearest(Vec<double> x) { return {vrndnq_f64(x.v)}; }
inline Vec<float> power_of_two(Vec<float> n) {
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
}
inline Vec<double> power_of_two(Vec<double> n) {
  return {vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtnq_s64_f64(n.v), vdupq_n_s64(1023)), 52))};
}

inline uint16x4_t narrow(Vec<float> x, BFloat16) {
#ifdef GRU_BFLOAT16_DOT
  return vreinterpret_u16_bf16(vcvt_bf16_f32(x.v));
#else
  const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x.v, x.v), rounded, quiet), 16);
#endif
}
inline uint16x4_t narrow(Vec<float> x, Float16) { return vreinterpret_u16_f16(vcvt_f16_f32(x.v)); }
inline Vec<float> widen(uint16x4_t half, BFloat16) { return {vreinterpretq_f32_u32(vshll_n_u16(half, 16))}; }
inline Vec<float> widen(uint16x4_t half, Float16) { return {vcvt_f32_f16(vreinterpret_f16_u16(half))}; }

inline Vec<float> load_as(const float* p, int n = Vec<float>::width) { return Vec<float>::load(p, n); }
inline Vec<double> load_as(const double* p, int n = Vec<double>::width) { return Vec<double>::load(p, n); }
inline void store_as(float* p, Vec<float> x, int n = Vec<float>::width) { x.store(p, n); }
inline void store_as(double* p, Vec<double> x, int n = Vec<double>::width) { x.store(p, n); }
template <class S>
inline Vec<float> load_as(const S* p, int n = Vec<float>::width) {  // BFloat16, Float16
  return widen(load_lanes<uint16x4_t>(p, n), S{});
}
template <class S>
inline void store_as(S* p, Vec<float> x, int n = Vec<float>::width) {
  store_lanes(p, narrow(x, S{}), n);
}

// Two vectors of values that fit in 16 bits, as one: bfloat16 with the odd ones in the upper halves of the lanes, which
// is quickly undone; float16 one after the other, as its conversion wants them.
#define GRU_WIDENING
inline Vec<float> pack_halves(Vec<float> even, Vec<float> odd, BFloat16) {
  return {vreinterpretq_f32_u32(vsriq_n_u32(vreinterpretq_u32_f32(odd.v), vreinterpretq_u32_f32(even.v), 16))};
}
inline Vec<float> pack_halves(Vec<float> even, Vec<float> odd, Float16) {
  return {vreinterpretq_f32_u16(vcombine_u16(narrow(even, Float16{}), narrow(odd, Float16{})))};
}
template <int Odd>
inline Vec<float> widen_half(const float* packed, BFloat16) {
  const uint32x4_t pairs = vreinterpretq_u32_f32(Vec<float>::load(packed).v);
  if constexpr (Odd) return {vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000)))};
  return {vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16))};
}
template <int Odd>
inline Vec<float> widen_half(const float* packed, Float16) {
  return widen(load_lanes<uint16x4_t>(packed + 2 * Odd), Float16{});
}

#ifdef GRU_BFLOAT16_DOT
// A vector of words: even[i] in the low half, odd[i] in the high half. n: how many, zeros beyond; no odd: zeros.
template <class S>
inline Vec<float> pair_words(const S* even, const S* odd, int n) {
  const uint32x4_t low = vmovl_u16(load_lanes<uint16x4_t>(even, n));
  if (!odd) return {vreinterpretq_f32_u32(low)};
  return {vreinterpretq_f32_u32(vorrq_u32(low, vshll_n_u16(load_lanes<uint16x4_t>(odd, n), 16)))};
}
// sum + the products of the lanes' bfloat16. Subnormal numbers count as zero, as they do on x86, and sums are rounded
// to odd, off by less than a unit in float32's last place.
inline Vec<float> dot_halves(Vec<float> a, Vec<float> w, Vec<float> sum) {
  return {vbfdotq_f32(sum.v, vreinterpretq_bf16_f32(a.v), vreinterpretq_bf16_f32(w.v))};
}
#endif

inline void stream_line(const void* from, void* to) { std::memcpy(to, from, kLineBytes); }
inline void stream_fence() {}

inline void transpose(Vec<float>* rows) {
  const auto low = [](float32x4_t a, float32x4_t b) {  // of both the first two lanes
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  };
  const auto high = [](float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  };
  const float32x4_t a = vtrn1q_f32(rows[0].v, rows[1].v), b = vtrn2q_f32(rows[0].v, rows[1].v);
  const float32x4_t c = vtrn1q_f32(rows[2].v, rows[3].v), d = vtrn2q_f32(rows[2].v, rows[3].v);
  rows[0].v = low(a, c);
  rows[1].v = low(b, d);
  rows[2].v = high(a, c);
  rows[3].v = high(b, d);
}
inline void transpose(Vec<double>* rows) {
  const float64x2_t first = vzip1q_f64(rows[0].v, rows[1].v);
  rows[1].v = vzip2q_f64(rows[0].v, rows[1].v);
  rows[0].v = first;
}

// Lane i of the result is the sum of all lanes of sums[i]; an addition of pairs is one instruction.
inline Vec<float> sum_lanes(Vec<float>* sums) {
  return {vpaddq_f32(vpaddq_f32(sums[0].v, sums[1].v), vpaddq_f32(sums[2].v, sums[3].v))};
}
inline Vec<double> sum_lanes(Vec<double>* sums) { return {vpaddq_f64(sums[0].v, sums[1].v)}; }

// Products of bytes. SDOT takes both operands signed; without it pairs are summed in 16 bits, which hold 2 * 127 * 127.
inline Vec<float> broadcast_bits(const float* p) {
  uint32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return {vreinterpretq_f32_u32(vdupq_n_u32(bits))};
}
constexpr int kByteOffset = 0;
inline Vec<float> add_bytes(Vec<float> a, Vec<float> w, Vec<float> sum) {
  const int8x16_t bytes = vreinterpretq_s8_f32(a.v), weights = vreinterpretq_s8_f32(w.v);
  const int32x4_t sums = vreinterpretq_s32_f32(sum.v);
#ifdef GRU_BYTE_DOT
  return {vreinterpretq_f32_s32(vdotq_s32(sums, bytes, weights))};
#else
  const int16x8_t low = vmull_s8(vget_low_s8(bytes), vget_low_s8(weights)), high = vmull_high_s8(bytes, weights);
  return {vreinterpretq_f32_s32(vpadalq_s16(sums, vpaddq_s16(low, high)))};
#endif
}
inline Vec<float> from_integers(Vec<float> sums, Vec<float> /* row_sums */) {
  return {vcvtq_f32_s32(vreinterpretq_s32_f32(sums.v))};
}
inline Vec<float> larger_magnitude(Vec<float> x, Vec<float> so_far) {
  return {vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(vabsq_f32(x.v)), vreinterpretq_u32_f32(so_far.v)))};
}
inline void store_bytes(int8_t* p, Vec<float> x, int n = Vec<float>::width) {
  const int16x4_t whole = vmovn_s32(vcvtnq_s32_f32(x.v));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(whole, whole));
  std::memcpy(p, &bytes, static_cast<size_t>(n));
}
