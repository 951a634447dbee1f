// The intrinsics that vectors.h models, each called the same way whether this is compiled with the model (X86_MODELLED)
// or for the processor's own; main holds the one to the other.
#include "intrinsics.h"

#ifdef X86_MODELLED
#include "model.h"
#define X86_CALLS modelled_calls
#else
#include "../../csrc/cpu/target.h"
#define X86_CALLS real_calls
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32  // AVX512_VNNI's does the same as AVX_VNNI's
#endif

#define GRU_BFLOAT16_DOT
GRU_TARGET_BEGIN("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace gru::cpu::X86_CALLS {

extern const std::vector<x86_check::Call> calls, stores;

using x86_check::Block;
using x86_check::Call;
using x86_check::Kind;

static __m512 ps(const Block& block) { return _mm512_loadu_ps(&block); }
static __m512d pd(const Block& block) { return _mm512_loadu_pd(&block); }
static __m512i si(const Block& block) { return _mm512_castps_si512(ps(block)); }
static __m256i half(const Block& block) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&block)); }
static __mmask16 mask(const Block& block) { return static_cast<__mmask16>(block.words[0]); }
static void put(Block& out, __m512 x) { _mm512_storeu_ps(&out, x); }
static void put(Block& out, __m512d x) { _mm512_storeu_pd(&out, x); }
static void put(Block& out, __m512i x) { put(out, _mm512_castsi512_ps(x)); }
static void put(Block& out, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out), x); }
static void put(Block& out, __m128i x) { std::memcpy(&out, &x, sizeof x); }
static void put(Block& out, __mmask64 x) { std::memcpy(&out, &x, sizeof x); }
static void put(Block& out, __mmask16 x) { out.words[0] = x; }
static void put(Block& out, __mmask8 x) { out.words[0] = x; }

#define X86_CALL(kind, ...) \
  {#__VA_ARGS__, Kind::kind, []([[maybe_unused]] const Block* in, Block& out) { put(out, __VA_ARGS__); }}

const std::vector<Call> calls = {
    X86_CALL(Floats, _mm512_set1_ps(ps(in[0])[0])),
    X86_CALL(Doubles, _mm512_set1_pd(pd(in[0])[0])),
    X86_CALL(Bits, _mm512_set1_epi32(static_cast<int>(in[0].words[0]))),
    X86_CALL(Bits, _mm512_setr_epi64(1, 2, 3, 4, 5, 6, 7, -8)),
    X86_CALL(Bits, _mm512_castsi512_si256(si(in[0]))),
    X86_CALL(Bits, _mm512_extracti64x4_epi64(si(in[0]), 1)),
    X86_CALL(Bits, _mm512_inserti64x4(_mm512_castsi256_si512(half(in[0])), half(in[1]), 1)),
    X86_CALL(Bits, _mm512_maskz_loadu_ps(mask(in[0]), &in[1])),
    X86_CALL(Bits, _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask(in[0])), &in[1])),
    X86_CALL(Bits, _mm256_maskz_loadu_epi16(mask(in[0]), &in[1])),
    X86_CALL(Floats, _mm512_add_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Floats, _mm512_sub_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Floats, _mm512_mul_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Floats, _mm512_div_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Doubles, _mm512_add_pd(pd(in[0]), pd(in[1]))),
    X86_CALL(Doubles, _mm512_sub_pd(pd(in[0]), pd(in[1]))),
    X86_CALL(Doubles, _mm512_mul_pd(pd(in[0]), pd(in[1]))),
    X86_CALL(Doubles, _mm512_div_pd(pd(in[0]), pd(in[1]))),
    X86_CALL(Floats, _mm512_fmadd_ps(ps(in[0]), ps(in[1]), ps(in[2]))),
    X86_CALL(Floats, _mm512_fnmadd_ps(ps(in[0]), ps(in[1]), ps(in[2]))),
    X86_CALL(Doubles, _mm512_fmadd_pd(pd(in[0]), pd(in[1]), pd(in[2]))),
    X86_CALL(Floats, _mm512_min_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Floats, _mm512_max_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Doubles, _mm512_min_pd(pd(in[0]), pd(in[1]))),
    X86_CALL(Doubles, _mm512_max_pd(pd(in[0]), pd(in[1]))),
    X86_CALL(Estimate, _mm512_rcp14_ps(ps(in[0]))),
    X86_CALL(Floats, _mm512_roundscale_ps(ps(in[0]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
    X86_CALL(Doubles, _mm512_roundscale_pd(pd(in[0]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
    X86_CALL(Exponents, _mm512_scalef_ps(_mm512_set1_ps(1), ps(in[0]))),
    X86_CALL(DoubleExponents, _mm512_scalef_pd(_mm512_set1_pd(1), pd(in[0]))),
    X86_CALL(Bits, _mm512_cmp_ps_mask(ps(in[0]), ps(in[1]), _CMP_NLT_UQ)),
    X86_CALL(Bits, _mm512_cmp_ps_mask(ps(in[0]), ps(in[1]), _CMP_UNORD_Q)),
    X86_CALL(Bits, _mm512_cmp_pd_mask(pd(in[0]), pd(in[1]), _CMP_NLT_UQ)),
    X86_CALL(Bits, _mm512_maskz_mov_ps(mask(in[0]), ps(in[1]))),
    X86_CALL(Bits, _mm512_maskz_mov_pd(static_cast<__mmask8>(mask(in[0])), pd(in[1]))),
    X86_CALL(Bits, _mm512_mask_mov_epi32(si(in[0]), mask(in[1]), si(in[2]))),
    X86_CALL(Bits, _mm512_and_si512(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_or_si512(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_add_epi32(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_slli_epi32(si(in[0]), 16)),
    X86_CALL(Bits, _mm512_srli_epi32(si(in[0]), 16)),
    X86_CALL(Bits, _mm512_cvtepu16_epi32(half(in[0]))),
    X86_CALL(Bits, _mm512_cvtepi32_epi16(si(in[0]))),
    X86_CALL(Floats, _mm512_cvtph_ps(half(in[0]))),
    X86_CALL(Floats, _mm512_cvtph_ps(_mm512_cvtps_ph(ps(in[0]), _MM_FROUND_TO_NEAREST_INT))),
    X86_CALL(Bits, _mm512_unpacklo_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Bits, _mm512_unpackhi_ps(ps(in[0]), ps(in[1]))),
    X86_CALL(Bits, _mm512_shuffle_ps(ps(in[0]), ps(in[1]), 0x4e)),
    X86_CALL(Bits, _mm512_shuffle_f32x4(ps(in[0]), ps(in[1]), 0x4e)),
    X86_CALL(Bits, _mm512_shuffle_f64x2(pd(in[0]), pd(in[1]), 0x4e)),
    X86_CALL(Bits, _mm512_permutex2var_pd(pd(in[0]), _mm512_setr_epi64(0, 8, 3, 10, 4, 13, 7, 14), pd(in[1]))),
    X86_CALL(Bits, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(ps(in[0])))),
    X86_CALL(Bits, _mm512_setzero_si512()),
    X86_CALL(Bits, _mm512_set1_epi16(static_cast<int16_t>(in[0].words[0] & 0xffff))),
    X86_CALL(Bits, _mm512_sub_epi32(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_max_epi32(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_cvtepi32_ps(si(in[0]))),
    X86_CALL(Bits, _mm512_cvtps_epi32(ps(in[0]))),
    X86_CALL(Exponents, _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_set1_ps(0.5f), ps(in[0])))),
    X86_CALL(Bits, _mm512_cvtepi32_epi8(si(in[0]))),
    X86_CALL(Bits, _mm512_movepi8_mask(si(in[0]))),
    X86_CALL(Bits, _mm512_mask_sub_epi8(si(in[0]), _mm512_movepi8_mask(si(in[1])), si(in[1]), si(in[2]))),
    X86_CALL(Bits, _mm512_abs_epi8(si(in[0]))),
    X86_CALL(Bits, _mm512_maddubs_epi16(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_madd_epi16(si(in[0]), si(in[1]))),
    X86_CALL(Bits, _mm512_dpbusd_epi32(si(in[0]), si(in[1]), si(in[2]))),
    X86_CALL(Bits, _mm256_dpbusd_avx_epi32(half(in[0]), half(in[1]), half(in[2]))),
    X86_CALL(Sums,
             _mm512_dpbf16_ps(ps(in[0]), reinterpret_cast<__m512bh>(ps(in[1])), reinterpret_cast<__m512bh>(ps(in[2])))),
};
// Stores change some of what is there.
static Call store(const char* name, void (*run)(const Block*, Block&)) { return {name, Kind::Bits, run}; }
const std::vector<Call> stores = {
    store("_mm512_stream_ps",
          [](const Block* in, Block& out) { _mm512_stream_ps(reinterpret_cast<float*>(&out), ps(in[0])); }),
    store("_mm512_mask_storeu_ps",
          [](const Block* in, Block& out) { _mm512_mask_storeu_ps(&out, mask(in[0]), ps(in[1])); }),
    store("_mm512_mask_storeu_pd",
          [](const Block* in, Block& out) {
            _mm512_mask_storeu_pd(&out, static_cast<__mmask8>(mask(in[0])), pd(in[1]));
          }),
    store("_mm256_mask_storeu_epi16",
          [](const Block* in, Block& out) { _mm256_mask_storeu_epi16(&out, mask(in[0]), half(in[1])); }),
};

}  // namespace gru::cpu::X86_CALLS
GRU_TARGET_END

#ifdef X86_MODELLED

namespace gru::cpu::real_calls {
extern const std::vector<x86_check::Call> calls, stores;
}

namespace x86_check {

namespace {

// Numbers of all kinds: any bits; near one another, so that sums cancel; zeros, infinities, NaN, subnormals.
Block draw(std::mt19937& generator, Kind kind) {
  Block block;
  const uint32_t specials[] = {0,          0x80000000, 0x7f800000, 0xff800000, 0x7fc00000,
                               1,          0x807fffff, 0x00800000, 0x7f7fffff, 0x477fefff,
                               0x477ff000, 0x33000000, 0x387fe000, 0x3f808000, 0x3f818000};
  for (uint32_t& word : block.words) {
    const uint32_t bits = static_cast<uint32_t>(generator()), how = static_cast<uint32_t>(generator()) % 4;
    word = how == 0 ? bits : how == 1 ? specials[bits % std::size(specials)] : (bits & 0x83ffffff) + 0x3e000000;
  }
  for (int i = 0; i < 16; ++i)
    if (kind == Kind::Exponents) block.floats[i] = static_cast<float>(static_cast<int>(generator() % 253) - 126);
  for (int i = 0; i < 8; ++i)
    if (kind == Kind::DoubleExponents) block.doubles[i] = static_cast<int>(generator() % 2045) - 1022;
  return block;
}

bool alike(const Block* in, const Block& model, const Block& real, Kind kind) {
  for (int i = 0; i < 16; ++i) {
    const double a = model.floats[i], b = real.floats[i];
    if (kind == Kind::Doubles || kind == Kind::DoubleExponents) {
      const double c = model.doubles[i / 2], d = real.doubles[i / 2];
      if (std::memcmp(&c, &d, sizeof c) != 0 && !(c != c && d != d)) return false;
    } else if (kind == Kind::Estimate) {  // both within 2^-14 of what the kernels ask it for
      const double x = in[0].floats[i];
      if (x >= 1 && x < 1e30 && !(std::abs(a * x - 1) <= 0x1p-14 && std::abs(b * x - 1) <= 0x1p-14)) return false;
    } else if (kind == Kind::Sums) {  // of three terms in one order or another: each addition rounds once
      const auto product = [&](bool high) {
        const auto value = [high](uint32_t word) {
          return static_cast<double>(gru::cpu::float_from_bits(high ? word & 0xffff0000 : word << 16));
        };
        return std::abs(value(in[1].words[i]) * value(in[2].words[i]));
      };
      const double terms = std::abs(in[0].floats[i]) + product(true) + product(false);
      if (std::isfinite(terms) && terms < 1e38 && !(std::abs(a - b) <= 0x1p-22 * terms + 0x1p-124)) return false;
    } else if (model.words[i] != real.words[i] && !(kind != Kind::Bits && a != a && b != b)) {
      return false;
    }
  }
  return true;
}

int compare(const std::vector<Call>& model, const std::vector<Call>& real) {
  std::mt19937 generator(20240609);
  for (size_t n = 0; n < model.size(); ++n)
    for (int i = 0; i < 2000; ++i) {
      Block in[3], outs[2] = {};
      for (Block& block : in) block = draw(generator, model[n].kind);
      model[n].run(in, outs[0]);
      real[n].run(in, outs[1]);
      if (alike(in, outs[0], outs[1], model[n].kind)) continue;
      std::fprintf(stderr, "x86_intrinsics: %s is not as modelled\n", model[n].name);
      return 1;
    }
  return 0;
}

}  // namespace

}  // namespace x86_check

int main() {
  using namespace gru::cpu;
  return x86_check::compare(modelled_calls::calls, real_calls::calls) |
         x86_check::compare(modelled_calls::stores, real_calls::stores);
}

#endif
