// Runs the kernels of kernels.cuh and compares their results with what they must be:
//   checks NAME [FAULT [SEEDS]]
// One line and 0 when all is right, the first thing that is wrong and 1 otherwise. On the emulated GPU under so many
// seeds. On a real GPU faults are refused: they would hang it or read beyond its memory. NAME all: every check but
// hang, which takes one seed and leaves a real GPU's context unusable.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/launch.h"
#include "kernels.cuh"

namespace checks {
namespace {

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An array on the GPU.
template <class Element>
class Array {
 public:
  explicit Array(const std::vector<Element>& values) : size_(values.size()) {
    check(cudaMalloc(&data_, bytes()));
    check(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  Array(size_t size, int byte) : size_(size) {
    check(cudaMalloc(&data_, bytes()));
    check(cudaMemset(data_, byte, bytes()));
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Element* data() { return data_; }
  std::vector<Element> values() const {
    std::vector<Element> values(size_);
    check(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t bytes() const { return size_ * sizeof(Element); }
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  }
  Element* data_ = nullptr;
  size_t size_;
};

constexpr int kUnwritten = 0xff;

// Launches, waits, and throws what became of it.
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  launch(kernel, shape, nullptr, arguments...);
  check_launch("check");
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class Element>
void expect(const Array<Element>& array, const std::vector<Element>& expected) {
  const std::vector<Element> values = array.values();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(values[i] == expected[i])) {
      throw Wrong("element " + std::to_string(i) + " is " + std::to_string(values[i]) + ", expected " +
                  std::to_string(expected[i]));
    }
  }
}

// Small whole numbers, which every type holds exactly and whose sums of products float32 does.
std::vector<float> numbers(size_t count, unsigned seed) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(static_cast<int>((i * 7 + seed * 13 + i * i % 11) % 15) - 7);
  }
  return values;
}

template <int kFault>
void reverse(unsigned seed) {
  const unsigned blocks = 3, threads = 32 * (1 + seed % 4) + seed % 5;
  std::vector<int> input(blocks * threads), expected(input.size());
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<int>(i * i % 101);
  for (unsigned i = 0; i < input.size(); ++i) expected[i] = input[i / threads * threads + threads - 1 - i % threads];
  Array<int> from(input), to(input.size(), kUnwritten);
  start(reverse_kernel<kFault>, {blocks, threads, threads * sizeof(int)}, from.data(), to.data());
  expect(to, expected);
}

template <int kFault>
void lanes(unsigned seed) {
  const std::vector<float> input = numbers(32, seed);
  std::vector<float> expected(3 * 32);
  float sum = 0;
  for (const float value : input) sum += value;
  for (unsigned i = 0; i < 32; ++i) {
    expected[i] = sum;
    expected[32 + i] = input[5];
    expected[64 + i] = input[i ^ 1];
  }
  Array<float> from(input), to(expected.size(), kUnwritten);
  start(lanes_kernel<kFault>, {1, 32}, from.data(), to.data());
  expect(to, expected);
}

template <class Element, bool kTransposed, int kFault>
void product_of(unsigned seed) {
  const int rows = 16 * static_cast<int>(1 + seed % 5) - static_cast<int>(seed % 16), depth = 16 * (1 + seed % 5);
  const std::vector<float> left = numbers(static_cast<size_t>(rows) * depth, seed);
  const std::vector<float> right = numbers(static_cast<size_t>(depth) * 8, seed + 1);  // [8, depth]
  std::vector<float> expected(static_cast<size_t>(rows) * 8);
  std::vector<Element> a(left.size()), b(right.size());
  for (size_t i = 0; i < left.size(); ++i) a[i] = Element(left[i]);
  for (int n = 0; n < 8; ++n) {
    for (int k = 0; k < depth; ++k) b[kTransposed ? k * 8 + n : n * depth + k] = Element(right[n * depth + k]);
    for (int m = 0; m < rows; ++m) {
      for (int k = 0; k < depth; ++k) expected[m * 8 + n] += left[m * depth + k] * right[n * depth + k];
    }
  }
  Array<Element> first(a), second(b);
  Array<float> to(expected.size(), kUnwritten);
  start(product_kernel<Element, kTransposed, kFault>,
        {static_cast<unsigned>(rows + 31) / 32, 64, 2 * kProductStage * sizeof(Element)}, first.data(), second.data(),
        to.data(), rows, depth);
  expect(to, expected);
}
template <int kFault>
void product(unsigned seed) {
  product_of<__nv_bfloat16, false, kFault>(seed);
  product_of<__half, false, kFault>(seed);
  product_of<__nv_bfloat16, true, kFault>(seed);
  product_of<__half, true, kFault>(seed);
}

template <int kFault>
void tf32(unsigned seed) {
  std::vector<float> left = numbers(128, seed), right = numbers(64, seed + 1), expected(128);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < 8; ++k) expected[m * 8 + n] += left[m * 8 + k] * right[k * 8 + n];
    }
  }
  for (float& value : left) value *= 1.0f + 0x1p-12f;   // rounded away to the number before, not cut to it
  for (float& value : right) value *= 1.0f - 0x1p-12f;  // likewise, and cutting would give the number below
  Array<float> first(left), second(right), to(expected.size(), kUnwritten);
  start(tf32_kernel<kFault>, {1, 32}, first.data(), second.data(), to.data());
  expect(to, expected);
}

template <int kFault>
void handover(unsigned seed) {
  const int rounds = 3 + static_cast<int>(seed % 5);
  std::vector<int> expected(rounds);
  for (int round = 0; round < rounds; ++round) expected[round] = 64 * round + 63 * 64 / 2;
  Array<int> to(expected.size(), kUnwritten);
  start(handover_kernel<kFault>, {1, 96, 64 * sizeof(int)}, to.data(), rounds);
  expect(to, expected);
}

template <int kFault>
void ring(unsigned seed) {
  const unsigned size = 1u << (1 + seed % 3), clusters = 1 + seed % 3;
  const int rounds = 3 + static_cast<int>(seed % 6);
  std::vector<uint32_t> values(size), expected;
  for (unsigned rank = 0; rank < size; ++rank) values[rank] = rank;
  for (int round = 0; round < rounds; ++round) {
    uint32_t sum = 0;
    for (const uint32_t value : values) sum += value;
    for (unsigned rank = 0; rank < size; ++rank) values[rank] = (sum + rank) % 1000;
  }
  for (unsigned cluster = 0; cluster < clusters; ++cluster)
    expected.insert(expected.end(), values.begin(), values.end());
  Array<uint32_t> to(expected.size(), kUnwritten);
  LaunchShape shape{clusters * size, 64, 2 * 16 * sizeof(uint4) + 16};
  shape.cluster = size;
  start(ring_kernel<kFault>, shape, to.data(), size, rounds);
  expect(to, expected);
}

template <int kFault>
void chain(unsigned seed) {
  const unsigned blocks = 2 + seed % 9;
  std::vector<uint32_t> expected(blocks, 1);
  for (unsigned i = 1; i < blocks; ++i) expected[i] = 2 * expected[i - 1];
  Array<uint64_t> words(blocks, 0);
  Array<uint32_t> data(blocks, kUnwritten);
  LaunchShape shape{blocks, 32};
  shape.cooperative = kFault != kPlainLaunch;
  start(chain_kernel<kFault>, shape, words.data(), data.data());
  expect(data, expected);
}

template <int kFault>
void wide_chain(unsigned seed) {
  const unsigned blocks = 2 + seed % 9;
  std::vector<uint32_t> expected(blocks, 1);
  for (unsigned i = 1; i < blocks; ++i) expected[i] = expected[i - 1] + 1;
  Array<uint4> words(blocks, 0);
  Array<uint64_t> pairs(2 * blocks, 0);
  Array<uint32_t> data(blocks, kUnwritten);
  LaunchShape shape{blocks, 32};
  shape.cooperative = true;
  start(wide_chain_kernel<kFault>, shape, words.data(), pairs.data(), data.data());
  expect(data, expected);
}

// As near as csrc/cuda/primitives.h says, and inf, 0 and NaN where they belong.
template <int>
void functions(unsigned seed) {
  std::vector<float> input = numbers(32, seed);
  for (size_t i = 0; i < input.size(); ++i) input[i] = (input[i] + 0.375f) * (1 + static_cast<float>(i) / 8);
  const float inf = std::numeric_limits<float>::infinity();
  input[0] = inf, input[1] = -inf, input[2] = std::nanf(""), input[3] = 200, input[4] = -200, input[5] = 0;
  Array<float> from(input), to(3 * 32, kUnwritten);
  start(functions_kernel, {1, 32}, from.data(), to.data());
  const std::vector<float> values = to.values();
  const auto near = [&](const char* name, float value, float expected, float tolerance) {
    const bool same = value == expected || (std::isnan(value) && std::isnan(expected));
    if (same || std::abs(value - expected) <= tolerance * std::abs(expected)) return;
    throw Wrong(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(expected));
  };
  for (size_t i = 0; i < 32; ++i) {
    near("2^value", values[i], std::exp2(input[i]), 1e-6f);
    near("1 / value", values[32 + i], 1 / input[i], 1e-6f);
    near("tanh", values[64 + i], std::tanh(input[i]), 0x1p-10f);
  }
}

// Launches that CUDA refuses must be refused here too.
template <int>
void refusals(unsigned) {
  const auto refused = [](const char* what, const std::function<void()>& start) {
    try {
      start();
    } catch (const std::runtime_error& error) {
      return;
    }
    throw Wrong(std::string(what) + " was not refused");
  };
  Array<uint32_t> to(1 << 20, 0);
  Array<uint64_t> words(1 << 17, 0);
  LaunchShape shape{6, 32, 64};
  shape.cluster = 4;
  refused("a grid of 6 blocks in clusters of 4", [&] { start(ring_kernel<0>, shape, to.data(), 4u, 1); });
  refused("a block of 1,056 threads", [&] { start(ring_kernel<0>, {1, 1056, 4224}, to.data(), 1u, 1); });
  refused("a block with 256 KiB of shared memory",
          [&] { start(ring_kernel<0>, {1, 32, 256 << 10}, to.data(), 1u, 1); });
  LaunchShape many{100000, 32};
  many.cooperative = true;
  refused("a cooperative grid of 100,000 blocks", [&] { start(chain_kernel<0>, many, words.data(), to.data()); });
}

// A wait in vain ends, and says what it was for. Launches after it fail as well on a real GPU.
template <int>
void hang(unsigned) {
#if !defined(GRU_CUDA_EMULATOR) && !defined(GRU_EXT_SPIN_LIMIT)
  throw Wrong("compiled without GRU_EXT_SPIN_LIMIT, which would make it hang");
#endif
  Array<uint64_t> flag(1, 0);
  try {
    start(hang_kernel, {1, 32}, flag.data());
  } catch (const std::runtime_error& error) {
    std::printf("ended: %s\n", error.what());
    return;
  }
  throw Wrong("a wait for a flag that nobody sets has ended well");
}

using Check = void (*)(unsigned seed);

// A check and its faults in order, the first of them none.
struct Entry {
  const char* name;
  std::vector<Check> faults;
  bool in_all = true;
};

const std::vector<Entry>& all_checks() {
  using Checks = std::vector<Check>;
  static const std::vector<Entry> checks = {
      {"reverse", Checks{reverse<0>, reverse<1>, reverse<2>, reverse<3>, reverse<4>, reverse<5>}},
      {"lanes", Checks{lanes<0>, lanes<1>, lanes<2>}},
      {"product", Checks{product<0>, product<1>, product<2>, product<3>, product<4>, product<5>}},
      {"tf32", Checks{tf32<0>, nullptr, nullptr, tf32<3>}},
      {"handover", Checks{handover<0>, handover<1>, handover<2>}},
      {"ring", Checks{ring<0>, ring<1>, ring<2>, ring<3>, ring<4>, ring<5>}},
      {"chain", Checks{chain<0>, chain<1>, chain<2>, chain<3>}},
      {"wide_chain", Checks{wide_chain<0>, wide_chain<1>, wide_chain<2>, wide_chain<3>}},
      {"functions", Checks{functions<0>}},
      {"refusals", Checks{refusals<0>}},
      {"hang", Checks{hang<0>}, false},
  };
  return checks;
}

int run(const std::string& name, unsigned fault, unsigned seeds) {
  const auto entry = std::find_if(all_checks().begin(), all_checks().end(),
                                  [&](const Entry& candidate) { return candidate.name == name; });
  if (entry == all_checks().end() || fault >= entry->faults.size() || entry->faults[fault] == nullptr) {
    std::fprintf(stderr, "checks: there is no check %s with fault %u\n", name.c_str(), fault);
    return 2;
  }
#ifndef GRU_CUDA_EMULATOR
  if (fault != 0) {
    std::fprintf(stderr, "checks: faults are for the emulated GPU\n");
    return 2;
  }
#endif
  for (unsigned seed = 0; seed < seeds; ++seed) {
#ifdef GRU_CUDA_EMULATOR
    emulator::set_seed(seed);
#endif
    try {
      entry->faults[fault](seed);
    } catch (const std::exception& error) {
      std::printf("%s, fault %u, seed %u: %s\n", name.c_str(), fault, seed, error.what());
      return 1;
    }
  }
  std::printf("%s: right under %u seeds\n", name.c_str(), seeds);
  return 0;
}

}  // namespace
}  // namespace checks

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what is right is said, even if the next check hangs
  const auto number = [&](int index, int otherwise) { return index < count ? std::atoi(arguments[index]) : otherwise; };
  if (count > 1 && std::string(arguments[1]) != "all") {
    return checks::run(arguments[1], static_cast<unsigned>(number(2, 0)), static_cast<unsigned>(number(3, 12)));
  }
  int worst = 0;
  for (const checks::Entry& entry : checks::all_checks()) {
    if (!entry.in_all) continue;
    const int status = checks::run(entry.name, 0, static_cast<unsigned>(number(3, 12)));
    worst = status > worst ? status : worst;
  }
  return worst;
}
