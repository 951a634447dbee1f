// Weights packed ahead of the call, once for all, as the kernels read them: [groups of units][words][3 gates][lanes]
// [depth], where lanes is the width of a target's vectors of floats. Element (gate, unit, k) of W [3H, K] is element
// (unit / lanes, k / depth, gate, unit % lanes, k % depth); what is beyond H and K is zero. Without torch;
// gru_ext.frozen makes them.
#pragma once

#include "../gru.h"

namespace gru::cpu {

// Elements of a word: pairs of bfloat16 and fours of bytes are multiplied or widened together.
constexpr int64_t word_depth(WeightFormat format) {
  return format == WeightFormat::Int8 ? 4 : format == WeightFormat::BFloat16 ? 2 : 1;
}

constexpr int64_t groups_of(int64_t hidden_size, int64_t lanes) { return (hidden_size + lanes - 1) / lanes; }

// Bytes are within -127 and 127, and scale [groups][2][3][lanes] holds for each row of W what a byte of it stands for,
// and, as a whole number, the sum of its bytes. Their products are summed in 32 bits, which limits K.
constexpr int64_t kMostByteColumns = 65536;

}  // namespace gru::cpu
