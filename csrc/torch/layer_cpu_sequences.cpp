#include "layer_cpu_sequences.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "cpu/plan.h"
#include "cpu/threads.h"

namespace gru {

Counted::Counted(const int64_t* lengths, const int64_t* places, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    steps += lengths[i];
    if (lengths[i] > static_cast<int64_t>(batch_sizes.size())) batch_sizes.resize(lengths[i]);
    if (lengths[i] > 0) ++batch_sizes[lengths[i] - 1];
  }
  for (size_t t = batch_sizes.size(); t-- > 1;) batch_sizes[t - 1] += batch_sizes[t];
  if (batch_sizes.empty()) return;
  std::vector<int64_t> longer(batch_sizes.begin() + 1, batch_sizes.end());  // than 1, 2 ...: where those begin
  longer.push_back(0);
  sequences.resize(batch_sizes[0]);
  for (int64_t i = 0; i < count; ++i)
    if (lengths[i] > 0) sequences[longer[lengths[i] - 1]++] = places ? places[i] : i;
}

Sequences::Sequences(const Layer& layer, bool may_cut) : layer_(layer) {
  if (layer.resets.defined()) {
    const int64_t count = layer.resets_stride != 0 ? layer.members * layer.rows : layer.rows;
    const auto* const bytes = static_cast<const uint8_t*>(layer.resets.const_data_ptr());
    resets_ = std::count(bytes, bytes + count, uint8_t{0}) != count;
  }
  if (resets_ && may_cut && layer.members == 1) cut_at_resets();
  if (cut() || !layer.lengths.defined()) return;
  const int64_t count = layer.lengths_stride != 0 ? layer.members : 1;
  for (int64_t m = 0; m < count; ++m) counted_.emplace_back(of(m), nullptr, layer.batch);
}

void Sequences::cut_at_resets() {
  const auto worth = [this](int64_t pieces, int64_t longest) {
    return cpu::worth_cutting(layer_.seq_len, layer_.batch, layer_.hidden_size, pieces, longest);
  };
  if (!worth(layer_.batch + 1, 1)) return;  // however they may lie
  const bool* const resets = layer_.resets.const_data_ptr<bool>();
  std::vector<int64_t> lengths, places;
  const auto add = [&](const Piece& piece) {
    pieces_.push_back(piece);
    lengths.push_back(piece.steps);
    places.push_back(row(piece.start, piece.sequence));
  };
  for (int64_t b = 0; b < layer_.batch; ++b) {
    const int64_t length = layer_.lengths.defined() ? of(0)[b] : layer_.seq_len;
    if (length == 0) continue;
    int64_t start = 0, before = resets[row(0, b)] ? 0 : Piece::kNone;
    for (int64_t t = 1; t < length; ++t) {
      if (!resets[row(t, b)]) continue;
      add({b, start, t - start, before, t});
      start = before = t;
    }
    add({b, start, length - start, before, Piece::kNone});
  }
  const auto count = static_cast<int64_t>(pieces_.size());
  if (count == 0 || !worth(count, *std::max_element(lengths.begin(), lengths.end()))) return pieces_.clear();
  counted_.emplace_back(lengths.data(), places.data(), count);
}

bool Sequences::empty() const {
  return std::any_of(counted_.begin(), counted_.end(), [](const Counted& counted) { return counted.steps == 0; });
}

int64_t Sequences::seq_len() const {
  if (!own()) return layer_.seq_len;
  size_t longest = 1;
  for (const Counted& counted : counted_) longest = std::max(longest, counted.batch_sizes.size());
  return static_cast<int64_t>(longest);
}

int64_t Sequences::steps() const {
  if (!own()) return layer_.rows;
  int64_t sum = 0;
  for (const Counted& counted : counted_) sum += counted.steps;
  return cpu::mean_batch(sum, static_cast<int64_t>(counted_.size()));
}

void Sequences::fill(LayerParams& params, int64_t member) const {
  if (!resets_ || cut()) params.resets = nullptr;
  if (!own()) return;
  const Counted& counted = counted_[counted_.size() > 1 ? member : 0];
  params.rows.seq_len = static_cast<int64_t>(counted.batch_sizes.size());
  params.rows.batch = static_cast<int64_t>(counted.sequences.size());
  params.rows.batch_sizes = counted.batch_sizes.data();
  params.rows.sequences = counted.sequences.data();
  if (cut()) params.rows.batch_stride = 1;  // a piece is counted by its first row
}

void Sequences::clear_padding(const at::Tensor& tensor) const {
  if (!layer_.lengths.defined() || !tensor.defined()) return;
  constexpr size_t kBytesWorthAThread = size_t{1} << 20;
  const int64_t batch = layer_.batch, seq_len = layer_.seq_len, row = tensor.size(-1) * tensor.element_size();
  const int64_t time_stride = layer_.options.batch_first ? row : batch * row;
  const int64_t batch_stride = layer_.options.batch_first ? seq_len * row : row;
  char* const data = static_cast<char*>(tensor.data_ptr());
  const int64_t sequences = layer_.members * batch;
  const int threads = at::get_num_threads();
  cpu::parallel(tensor.nbytes() < kBytesWorthAThread ? 1 : threads, [=, this](int thread, int there) {
    for (int64_t i = sequences * thread / there; i < sequences * (thread + 1) / there; ++i) {
      const int64_t length = of(i / batch)[i % batch];
      char* const from = data + i / batch * layer_.rows * row + i % batch * batch_stride + length * time_stride;
      if (layer_.options.batch_first) {
        std::memset(from, 0, (seq_len - length) * row);
      } else {
        for (int64_t t = 0; t < seq_len - length; ++t) std::memset(from + t * time_stride, 0, row);
      }
    }
  });
}

void Sequences::hand_on(const at::Tensor& from, int64_t from_stride, const at::Tensor& to) const {
  if (!layer_.lengths.defined() || !to.defined()) return;
  const int64_t row = layer_.hidden_size * to.element_size(), states = layer_.directions() * layer_.batch;
  for (int64_t m = 0; m < layer_.members; ++m) {
    for (int64_t i = 0; i < states; ++i) {
      if (of(m)[i % layer_.batch] != 0) continue;
      char* const out = static_cast<char*>(to.data_ptr()) + (m * states + i) * row;
      if (from.defined())
        std::memcpy(out, const_pointer_at(from, m * from_stride + i * layer_.hidden_size), row);
      else
        std::memset(out, 0, row);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Pieces
// ---------------------------------------------------------------------------------------------------------------------

// A piece of a direction: elements to its states in tensors [D, rows, H] and to its sequence's in [D, B, H]; the time
// of the reset that its pass begins with, or none; and whether the pass ends with it.
struct Sequences::Ends {
  int64_t direction, states, of_sequence, reset;
  bool is_first, is_last;
};

template <class Take>
void Sequences::for_each(const Take& take) const {
  for (int64_t d = 0; d < layer_.directions(); ++d) {
    for (const Piece& piece : pieces_) {
      const bool at_start = piece.start == 0, at_end = piece.reset_behind == Piece::kNone, reverse = d == 1;
      take(Ends{d, (d * layer_.rows + row(piece.start, piece.sequence)) * layer_.hidden_size,
                (d * layer_.batch + piece.sequence) * layer_.hidden_size,
                reverse ? piece.reset_behind : piece.reset_before, reverse ? at_end : at_start,
                reverse ? at_start : at_end},
           piece.sequence);
    }
  }
}

// Copies a state; from: null: zeros.
void Sequences::copy(const void* from, const at::Tensor& to, int64_t elements) const {
  const size_t bytes = static_cast<size_t>(layer_.hidden_size) * layer_.input.element_size();
  if (from)
    std::memcpy(pointer_at(to, elements), from, bytes);
  else
    std::memset(pointer_at(to, elements), 0, bytes);
}

at::Tensor Sequences::states() const {
  return at::detail::empty_cpu({layer_.directions(), layer_.rows, layer_.hidden_size}, layer_.input.options());
}

void Sequences::begin(const at::Tensor& begins) const {
  LayerParams of_direction[2];  // what they say of reset_state
  for (int64_t d = 0; d < layer_.directions(); ++d) layer_.fill(of_direction[d], 0, d);
  for_each([&](const Ends& ends, int64_t sequence) {
    if (ends.reset == Piece::kNone) return copy(const_pointer_at(layer_.hx, ends.of_sequence), begins, ends.states);
    const LayerParams& params = of_direction[ends.direction];
    const int64_t elements = ends.reset * params.reset_time_stride + sequence * params.reset_batch_stride;
    const auto* const states = static_cast<const char*>(params.reset_state);
    copy(states ? states + elements * begins.element_size() : nullptr, begins, ends.states);
  });
}

void Sequences::end(const at::Tensor& ends, const at::Tensor& h_n) const {
  for_each([&](const Ends& of, int64_t) {
    if (of.is_last) copy(const_pointer_at(ends, of.states), h_n, of.of_sequence);
  });
}

void Sequences::begin_back(const at::Tensor& grad_h_n, const at::Tensor& grad_ends) const {
  for_each([&](const Ends& ends, int64_t) {
    copy(ends.is_last ? const_pointer_or_null(grad_h_n, ends.of_sequence) : nullptr, grad_ends, ends.states);
  });
}

void Sequences::end_back(const at::Tensor& grad_begins, const at::Tensor& grad_hx,
                         const at::Tensor& grad_reset_state) const {
  for_each([&](const Ends& ends, int64_t sequence) {
    const void* const gradient = const_pointer_at(grad_begins, ends.states);
    const bool from_hx = ends.reset == Piece::kNone;
    if (grad_hx.defined() && ends.is_first) copy(from_hx ? gradient : nullptr, grad_hx, ends.of_sequence);
    if (from_hx || !grad_reset_state.defined()) return;
    copy(gradient, grad_reset_state, (ends.direction * layer_.rows + row(ends.reset, sequence)) * layer_.hidden_size);
  });
}

int64_t Sequences::row(int64_t time, int64_t sequence) const {
  return layer_.options.batch_first ? sequence * layer_.seq_len + time : time * layer_.batch + sequence;
}

const int64_t* Sequences::of(int64_t member) const {
  return layer_.lengths.const_data_ptr<int64_t>() + member * layer_.lengths_stride;
}

}  // namespace gru
