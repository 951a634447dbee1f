// The arithmetic of one GRU cell, forward and backward, shared by the CPU and CUDA kernels. V is whatever carries the
// numbers: a SIMD vector on the CPU, a float or double on the GPU. Math supplies sigmoid and tanh for it.
//
// A variant of the cell, with the same products before it and after it, is a choice among these formulas: a field of
// Options (gru.h) that CellFormula keeps. Kernels pass numbers to the object that their launcher made, and know no
// more.
//
// Forward, from the sums before the activations (a_r = W_ir x + b_ir + W_hr h + b_hr, likewise a_z; a_in = W_in x +
// b_in; a_hn = W_hn h + b_hn):
//   r = sigmoid(a_r)   z = sigmoid(a_z)   n = tanh(a_in + r * a_hn)   h' = (h - n) * z + n
// Backward, from dh = dLoss/dh':
//   dn = dh (1 - z) (1 - n^2)     dz = dh (h - n) z (1 - z)     dr = dn a_hn r (1 - r)
//   dLoss/dh = dh z + dr W_hr + dz W_hz + (r dn) W_hn
// where dr, dz, dn are the gradients before the activations.
#pragma once

#include "gru.h"

#if defined(__CUDACC__)
#define GRU_CELL_INLINE __host__ __device__ __forceinline__
#else
#define GRU_CELL_INLINE inline __attribute__((always_inline))
#endif

namespace gru {

template <class V>
struct CellState {
  V r, z, n, h;  // reset gate, update gate, candidate, new hidden state
};

template <class V>
struct CellGradient {
  V dn_hidden;  // r * dn: the gradient of a_hn
  V dr, dz, dn;
  V carry;  // dh * z, the part of the gradient of h that does not pass through W_hh
};

class CellFormula {
 public:
  CellFormula() = default;
  explicit CellFormula(const Options& /* options */) {}

  // r or z, from the sum before it.
  template <class Math, class V>
  GRU_CELL_INLINE V gate(V sum) const {
    return Math::sigmoid(sum);
  }

  template <class Math, class V>
  GRU_CELL_INLINE V candidate(V r, V a_in, V a_hn) const {
    return Math::tanh(a_in + r * a_hn);
  }

  template <class V>
  GRU_CELL_INLINE V state(V z, V n, V h_previous) const {
    return (h_previous - n) * z + n;
  }

  template <class Math, class V>
  GRU_CELL_INLINE CellState<V> forward(V a_r, V a_z, V a_in, V a_hn, V h_previous) const {
    const V r = gate<Math>(a_r), z = gate<Math>(a_z), n = candidate<Math>(r, a_in, a_hn);
    return {r, z, n, state(z, n, h_previous)};
  }

  template <class V>
  GRU_CELL_INLINE CellGradient<V> backward(V dh, V r, V z, V n, V hn, V h_previous, V one) const {
    CellGradient<V> gradient;
    gradient.dn = dh * (one - z) * (one - n * n);
    gradient.dz = dh * (h_previous - n) * z * (one - z);
    gradient.dr = gradient.dn * hn * r * (one - r);
    gradient.dn_hidden = gradient.dn * r;
    gradient.carry = dh * z;
    return gradient;
  }
};

}  // namespace gru
