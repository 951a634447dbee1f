// Lengths and resets on the CPU: the sequences of a layer as its passes count them (csrc/gru.h), and what lies outside
// of the kernels: the padding, the states of sequences without a step, and those of pieces.
//
// A batch of few sequences is cut at its resets (worth_cutting in csrc/cpu/plan.h): the pieces are then the sequences
// of the passes, more of them and shorter. A piece lies where its first row does, and so do its states in tensors [D,
// rows, H], of which nothing else is used.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace gru {

// A stretch of a sequence between two resets.
struct Piece {
  static constexpr int64_t kNone = -1;

  int64_t sequence, start, steps;
  int64_t reset_before, reset_behind;  // times of the resets, of which forward looks at the first; or kNone
};

// Sequences with lengths of their own as a pass counts them.
struct Counted {
  std::vector<int64_t> sequences, batch_sizes;  // those that have a step, longest first; of each step
  int64_t steps = 0;                            // of all sequences

  // count sequences, with lengths[i] steps and at places[i], null: i.
  Counted(const int64_t* lengths, const int64_t* places, int64_t count);
};

class Sequences {
 public:
  explicit Sequences(const Layer& layer, bool may_cut = true);

  bool empty() const;  // whether a member has no step at all
  // Steps of the longest sequence, and of all on average over the members.
  int64_t seq_len() const;
  int64_t steps() const;

  // Rows and resets. Of a member without a step the pass has no batch, and does not run.
  void fill(LayerParams& params, int64_t member) const;

  // Zeros into the padding of a per-step tensor of all members.
  void clear_padding(const at::Tensor& tensor) const;
  // The state of sequences without a step, [.., D, B, H]: handed on as it is. from: undefined: zeros.
  void hand_on(const at::Tensor& from, int64_t from_stride, const at::Tensor& to) const;

  // Whether the passes take pieces, which have states of their own: uninitialized memory for those, [D, rows, H].
  bool cut() const { return pieces() > 0; }
  size_t pieces() const { return pieces_.size(); }
  at::Tensor states() const;
  // The states that pieces begin with, and from those that they end with h_n.
  void begin(const at::Tensor& begins) const;
  void end(const at::Tensor& ends, const at::Tensor& h_n) const;
  // The same of gradients, backward; each of those to be written may be undefined.
  void begin_back(const at::Tensor& grad_h_n, const at::Tensor& grad_ends) const;
  void end_back(const at::Tensor& grad_begins, const at::Tensor& grad_hx, const at::Tensor& grad_reset_state) const;

 private:
  bool own() const { return !counted_.empty(); }
  const int64_t* of(int64_t member) const;  // lengths
  int64_t row(int64_t time, int64_t sequence) const;
  void cut_at_resets();
  struct Ends;
  template <class Take>
  void for_each(const Take& take) const;
  void copy(const void* from, const at::Tensor& to, int64_t elements) const;

  const Layer& layer_;
  bool resets_ = false;           // whether the kernels are to look at resets
  std::vector<Counted> counted_;  // of each member, or one of all
  std::vector<Piece> pieces_;     // empty: the sequences are not cut
};

}  // namespace gru
