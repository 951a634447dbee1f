// The product of a step, W_hh in registers times the operand in shared memory: on the tensor cores for 16-bit elements
// and TF32, by plain multiply-adds for float32. All have the same functions and give a lane the same sums, of units 2g
// and 2g + 1 of its warp's tile, g = lane / 4, and of sequences 2t and 2t + 1 of each eight, t = lane % 4: numbers 0
// and 2 of four sums are those of sequence 2t, numbers 1 and 3 those of 2t + 1, but in the order of Place::swap.
//
// W_hh comes into the registers through shared memory, a gate at a time: first all threads copy the block's part, with
// many loads under way, then every warp takes its tiles. For forward the rows of W_hh as they are, [units, columns];
// for backward those of its transpose, as they are, [columns, units], and the gates in the order n, r, z.
//
// Of a warp's tiles, 16 columns each, those for which there are no registers stay in shared memory, in the tail.
#pragma once

#include "stationary.cuh"

namespace gru::cuda {

// How many of a warp's tiles are in registers: as many as compile without spills.
__host__ __device__ constexpr int tiles_in_registers(int tiles, size_t element, bool tf32) {
  if (element == 2) return tiles < 12 ? tiles : 12;
  if (tf32) return tiles < 4 ? tiles : 4;
  return tiles > 4 ? 1 : tiles;
}

// 16 bytes of elements at `address`, of which the first `exist` are there; the others are 0.
template <class Element>
__device__ inline uint4 load_chunk(const Element* address, int exist, bool aligned) {
  constexpr int kCount = static_cast<int>(16 / sizeof(Element));
  if (exist >= kCount && aligned) return *reinterpret_cast<const uint4*>(address);
  Element values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = i < exist ? address[i] : narrow<Element>(0.0f);
  uint4 chunk;
  memcpy(&chunk, values, sizeof chunk);
  return chunk;
}
template <class Element>
__device__ inline bool chunks_aligned(const Element* weight_hh, int hidden_size) {
  return hidden_size * sizeof(Element) % 16 == 0 && reinterpret_cast<uintptr_t>(weight_hh) % 16 == 0;
}

// Copies lines of W_hh to `stage`, `row` elements apart: line i is W_hh's row first_line + i, from column first_column
// on, or 0 where W_hh, or the gate that begins at its row `gate`, has ended. put(to, chunk) stores 16 bytes. By all
// threads.
template <class Element, class Put>
__device__ inline void copy_lines(Element* stage, int row, int lines, int width, const Element* weight_hh,
                                  int hidden_size, int gate, int first_line, int first_column, Put&& put) {
  constexpr int kCount = static_cast<int>(16 / sizeof(Element));
  const bool aligned = chunks_aligned(weight_hh, hidden_size);
  const int chunks = width / kCount;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < lines * chunks; i += static_cast<int>(blockDim.x)) {
    const int line = i / chunks, in_line = i % chunks * kCount;
    const Element* const from =
        weight_hh + static_cast<int64_t>(gate + first_line + line) * hidden_size + first_column + in_line;
    const int exist = first_line + line < hidden_size ? hidden_size - first_column - in_line : 0;
    put(stage + line * row, in_line, load_chunk(from, exist, aligned));
  }
}

template <int kSums>
__device__ inline void clear(float (&sums)[kSums][4]) {
#pragma unroll
  for (int i = 0; i < kSums * 4; ++i) sums[i / 4][i % 4] = 0.0f;
}

// ---------------------------------------------------------------------------------------------------------------------
// 16-bit elements: W_hh is the left operand of the tensor cores. Row i of a tile is unit 2 i, row i + 8 unit 2 i + 1
// ---------------------------------------------------------------------------------------------------------------------

template <class Element>
__device__ inline uint32_t pack_elements(Element first, Element second) {
  const Element pair[2] = {first, second};
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}

template <class Element, int kTiles>
class Product {
 public:
  static constexpr int kTailWords = 3;  // of 16 bytes, a tile and lane

  __device__ void load(unsigned char* shared, const StationaryPass& pass, const Element* weight_hh,
                       const Place& place) {
    uint4* const tail = reinterpret_cast<uint4*>(shared + kTailBegin);
    Element* const stage = reinterpret_cast<Element*>(shared + pass.parts.operands);
    const int hidden_size = pass.hidden_size, splits = pass.splits;
    const int columns = kTiles * splits * 16, row = padded_row(columns, sizeof(Element));
    // Lanes 8 m to 8 m + 7 name the rows of matrix m: even units and odd ones, then both again 8 columns on.
    const int named = place.unit_tile * kUnitsOfTile + place.lane % 8 * 2 + place.lane / 8 % 2;
    const Element* const mine = stage + named * row + place.split * kTiles * 16 + place.lane / 16 * 8;
    const auto put = [](Element* to, int in_line, uint4 chunk) { *reinterpret_cast<uint4*>(to + in_line) = chunk; };
    find_tail(tail, place);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      copy_lines(stage, row, place.units, columns, weight_hh, hidden_size, gate * hidden_size, place.rank * place.units,
                 0, put);
      block_sync();
      take(gate, [&](uint32_t (&words)[4], int tile) { load_matrices(words, mine + tile * 16); });
      block_sync();
    }
  }

  __device__ void load_transposed(unsigned char* shared, const StationaryPass& pass, const Element* weight_hh,
                                  const Place& place) {
    uint4* const tail = reinterpret_cast<uint4*>(shared + kTailBegin);
    Element* const stage = reinterpret_cast<Element*>(shared + pass.parts.operands);
    const int hidden_size = pass.hidden_size, splits = pass.splits;
    const int columns = kTiles * splits * 16, row = padded_row(place.units, sizeof(Element));
    const int named = place.split * kTiles * 16 + place.lane / 16 * 8 + place.lane % 8;
    const Element* const mine = stage + named * row + place.unit_tile * kUnitsOfTile + place.lane / 8 % 2 * 8;
    // Of each 16 units the even ones come before the odd ones.
    const auto put = [](Element* to, int in_line, uint4 chunk) {
      Element values[8];
      memcpy(values, &chunk, sizeof values);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        *reinterpret_cast<uint2*>(to + in_line / 16 * 16 + in_line % 16 / 2 + odd * 8) =
            make_uint2(pack_elements(values[odd], values[odd + 2]), pack_elements(values[odd + 4], values[odd + 6]));
      }
    };
    find_tail(tail, place);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      copy_lines(stage, row, columns, place.units, weight_hh, hidden_size, (gate + 2) % 3 * hidden_size, 0,
                 place.rank * place.units, put);
      block_sync();
      take(gate, [&](uint32_t (&words)[4], int tile) { load_matrices_transposed(words, mine + tile * 16 * row); });
      block_sync();
    }
  }

  // sums[i][gate] = the warp's part of W_hh times the i-th 8 rows of the operand, `row` elements apart; those of the
  // next gate lie `gate_stride` elements on, or with kOneOperand are the same ones. With two sums these make up the
  // gates' total. Rows from `wanted` on are 0, or their sums are not looked at.
  template <bool kOneOperand, int kCells, int kSums>
  __device__ void multiply(float (&sums)[kCells][kSums][4], const Element* operand, int row, int gate_stride,
                           const Place& place, int /* wanted */) const {
    const Element* mine[kCells];
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      clear(sums[i]);
      mine[i] = operand + ((i * kSequencesOfTile + place.lane % 8) ^ place.swap) * row + place.lane / 8 * 8 +
                place.split * kTiles * 16;
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      uint32_t words[kCells][4];
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
        for (int i = 0; i < kCells; ++i) {
          if (!kOneOperand || gate == 0) load_matrices(words[i], mine[i] + gate * gate_stride + tile * 16);
        }
        uint32_t weights[2][4];
        two_tiles(weights, gate, tile);
#pragma unroll
        for (int second = 0; second < 2; ++second) {
#pragma unroll
          for (int i = 0; i < kCells; ++i) {
            mma_m16n8k16<Element>(sums[i][kSums == 3 ? gate : second], weights[second],
                                  {words[i][2 * second], words[i][2 * second + 1]});
          }
        }
      }
    }
  }

 private:
  static constexpr int kIn = tiles_in_registers(kTiles, sizeof(Element), false), kTail = kTiles - kIn;

  __device__ void find_tail(uint4* tail, const Place& place) {
    tail_ = tail + place.warp * kTailWords * kTail * kWarpSize + place.lane;
  }
  // load(words, tile) gives a tile of one gate as the tensor cores want it.
  template <class Load>
  __device__ void take(int gate, Load&& load) {
#pragma unroll
    for (int tile = 0; tile < kIn; ++tile) load(words_[gate][tile], tile);
#pragma unroll
    for (int tile = 0; tile < kTail; ++tile) {
      uint32_t words[4];
      load(words, kIn + tile);
      tail_[(gate * kTail + tile) * kWarpSize] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  __device__ void two_tiles(uint32_t (&words)[2][4], int gate, int tile) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (tile < kIn) {
        memcpy(words[i], words_[gate][tile + i], sizeof words[i]);
      } else {
        memcpy(words[i], tail_ + (gate * kTail + tile - kIn + i) * kWarpSize, sizeof words[i]);
      }
    }
  }

  uint32_t words_[3][kIn][4];
  uint4* tail_;
};

// ---------------------------------------------------------------------------------------------------------------------
// float32, as such and rounded to TF32: a lane has columns 4t to 4t + 3 of every tile, of its two units
// ---------------------------------------------------------------------------------------------------------------------

template <class Element, int kTiles>
class FloatWeights {
 public:
  static constexpr int kTailWords = 6;

  __device__ void load(unsigned char* shared, const StationaryPass& pass, const Element* weight_hh,
                       const Place& place) {
    uint4* const tail = reinterpret_cast<uint4*>(shared + kTailBegin);
    Element* const stage = reinterpret_cast<Element*>(shared + pass.parts.operands);
    const int hidden_size = pass.hidden_size, splits = pass.splits;
    const int columns = kTiles * splits * 16, row = padded_row(columns, sizeof(Element));
    const Element* const mine = stage + (place.unit_tile * kUnitsOfTile + place.lane / 4 * 2) * row +
                                place.split * kTiles * 16 + place.lane % 4 * 4;
    const auto put = [](Element* to, int in_line, uint4 chunk) { *reinterpret_cast<uint4*>(to + in_line) = chunk; };
    find_tail(tail, place);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      copy_lines(stage, row, place.units, columns, weight_hh, hidden_size, gate * hidden_size, place.rank * place.units,
                 0, put);
      block_sync();
      take(gate, [&](int unit, int tile) { return *reinterpret_cast<const float4*>(mine + unit * row + tile * 16); });
      block_sync();
    }
  }

  __device__ void load_transposed(unsigned char* shared, const StationaryPass& pass, const Element* weight_hh,
                                  const Place& place) {
    uint4* const tail = reinterpret_cast<uint4*>(shared + kTailBegin);
    Element* const stage = reinterpret_cast<Element*>(shared + pass.parts.operands);
    const int hidden_size = pass.hidden_size, splits = pass.splits;
    const int columns = kTiles * splits * 16, row = padded_row(place.units, sizeof(Element));
    const Element* const mine = stage + (place.split * kTiles * 16 + place.lane % 4 * 4) * row +
                                place.unit_tile * kUnitsOfTile + place.lane / 4 * 2;
    const auto put = [](Element* to, int in_line, uint4 chunk) { *reinterpret_cast<uint4*>(to + in_line) = chunk; };
    find_tail(tail, place);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      copy_lines(stage, row, columns, place.units, weight_hh, hidden_size, (gate + 2) % 3 * hidden_size, 0,
                 place.rank * place.units, put);
      block_sync();
      take(gate, [&](int unit, int tile) {
        const Element* const from = mine + tile * 16 * row + unit;
        return make_float4(widen(from[0]), widen(from[row]), widen(from[2 * row]), widen(from[3 * row]));
      });
      block_sync();
    }
  }

 protected:
  static constexpr bool kTf32 = std::is_same_v<Element, TensorFloat>;
  static constexpr int kIn = tiles_in_registers(kTiles, sizeof(Element), kTf32), kTail = kTiles - kIn;

  __device__ float4 weight(int gate, int unit, int tile) const {
    return tile < kIn ? weights_[gate][unit][tile] : tail_[((gate * 2 + unit) * kTail + tile - kIn) * kWarpSize];
  }

 private:
  __device__ void find_tail(uint4* tail, const Place& place) {
    tail_ = reinterpret_cast<float4*>(tail) + place.warp * kTailWords * kTail * kWarpSize + place.lane;
  }
  // load(unit, tile) gives a tile's four columns of one of the two units.
  template <class Load>
  __device__ void take(int gate, Load&& load) {
    const auto rounded = [&](int unit, int tile) {
      const float4 exact = load(unit, tile);
      if (!kTf32) return exact;
      return make_float4(round_to_tf32(exact.x), round_to_tf32(exact.y), round_to_tf32(exact.z),
                         round_to_tf32(exact.w));
    };
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
#pragma unroll
      for (int tile = 0; tile < kIn; ++tile) weights_[gate][unit][tile] = rounded(unit, tile);
#pragma unroll
      for (int tile = 0; tile < kTail; ++tile) {
        tail_[((gate * 2 + unit) * kTail + tile) * kWarpSize] = rounded(unit, kIn + tile);
      }
    }
  }
  __device__ static float round_to_tf32(float value) {
    const uint32_t word = to_tf32(value);
    float rounded;
    memcpy(&rounded, &word, sizeof rounded);
    return rounded;
  }

  float4 weights_[3][2][kIn];
  float4* tail_;
};

// Multiply-adds, for all 8 sequences or, where no more are wanted, for 2; then the four lanes of a unit add up.
template <int kTiles>
class Product<float, kTiles> : public FloatWeights<float, kTiles> {
  using Weights = FloatWeights<float, kTiles>;
  static constexpr int kFew = 2;

 public:
  template <bool kOneOperand>
  __device__ void multiply(float (&sums)[1][3][4], const float* operand, int row, int gate_stride, const Place& place,
                           int wanted) const {
    if (wanted <= kFew) {
      few<kOneOperand>(sums[0], operand, row, gate_stride, place);
    } else {
      all<kOneOperand>(sums[0], operand, row, gate_stride, place);
    }
  }

 private:
  // parts[gate][unit][sequence] of the lane's columns.
  template <bool kOneOperand, int kSequences>
  __device__ void add(float (&parts)[3][2][kSequences], const float* operand, int row, int gate_stride,
                      const Place& place) const {
    const float* const mine = operand + place.split * kTiles * 16 + place.lane % 4 * 4;
    const float* const of[2] = {mine + place.swap * row, mine - place.swap * row};  // even ones, odd ones
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        // Keeps the compiler from loading more ahead than there are registers for.
        if (Weights::kTail > 0 && (gate == 0 || !kOneOperand)) warp_sync();
        const float4 weights[2] = {this->weight(gate, 0, tile), this->weight(gate, 1, tile)};
#pragma unroll
        for (int sequence = 0; sequence < kSequences; ++sequence) {
          const float* const from =
              of[sequence % 2] + (kOneOperand ? 0 : gate * gate_stride) + sequence * row + tile * 16;
          const float4 values = *reinterpret_cast<const float4*>(from);
#pragma unroll
          for (int unit = 0; unit < 2; ++unit) {
            float& part = parts[gate][unit][sequence];
            part += weights[unit].x * values.x;
            part += weights[unit].y * values.y;
            part += weights[unit].z * values.z;
            part += weights[unit].w * values.w;
          }
        }
      }
    }
  }

  template <bool kOneOperand>
  __device__ void all(float (&sums)[3][4], const float* operand, int row, int gate_stride, const Place& place) const {
    float parts[3][2][kSequencesOfTile] = {};
    add<kOneOperand>(parts, operand, row, gate_stride, place);
    // Twice each lane gives half of its sequences away, for the other half of a neighbour's.
    const bool upper = place.lane / 2 % 2 != 0, odd = place.lane % 2 != 0;
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
      for (int unit = 0; unit < 2; ++unit) {
        const float (&of)[kSequencesOfTile] = parts[gate][unit];
        float half[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) half[i] = (upper ? of[4 + i] : of[i]) + shuffle_xor(upper ? of[i] : of[4 + i], 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sums[gate][2 * unit + i] = (odd ? half[2 + i] : half[i]) + shuffle_xor(odd ? half[i] : half[2 + i], 1);
        }
      }
    }
  }

  // In the order of `all`, so that a sequence's sums have the same bits.
  template <bool kOneOperand>
  __device__ void few(float (&sums)[3][4], const float* operand, int row, int gate_stride, const Place& place) const {
    float parts[3][2][kFew] = {};
    add<kOneOperand>(parts, operand, row, gate_stride, place);
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
      for (int unit = 0; unit < 2; ++unit) {
#pragma unroll
        for (int i = 0; i < kFew; ++i) {
          const float half = parts[gate][unit][i] + shuffle_xor(parts[gate][unit][i], 2);
          const float sum = half + shuffle_xor(half, 1);
          sums[gate][2 * unit + i] = place.lane % 4 == 0 ? sum : 0.0f;
        }
      }
    }
  }
};

// On the tensor cores. The lane's four columns of a tile take part as columns t and t + 4 of one product and of the
// next: the order in which a sum is added up is free, if it is the same for both operands.
template <int kTiles>
class Product<TensorFloat, kTiles> : public FloatWeights<TensorFloat, kTiles> {
 public:
  template <bool kOneOperand>
  __device__ void multiply(float (&sums)[1][3][4], const TensorFloat* operand, int row, int gate_stride,
                           const Place& place, int /* wanted */) const {
    clear(sums[0]);
    const TensorFloat* const mine =
        operand + (place.lane / 4 ^ place.swap) * row + place.split * kTiles * 16 + place.lane % 4 * 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t words[4];
      if (kOneOperand) load_rounded(words, mine + tile * 16);
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        if (!kOneOperand) load_rounded(words, mine + gate * gate_stride + tile * 16);
        const float4 weights[2] = {this->weight(gate, 0, tile), this->weight(gate, 1, tile)};
        uint32_t of[2][4];
        memcpy(of, weights, sizeof of);
        mma_m16n8k8_tf32(sums[0][gate], {of[0][0], of[1][0], of[0][1], of[1][1]}, {words[0], words[1]});
        mma_m16n8k8_tf32(sums[0][gate], {of[0][2], of[1][2], of[0][3], of[1][3]}, {words[2], words[3]});
      }
    }
  }

 private:
  __device__ static void load_rounded(uint32_t (&words)[4], const TensorFloat* from) {
    const float4 values = *reinterpret_cast<const float4*>(from);
    words[0] = to_tf32(values.x);
    words[1] = to_tf32(values.y);
    words[2] = to_tf32(values.z);
    words[3] = to_tf32(values.w);
  }
};

}  // namespace gru::cuda
