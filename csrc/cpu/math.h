// Sigmoid and tanh on vectors, to about one unit in the last place, from one exponential.
// Included inside the namespace of a target, after its simd header.
#pragma once

// exp(x) = 2^n (1 + p) with whole n and p = exp(rest) - 1, |rest| <= ln(2) / 2. Kept apart because 2^n p + (2^n - 1) is
// exp(x) - 1 without cancellation.
template <class T>
struct Exponential {
  Vec<T> scale, p;
};

template <class T>
struct ExponentialConstants;
template <>
struct ExponentialConstants<float> {
  static constexpr int degree = 7;  // remainder below ln(2)/2^8 / 8! = 5e-9, a tenth of a rounding
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // Cody and Waite: n * ln2_high is exact
  static constexpr float limit = 87.0f;  // exp and its reciprocal are normal numbers up to here
};
template <>
struct ExponentialConstants<double> {
  static constexpr int degree = 13;  // remainder below 5e-18
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double limit = 708.0;
};

constexpr double inverse_factorial(int n) { return n <= 1 ? 1.0 : inverse_factorial(n - 1) / n; }

template <class T>
inline __attribute__((always_inline)) Exponential<T> exponential(Vec<T> x) {  // NaN in gives NaN in p
  using Constants = ExponentialConstants<T>;
  x = clamp(x, -Constants::limit, Constants::limit);
  const Vec<T> n = round_nearest(x * Vec<T>::set(static_cast<T>(1.44269504088896340736)));
  Vec<T> rest = multiply_add(n, Vec<T>::set(-Constants::ln2_high), x);
  rest = multiply_add(n, Vec<T>::set(-Constants::ln2_low), rest);
  Vec<T> sum = Vec<T>::set(static_cast<T>(inverse_factorial(Constants::degree)));
#pragma GCC unroll 16
  for (int k = Constants::degree - 1; k >= 1; --k)
    sum = multiply_add(sum, rest, Vec<T>::set(static_cast<T>(inverse_factorial(k))));
  return {power_of_two(n), sum * rest};
}

// Both saturate exactly, as torch's do: a gate that is shut passes no gradient, however large its input. (Sigmoid is 0
// already where torch's is below the smallest normal number.)
template <class T>
struct VectorMath {
  static inline __attribute__((always_inline)) Vec<T> sigmoid(Vec<T> x) {  // 1 / (1 + exp(-x))
    const Exponential<T> e = exponential(Vec<T>::set(0) - x);
    const Vec<T> y = reciprocal(Vec<T>::set(1) + multiply_add(e.scale, e.p, e.scale));
    return zero_where_below(y, x, -ExponentialConstants<T>::limit);
  }
  static inline __attribute__((always_inline)) Vec<T> tanh(Vec<T> x) {  // (exp(2x) - 1) / (exp(2x) + 1)
    const Vec<T> one = Vec<T>::set(1);
    const Exponential<T> e = exponential(x + x);
    const Vec<T> minus_one = multiply_add(e.scale, e.p, e.scale - one);
    return divide(minus_one, minus_one + one + one);
  }
};
