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
