// The targets of AVX-512 and AMX run through the software model of model.h, against the portable target and float64.
// Compiled and run by test_x86_model.py.
//   x86_check products|bytes|forward|backward|packed [FAULT]  must pass; with a planted fault (x86_model::Fault) fail
//   x86_check peaks|choice                                    must pass
//   x86_check misuse NUMBER                                   the model must abort
// Here: the target of AMX itself, products alone, and main.
#define X86_TARGET avx512_amx
// clang-format off
#include "check.h"
#include "../../csrc/cpu/target_avx512_amx.cpp"  // after model.h, which takes the place of the intrinsics
#include "bytes.cpp"
// clang-format on

#if !defined(GRU_EXT_AMX) || !defined(GRU_EXT_AVX_VNNI)
#error "this compiler has no AMX intrinsics"
#endif

#include <cfloat>

#include "../../csrc/cpu/packed.h"

namespace gru::cpu {
const Processor& processor() { return x86_check::modelled; }
// plan.cpp lists all targets; these are not compiled here, the second where the machine cannot run its other
// instructions.
const Target kTargetAvx2 = {"avx2", [](const Processor& p) { return p.avx2; }, nullptr, nullptr, nullptr, nullptr, 8};
#ifndef __AVX2__
const Target kTargetAvx2Vnni = {
    "avx2_vnni", [](const Processor& p) { return p.avx2_byte_dot; }, nullptr, nullptr, nullptr, nullptr, 8};
#endif
}  // namespace gru::cpu

namespace x86_check {

namespace {

using gru::DataType;
using gru::cpu::avx512_amx::ProductBFloat16;
using gru::cpu::avx512_amx::ProductFloat16;

// What multiply() hands on of rows [from, to), row by row; each sum must come once.
struct Sums {
  std::string what;
  int64_t from, to, first_group, of_group, columns;
  double (*read)(const float*);
  std::vector<double> values = std::vector<double>(static_cast<size_t>((to - from) * columns), NAN);

  void operator()(int64_t first, int64_t count, int64_t group, int at_once, const float* sums, int64_t stride) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < at_once * of_group; ++i) {
        double& sum =
            values.at(static_cast<size_t>((first + r - from) * columns + (group - first_group) * of_group + i));
        if (!std::isnan(sum)) fail(what + ": a sum is handed on twice");
        sum = read(sums + r * stride + i);
      }
  }
};

// multiply() itself, on operands of exactly their size: bits beyond the words of a row are NaN, the page after the last
// may not be touched.
template <class Product, int G>
void check_product(int64_t rows, int64_t words, int64_t groups) {
  using Element = typename Product::Element;
  constexpr int64_t kWidth = 16, kDotWords = 64;  // kDotWords: summed at once by the dot products
  const std::string what = "product of " + std::to_string(rows) + " rows, " + std::to_string(words) + " words, " +
                           std::to_string(groups) + " groups of " + std::to_string(G);
  const int64_t low = draw(0, 2), lda = words + draw(0, 20), high = low + rows, first_group = draw(0, 3);
  Guarded<float> a(static_cast<size_t>((high - 1) * lda + words)), w(static_cast<size_t>(groups * words * G * kWidth));
  const std::vector<double> a_values = numbers<Element>(rows * words * 2, 1),
                            w_values = numbers<Element>(groups * words * G * 32, 1);
  std::memset(a.data(), 0xff, static_cast<size_t>((high - 1) * lda + words) * sizeof(float));
  const auto put = [](float* to, int64_t i, double value) {
    const Element element = rounded<Element>(value);
    std::memcpy(reinterpret_cast<char*>(to) + i * 2, &element, sizeof element);
  };
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < words * 2; ++i)
      put(a.data() + (low + r) * lda, i, a_values[static_cast<size_t>(r * words * 2 + i)]);
  for (size_t i = 0; i < w_values.size(); ++i) put(w.data(), static_cast<int64_t>(i), w_values[i]);

  const int64_t columns = groups * G * kWidth;
  const auto run = [&](int64_t from, int64_t to) {
    Sums sums{what, from, to, first_group, G * kWidth, columns, [](const float* sum) -> double { return *sum; }};
    watch_tiles(what, true, [&] {
      gru::cpu::avx512_amx::multiply<Product, G>(a.data(), lda, from, to, w.data(), words, first_group,
                                                 first_group + groups, std::ref(sums));
    });
    return sums.values;
  };

  const std::vector<double> tiles = run(low, high);
  std::vector<double> dot(tiles.size()), truth(tiles.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t group = 0; group < groups; ++group) {
      const float* const weights = w.data() + group * words * G * kWidth;
      float sums[G * kWidth];
      for (int64_t k = 0; k < words; k += kDotWords)
        gru::cpu::avx512_amx::product_tile<Product, G, 1, 1>(a.data() + (low + r) * lda + k, lda,
                                                             weights + k * G * kWidth, 0,
                                                             std::min(kDotWords, words - k), sums, G * kWidth, k > 0);
      for (int64_t i = 0; i < G * kWidth; ++i) {
        const size_t at = static_cast<size_t>(r * columns + group * G * kWidth + i);
        dot[at] = sums[i];
        for (int64_t k = 0; k < words; ++k)
          for (int64_t half = 0; half < 2; ++half)
            truth[at] += a_values[static_cast<size_t>((r * words + k) * 2 + half)] *
                         w_values[static_cast<size_t>(((group * words + k) * G * kWidth + i) * 2 + half)];
      }
    }
  compare(what, tiles, largest_error(dot, truth), truth, 4 * FLT_EPSILON);
  for (const int64_t r : {int64_t{0}, rows / 2, rows - 1}) {
    const std::vector<double> alone = run(low + r, low + r + 1);
    if (std::memcmp(alone.data(), tiles.data() + r * columns, alone.size() * sizeof(double)) != 0)
      fail(what + ": row " + std::to_string(r) + " has other bits alone");
  }
}

// The same of bytes, whose sums are exact. extreme: of the largest bytes alone.
void check_byte_product(const ByteProduct& product, int64_t rows, int64_t words, int64_t groups, bool extreme) {
  const std::string what = std::string(product.name) + ": product of bytes of " + std::to_string(rows) + " rows, " +
                           std::to_string(words) + " words, " + std::to_string(groups) + " groups";
  const int64_t low = draw(0, 2), lda = words + draw(0, 20), high = low + rows, first_group = draw(0, 3);
  const int64_t of_group = 3 * product.lanes, columns = groups * of_group;
  const int64_t length = 4 * ((high - 1) * lda + words);
  Guarded<uint8_t> a(static_cast<size_t>(length));
  Guarded<int8_t> w(static_cast<size_t>(4 * words * columns));
  std::memset(a.data(), 0xff, static_cast<size_t>(length));
  const auto byte = [&](bool may_be_negative) {
    const int sign = may_be_negative && generator() % 2 ? -1 : 1;
    return sign * static_cast<int>(extreme || generator() % 4 == 0 ? 127 : generator() % 128);
  };
  for (int64_t r = low; r < high; ++r)
    for (int64_t k = 0; k < 4 * words; ++k)
      a.data()[4 * r * lda + k] = static_cast<uint8_t>(byte(!extreme) + product.offset);
  for (int64_t column = 0; column < columns; ++column) {
    const bool positive = column % 2 == 0;  // where all are the largest, so that no two cancel
    for (int64_t k = 0; k < 4 * words; ++k) {
      const int value = extreme ? (positive ? 127 : -127) : byte(true);
      w.data()[(((column / of_group * words + k / 4) * of_group) + column % of_group) * 4 + k % 4] =
          static_cast<int8_t>(value);
    }
  }
  const auto check = [&](int64_t from, int64_t to) {
    Sums sums{what, from, to, first_group, of_group, columns, [](const float* sum) {
                int32_t whole;
                std::memcpy(&whole, sum, sizeof whole);
                return static_cast<double>(whole);
              }};
    watch_tiles(what, product.on_tiles, [&] {
      product.multiply(reinterpret_cast<const float*>(a.data()), lda, from, to,
                       reinterpret_cast<const float*>(w.data()), words, first_group, first_group + groups,
                       std::ref(sums));
    });
    const double* sum = sums.values.data();
    for (int64_t r = from; r < to; ++r)
      for (int64_t column = 0; column < columns; ++column) {
        const uint8_t* const row = a.data() + 4 * r * lda;
        const int8_t* const weights = w.data() + (column / of_group * words * of_group + column % of_group) * 4;
        int64_t truth = 0;
        for (int64_t word = 0; word < words; ++word)
          for (int64_t i = 0; i < 4; ++i)
            truth += int64_t{product.offset ? row[4 * word + i] : static_cast<int8_t>(row[4 * word + i])} *
                     weights[4 * word * of_group + i];
        if (*sum++ != static_cast<double>(truth)) fail(what + ": row " + std::to_string(r - low) + " is wrong");
      }
  };
  check(low, high);
  for (const int64_t r : {int64_t{0}, rows / 2, rows - 1}) check(low + r, low + r + 1);
}

}  // namespace

void check_products() {
  int count = 0;
  const auto check = [&](int64_t rows, int64_t words) {
    check_product<ProductBFloat16, 3>(rows, words, draw(1, 3));
    check_product<ProductBFloat16, 4>(rows, words, draw(1, 2));
    check_product<ProductFloat16, 3>(rows, words, draw(1, 2));
    count += 3;
  };
  for (int64_t rows = 1; rows <= 50; ++rows)
    check(rows, draw_from<int64_t>({1, 2, 15, 16, 17, 31, 32, 33, 50, 65, 256}));
  for (const int64_t words : {1024, 1025, 1040, 2048, 2100}) check(draw(1, 40), words);
  std::printf("products: %d shapes, error at most %.2f of the bound\n", count, worst_ratio);
}

void check_bytes() {
  const auto check = [](int64_t rows, int64_t words, bool extreme) {
    for (const ByteProduct& product : byte_products()) check_byte_product(product, rows, words, draw(1, 3), extreme);
  };
  for (int64_t rows = 1; rows <= 50; ++rows)
    check(rows, draw_from<int64_t>({1, 2, 15, 16, 17, 31, 32, 33, 65}), rows % 10 == 0);
  for (const int64_t words : {256, 1024, 1025, 2100}) check(draw(1, 20), words, false);
  check(1, gru::cpu::kMostByteColumns / 4, true);  // sums that are just within 32 bits
  std::printf("bytes: of %d targets\n", static_cast<int>(byte_products().size()));
}

namespace {

// Each of these the processor would refuse or get wrong.
void misuse(int number) {
  float memory[256] = {};
  if (number == 0) _tile_loadd(4, memory, 64);
  gru::cpu::avx512_amx::configure_tiles(5, 3);
  if (number == 1) _tile_zero(8);
  if (number == 2) _tile_dpbf16ps(0, 4, 7);
  if (number == 7) _tile_dpbusd(0, 4, 7);
  if (number == 3) _tile_dpbf16ps(0, 0, 5);
  gru::cpu::avx512_amx::configure_tiles(5, 0);
  if (number == 4) _tile_loadd(6, memory, 64);
  if (number == 5) gru::cpu::avx512_amx::configure_tiles(17, 0);
  _tile_release();
  if (number == 6) _tile_stored(0, memory, 64);
}

// What the loops of probe.h say they did, and what they did.
void check_peaks() {
  constexpr int64_t kRounds = 5;
  constexpr double kOfTile = 2.0 * 16 * 16 * 32, kOfDot = 2.0 * 16 * 2;
  for (const DataType dtype : {DataType::BFloat16, DataType::Float16}) {
    const int64_t before = x86_model::products;
    const double operations = gru::cpu::kTargetAvx512Amx.multiply_adds(dtype, kRounds);
    if (operations != kOfTile * static_cast<double>(x86_model::products - before)) fail("a wrong number of operations");
    if (x86_model::products - before < kRounds || x86_model::state.configured) fail("no tiles, or not released");
  }
  const int64_t before = x86_model::dots, tiles = x86_model::products;
  const double operations = gru::cpu::kTargetAvx512Bf16.multiply_adds(DataType::BFloat16, kRounds);
  if (operations != kOfDot * static_cast<double>(x86_model::dots - before)) fail("a wrong number of operations");
  modelled.float16_tiles = false;
  gru::cpu::kTargetAvx512Amx.multiply_adds(DataType::Float16, kRounds);
  if (x86_model::products != tiles) fail("tiles of float16 that the processor does not have");
}

// Intel or not, AVX2, AVX-512, the dot products of bytes of either, that of bfloat16, tiles.
constexpr gru::cpu::Processor kAvx2{false, true}, kAvx2ByteDot{true, true, false, true}, kAvx512{true, true, true},
    kAvx512ByteDot{true, true, true, true, true}, kDot{false, true, true, false, true, true},
    kIntelDot{true, true, true, true, true, true}, kTiles{true, true, true, true, true, true, true};

// The targets of a processor, best first.
void check_choice() {
  const auto check = [](const gru::cpu::Processor& processor, const std::string& expected) {
    std::string names;
    for (const gru::cpu::Target* target : gru::cpu::targets_on(processor)) names += std::string(target->name) + " ";
    if (names != expected + "portable ") fail("expected " + expected + "portable, not " + names);
  };
  check({}, "");
  check(kAvx2, "avx2 ");
  check(kAvx512, "avx512 avx2 ");
  check(kDot, "avx512_bf16 avx512 avx2 ");
  check(kIntelDot, "avx512 avx512_bf16 avx2 ");
  check(kTiles, "avx512_amx avx512 avx512_bf16 avx2 ");
}

// The target for weights of bytes, where `name` is in use. Weights are packed for its lanes.
void check_choice_of_bytes() {
  // A step of one row, which reads weights as they lie where they are not packed.
  const auto check = [](const gru::cpu::Processor& processor, const std::string& name, const std::string& expected) {
    modelled = processor;
    gru::cpu::set_target(name);
    const gru::cpu::Plan plan = gru::cpu::make_plan(DataType::Float32, 1, 1, 8, 16, 1, 1, gru::WeightFormat::Int8);
    if (plan.target->name != expected) fail("bytes: expected " + expected + ", not " + plan.target->name);
    if (plan.few_rows) fail("bytes: packed, but read as if they were not");
    if (plan.target->lanes != gru::cpu::target().lanes) fail("bytes: packed for other vectors");
    if (gru::cpu::make_plan(DataType::Float32, 1, 1, 8, 16, 1, 1, gru::WeightFormat::Float32).target->name != name)
      fail("floats: not by the target in use");
  };
  check({}, "portable", "portable");
  check(kAvx2, "avx2", "avx2");
  check(kAvx2ByteDot, "avx2", "avx2_vnni");
  check(kAvx2ByteDot, "portable", "portable");
  check(kAvx512, "avx512", "avx512");
  check(kAvx512ByteDot, "avx512", "avx512_vnni");
  check(kAvx512ByteDot, "avx2", "avx2");
  check(kDot, "avx512_bf16", "avx512_bf16");
  check(kDot, "avx512", "avx512");
  check(kIntelDot, "avx512", "avx512_vnni");
  check(kTiles, "avx512_amx", "avx512_amx");
  check(kTiles, "avx512", "avx512");
}

}  // namespace

}  // namespace x86_check

int main(int count, char** arguments) {
  const std::string check = count > 1 ? arguments[1] : "";
  const int number = count > 2 ? std::atoi(arguments[2]) : 0;
  using namespace x86_check;
  if (check == "misuse") return misuse(number), 0;
  x86_model::fault = static_cast<x86_model::Fault>(number);
  if (check == "products") return check_products(), 0;
  if (check == "bytes") return check_bytes(), 0;
  if (check == "packed") return check_packed(), 0;
  if (check == "forward" || check == "backward") return check_passes(check == "backward"), 0;
  if (check == "peaks") return check_peaks(), 0;
  if (check == "choice") return check_choice(), check_choice_of_bytes(), 0;
  fail("expected products, bytes, forward, backward, packed, peaks, choice or misuse");
}
