// What the checks of avx512_amx share: operands with guard pages, comparisons, and the watch over the tiles.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/target.h"
#include "model.h"

namespace amx_check {

inline std::mt19937 generator(20240609);

inline int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <class T>
inline const T& draw_from(const std::vector<T>& values) {
  return values[static_cast<size_t>(draw(0, static_cast<int64_t>(values.size()) - 1))];
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "amx_check: %s\n", what.c_str());
  std::exit(1);
}

// `count` values that end where a page begins that may not be touched.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count), bytes_((count * sizeof(T) + kPage - 1) / kPage * kPage) {
    void* const base = mmap(nullptr, bytes_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("mmap failed");
    base_ = static_cast<char*>(base);
    if (mprotect(base_ + bytes_, kPage, PROT_NONE) != 0) fail("mprotect failed");
    data_ = reinterpret_cast<T*>(base_ + bytes_) - count;
  }
  explicit Guarded(const std::vector<double>& values) : Guarded(values.size()) {
    for (size_t i = 0; i < count_; ++i) {
      if constexpr (std::is_same_v<T, gru::cpu::BFloat16>)
        data_[i] = gru::cpu::to_bfloat16(static_cast<float>(values[i]));
      else
        data_[i] = values[i];
    }
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, bytes_ + kPage); }

  T* data() const { return data_; }
  std::vector<double> values() const {
    std::vector<double> out(count_);
    for (size_t i = 0; i < count_; ++i) out[i] = gru::cpu::scalar(data_[i]);
    return out;
  }

 private:
  static constexpr size_t kPage = 4096;
  size_t count_, bytes_;
  char* base_;
  T* data_;
};

// Normally distributed numbers that bfloat16 holds.
inline std::vector<double> numbers(int64_t count, double scale) {
  std::normal_distribution<float> normal(0, static_cast<float>(scale));
  std::vector<double> out(static_cast<size_t>(count));
  for (double& value : out) value = gru::cpu::scalar(gru::cpu::to_bfloat16(normal(generator)));
  return out;
}

using Results = std::map<std::string, std::vector<double>>;

inline double worst_ratio = 0;  // of the error of AMX to the bound, over all that was compared

// The error of AMX may be twice that of vdpbf16ps, plus `units` of the last place at the scale of the values.
inline void compare(const std::string& what, const std::vector<double>& amx, const std::vector<double>& dot,
                    const std::vector<double>& truth, double units) {
  double error = 0, reference = 0, scale = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    error = std::max(error, std::isfinite(amx[i]) ? std::abs(amx[i] - truth[i]) : INFINITY);
    reference = std::max(reference, std::abs(dot[i] - truth[i]));
    scale = std::max(scale, std::abs(truth[i]));
  }
  const double bound = 2 * reference + units * scale;
  if (!(error <= bound))
    fail(what + ": error " + std::to_string(error) + ", that of vdpbf16ps " + std::to_string(reference));
  if (bound > 0) worst_ratio = std::max(worst_ratio, error / bound);
}

inline void compare(const std::string& what, const Results& amx, const Results& dot, const Results& truth) {
  for (const auto& [name, values] : truth) compare(what + " " + name, amx.at(name), dot.at(name), values, 2.0 / 128);
}

inline void must_equal(const std::string& what, const Results& results, const Results& other) {
  for (const auto& [name, values] : results)
    if (values.size() != other.at(name).size() ||
        std::memcmp(values.data(), other.at(name).data(), values.size() * sizeof(double)) != 0)
      fail(what + ": " + name + " has other bits");
}

// Every kernel call passes here: it must run tile instructions and leave no tile configured.
template <class Call>
void on_tiles(const std::string& what, const Call& call) {
  const int64_t before = amx_model::products;
  call();
  if (amx_model::products == before) fail(what + ": no tile instruction was run");
  if (amx_model::state.configured) fail(what + ": the tiles are not released");
}

void check_products();
void check_passes();

}  // namespace amx_check
