// Vectors of 16 bytes by the compiler's own vector extension: SSE2 on x86, NEON on Arm, whatever there is elsewhere.
// Included inside the namespace of a target; the interface every target offers is the one of this file.
#pragma once

constexpr int kVectorRegisters = 16;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  using Integer = int32_t;
  static constexpr int exponent_bias = 127, mantissa_bits = 23;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
};
template <>
struct Lanes<double> {
  using Integer = int64_t;
  static constexpr int exponent_bias = 1023, mantissa_bits = 52;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
};

template <class T>
struct Vec {
  static constexpr int width = 16 / static_cast<int>(sizeof(T));
  typedef T Native __attribute__((vector_size(16)));
  typedef typename Lanes<T>::Integer NativeInteger __attribute__((vector_size(16)));
  Native v;

  static Vec set(T x) { return {Native{} + x}; }
  static Vec load(const T* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static Vec load(const T* p, int n) {  // the first n lanes, zero beyond
    T lanes[width] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof v); }
  void store(T* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
};

template <class T>
inline Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}
template <class T>
inline Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}
template <class T>
inline Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}
template <class T>
inline Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {  // a * b + c
  return {a.v * b.v + c.v};
}
template <class T>
inline Vec<T> clamp(Vec<T> x, T low, T high) {  // NaN stays NaN
  const Vec<T> l = Vec<T>::set(low), h = Vec<T>::set(high);
  x.v = x.v < l.v ? l.v : x.v;
  x.v = x.v > h.v ? h.v : x.v;
  return x;
}
template <class T>
inline Vec<T> reciprocal(Vec<T> x) {
  return {Vec<T>::set(T(1)).v / x.v};
}
template <class T>
inline Vec<T> divide(Vec<T> a, Vec<T> b) {
  return {a.v / b.v};
}
template <class T>
inline Vec<T> zero_where_below(Vec<T> y, Vec<T> x, T limit) {  // y where x is NaN
  return {x.v < Vec<T>::set(limit).v ? Vec<T>::set(T(0)).v : y.v};
}
template <class T>
inline Vec<T> round_nearest(Vec<T> x) {  // |x| < 2^22 (float), 2^51 (double)
  const Vec<T> magic = Vec<T>::set(Lanes<T>::round_magic);
  return {(x.v + magic.v) - magic.v};
}
template <class T>
inline Vec<T> power_of_two(Vec<T> n) {  // 2^n for whole n in the range of normal numbers; anything for NaN
  using Integer = typename Vec<T>::NativeInteger;
  // The magic sum holds n in its low bits, also where no conversion of vectors to integers exists.
  const Vec<T> shifted = n + Vec<T>::set(Lanes<T>::round_magic);
  Integer bits;
  std::memcpy(&bits, &shifted.v, sizeof bits);
  bits = (bits + Lanes<T>::exponent_bias) << Lanes<T>::mantissa_bits;
  Vec<T> r;
  std::memcpy(&r.v, &bits, sizeof bits);
  return r;
}

inline Vec<float> load_as(const float* p) { return Vec<float>::load(p); }
inline Vec<float> load_as(const float* p, int n) { return Vec<float>::load(p, n); }
inline Vec<double> load_as(const double* p) { return Vec<double>::load(p); }
inline Vec<double> load_as(const double* p, int n) { return Vec<double>::load(p, n); }
inline void store_as(float* p, Vec<float> x) { x.store(p); }
inline void store_as(float* p, Vec<float> x, int n) { x.store(p, n); }
inline void store_as(double* p, Vec<double> x) { x.store(p); }
inline void store_as(double* p, Vec<double> x, int n) { x.store(p, n); }

template <class S>
inline Vec<float> load_as(const S* p, int n = Vec<float>::width) {  // BFloat16, Float16
  float lanes[Vec<float>::width] = {};
  for (int i = 0; i < n; ++i) lanes[i] = to_float(p[i]);
  return Vec<float>::load(lanes);
}
inline void store_as(BFloat16* p, Vec<float> x, int n = Vec<float>::width) {
  for (int i = 0; i < n; ++i) p[i] = to_bfloat16(x.v[i]);
}
inline void store_as(Float16* p, Vec<float> x, int n = Vec<float>::width) {
  for (int i = 0; i < n; ++i) p[i] = to_float16(x.v[i]);
}

// Weights packed ahead as pairs of bfloat16: the even ones in the lower halves of the lanes.
template <int Odd>
inline Vec<float> widen_half(const float* packed, BFloat16) {
  uint32_t lanes[Vec<float>::width];
  std::memcpy(lanes, packed, sizeof lanes);
  for (uint32_t& lane : lanes) lane = Odd ? lane & 0xffff0000 : lane << 16;
  Vec<float> r;
  std::memcpy(&r.v, lanes, sizeof lanes);
  return r;
}

// Products of bytes. A word is four bytes of k, within -127 and 127, those of A with kByteOffset added, as some
// instructions want them.
constexpr int kByteOffset = 0;
inline Vec<float> broadcast_bits(const float* p) {  // whatever they are
  Vec<float> r;
  for (int i = 0; i < Vec<float>::width; ++i) std::memcpy(reinterpret_cast<char*>(&r.v) + i * sizeof *p, p, sizeof *p);
  return r;
}
// To the whole number in each lane of the sum, its four products.
inline Vec<float> add_bytes(Vec<float> a, Vec<float> w, Vec<float> sum) {
  int8_t bytes[16], weights[16];
  int32_t sums[4];
  std::memcpy(bytes, &a.v, sizeof bytes);
  std::memcpy(weights, &w.v, sizeof weights);
  std::memcpy(sums, &sum.v, sizeof sums);
  for (int i = 0; i < 16; ++i) sums[i / 4] += bytes[i] * weights[i];
  std::memcpy(&sum.v, sums, sizeof sums);
  return sum;
}
// Whole numbers as floats, after kByteOffset times row_sums, which are floats, has been taken off.
inline Vec<float> from_integers(Vec<float> sums, Vec<float> /* row_sums */) {
  int32_t words[Vec<float>::width];
  std::memcpy(words, &sums.v, sizeof words);
  for (int i = 0; i < Vec<float>::width; ++i) sums.v[i] = static_cast<float>(words[i]);
  return sums;
}
// The bits of |x| or so_far, whichever are the larger whole number: NaN is the largest, and stays.
inline Vec<float> larger_magnitude(Vec<float> x, Vec<float> so_far) {
  int32_t bits[Vec<float>::width], others[Vec<float>::width];
  std::memcpy(bits, &x.v, sizeof bits);
  std::memcpy(others, &so_far.v, sizeof others);
  for (int i = 0; i < Vec<float>::width; ++i) bits[i] = std::max(bits[i] & 0x7fffffff, others[i]);
  std::memcpy(&x.v, bits, sizeof bits);
  return x;
}
// Rounded to the nearest whole number, ties to even, and kByteOffset added; |x| <= 127, or anything for NaN.
inline void store_bytes(int8_t* p, Vec<float> x) {
  const Vec<float> rounded = x + Vec<float>::set(Lanes<float>::round_magic);  // whose low bits are the number
  int32_t bits[Vec<float>::width];
  std::memcpy(bits, &rounded.v, sizeof bits);
  for (int i = 0; i < Vec<float>::width; ++i) p[i] = static_cast<int8_t>(bits[i] & 0xff);
}

// A cache line to where one begins, past the caches where there is an instruction for that; then stream_fence before
// other threads are told.
inline void stream_line(const void* from, void* to) { std::memcpy(to, from, kLineBytes); }
inline void stream_fence() {}

// rows[i] lane j <-> rows[j] lane i, in place.
template <class T>
inline void transpose(Vec<T>* rows) {
  constexpr int width = Vec<T>::width;
  T lanes[width][width];
  for (int i = 0; i < width; ++i) rows[i].store(lanes[i]);
  for (int i = 0; i < width; ++i)
    for (int j = 0; j < width; ++j) rows[i].v[j] = lanes[j][i];
}
