// What the checks of the model share: operands with guard pages, comparisons, and the watch over the tiles.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../guarded.h"
#include "model.h"

namespace x86_check {

inline std::mt19937 generator(20240609);

inline int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <class T>
inline const T& draw_from(const std::vector<T>& values) {
  return values[static_cast<size_t>(draw(0, static_cast<int64_t>(values.size()) - 1))];
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "x86_check: %s\n", what.c_str());
  std::exit(1);
}

template <class T>
inline T rounded(double value) {
  if constexpr (std::is_same_v<T, gru::cpu::BFloat16>)
    return gru::cpu::to_bfloat16(static_cast<float>(value));
  else if constexpr (std::is_same_v<T, gru::cpu::Float16>)
    return gru::cpu::to_float16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

// `count` values that end where a page begins that may not be touched.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count), bytes_(count * sizeof(T)) {}
  explicit Guarded(const std::vector<double>& values) : Guarded(values.size()) {
    std::transform(values.begin(), values.end(), data(), rounded<T>);
  }

  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
  std::vector<double> values() const {
    std::vector<double> out(count_);
    for (size_t i = 0; i < count_; ++i) out[i] = gru::cpu::scalar(data()[i]);
    return out;
  }

 private:
  size_t count_;
  GuardedBytes bytes_;
};

// Normally distributed numbers that a T holds.
template <class T>
inline std::vector<double> numbers(int64_t count, double scale) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<double> out(static_cast<size_t>(count));
  for (double& value : out) value = gru::cpu::scalar(rounded<T>(normal(generator)));
  return out;
}

using Results = std::map<std::string, std::vector<double>>;

inline double worst_ratio = 0;  // of an error to its bound, over all that was compared

inline double largest_error(const std::vector<double>& values, const std::vector<double>& truth) {
  double error = 0;
  for (size_t i = 0; i < truth.size(); ++i)
    if (!(std::isnan(values[i]) && std::isnan(truth[i])))
      error = std::max(error, std::isfinite(values[i]) ? std::abs(values[i] - truth[i]) : INFINITY);
  return error;
}

// The error may be twice the reference's, plus `units` at the scale of the values.
inline void compare(const std::string& what, const std::vector<double>& values, double reference,
                    const std::vector<double>& truth, double units) {
  double scale = 0;
  for (const double value : truth) scale = std::max(scale, std::abs(value));
  const double error = largest_error(values, truth), bound = 2 * reference + units * scale;
  if (!(error <= bound))
    fail(what + ": error " + std::to_string(error) + ", the reference's " + std::to_string(reference));
  if (bound > 0) worst_ratio = std::max(worst_ratio, error / bound);
}

inline void must_equal(const std::string& what, const Results& results, const Results& other) {
  for (const auto& [name, values] : results)
    if (values.size() != other.at(name).size() ||
        std::memcmp(values.data(), other.at(name).data(), values.size() * sizeof(double)) != 0)
      fail(what + ": " + name + " has other bits");
}

// Runs `call`, which must run tile instructions if and only if they are `expected`, and leave no tile configured.
template <class Call>
void watch_tiles(const std::string& what, bool expected, const Call& call) {
  const int64_t before = x86_model::products;
  call();
  if ((x86_model::products > before) != expected)
    fail(what + (expected ? ": no tiles were used" : ": tiles were used"));
  if (x86_model::state.configured) fail(what + ": the tiles are not released");
}

inline gru::cpu::Processor modelled{false, true, true, true, true, true, true, true};  // what processor() says

// What multiply() hands its sums on to (csrc/cpu/product.h).
using Body = std::function<void(int64_t first, int count, int64_t group, int at_once, float* sums, int64_t stride)>;

// multiply() of bytes by a target, in groups of three vectors.
struct ByteProduct {
  const char* name;
  int64_t lanes;
  int offset;  // of the bytes of A
  bool on_tiles;
  void (*multiply)(const float* a, int64_t lda, int64_t low, int64_t high, const float* w, int64_t words,
                   int64_t first_group, int64_t last_group, const Body& body);
};
inline std::vector<ByteProduct>& byte_products() {
  static std::vector<ByteProduct> all;
  return all;
}

void check_products();
void check_bytes();
void check_passes(bool backward);
void check_packed();

}  // namespace x86_check
