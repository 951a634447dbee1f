// Faults to plant in instructions of Arm, one a run: the tests must notice each. To be included before all else.
#pragma once

#include <arm_neon.h>

namespace arm_test {

enum Fault { kNone, kCoarse, kMixedLanes, kMixedSums, kOddHalf, kLastByte, kReadsOn, kCutOff };
inline int fault = kNone;

inline float32x4_t coarse(float32x4_t x) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0xffffff00)));
}
inline float32x4_t even_halves(float32x4_t x) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0xffff)));
}
inline int8x16_t first_bytes(int8x16_t x) {
  return vreinterpretq_s8_u32(vandq_u32(vreinterpretq_u32_s8(x), vdupq_n_u32(0xffffff)));
}

}  // namespace arm_test

// In parentheses the names are the instructions' own.
#define GRU_FAULTY(number, wrong, right) (::arm_test::fault == ::arm_test::number ? (wrong) : (right))
#define vfmaq_f32(c, a, b) \
  GRU_FAULTY(kCoarse, ::arm_test::coarse((vfmaq_f32)((c), (a), (b))), (vfmaq_f32)((c), (a), (b)))
#define vtrn2q_f32(a, b) GRU_FAULTY(kMixedLanes, (vtrn2q_f32)((b), (a)), (vtrn2q_f32)((a), (b)))
#define vpaddq_f32(a, b) GRU_FAULTY(kMixedSums, (vpaddq_f32)((b), (a)), (vpaddq_f32)((a), (b)))
#define vreinterpretq_bf16_f32(x) (vreinterpretq_bf16_f32)(GRU_FAULTY(kOddHalf, ::arm_test::even_halves(x), (x)))
#define vcvtnq_s32_f32(x) GRU_FAULTY(kCutOff, (vcvtq_s32_f32)((x)), (vcvtnq_s32_f32)((x)))
#define vdotq_s32(sum, a, w) (vdotq_s32)((sum), GRU_FAULTY(kLastByte, ::arm_test::first_bytes((a)), (a)), (w))
#define vmull_high_s8(a, w) (vmull_high_s8)(GRU_FAULTY(kLastByte, ::arm_test::first_bytes((a)), (a)), (w))
