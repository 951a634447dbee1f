// Chooses how a pass runs on the CPU: instruction set, threads, and what each thread owns. Nothing else decides.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "../gru.h"
#include "processor.h"

namespace gru::cpu {

// The kernels compiled for one instruction set.
struct Plan;
struct Target {
  const char* name;
  bool (*runs_on)(const Processor& processor);
  void (*forward)(const ForwardParams&, const Plan&);
  void (*backward)(const BackwardParams&, const Plan&);
  // What bounds all of them, for peaks.h to time: a loop of multiply-adds, which returns how many operations it did,
  // and one that reads `bytes` bytes, a multiple of kProbeBytes. Both go `rounds` times round, on the calling thread.
  double (*multiply_adds)(DataType dtype, int64_t rounds);
  void (*read_bytes)(const void* data, int64_t bytes, int64_t rounds);
  int lanes;  // of a vector of floats, for which weights are packed
};
constexpr int64_t kProbeBytes = 512;

std::vector<const Target*> targets_on(const Processor& processor);  // those that run there, best first
std::vector<std::string> target_names();                            // on this machine
const Target& target();                                             // in use
void set_target(const std::string& name);  // std::invalid_argument when unknown or not available
void set_target_from_environment();        // GRU_EXT_SIMD, once, when the module is loaded

enum class Split {
  Batch,  // each thread walks the whole sequence with its own rows and never waits for another
  Units,  // each thread owns hidden units, keeps their weights in its own cache, and meets the others at every step
};

struct Plan {
  const Target* target = nullptr;
  int threads = 1;
  Split split = Split::Batch;
  bool few_rows = false;  // the forward pass reads the weights as they lie (dot.h) instead of packing them
  // Two directions run at the same time, each whole on a thread of its own; threads is then 1, of each.
  bool directions_at_once = false;
  // So many threads take the members of an ensemble in turn, each member whole on one of them; threads is then 1, of
  // each. 1: the members run one after the other, each as the rest of the plan says.
  int members_at_once = 1;
  // So many threads take the layers of a stack in turn. Each layer follows the one below a few steps behind; threads is
  // then 1, of each.
  int layers_at_once = 1;
  // Weights of 16 bits are packed as such for the recurrence and widened as they are read, by the targets that can; of
  // weights packed ahead so is W_ih.
  bool narrow_weights = false, narrow_inputs = false;
  // What forward keeps for backward is stored past the caches where it is more than so many bytes.
  int64_t stream_above = std::numeric_limits<int64_t>::max();
  std::string division() const;  // for people: "2 threads over the batch"
};

// Whether a layer of so few units that most of a vector of `lanes` would be empty has its inputs multiplied by weights
// as they lie, k along the vectors (dot.h). By sizes of the layer alone: the bits depend neither on batch nor on
// seq_len.
inline bool inputs_unpacked(int64_t lanes, int64_t input_size, int64_t hidden_size) {
  return 2 * hidden_size <= lanes && input_size >= 4 * lanes;
}

// Steps by which a layer is behind the one below, where layers overlap.
constexpr int64_t kOverlappingSteps = 8;

// What make_plan takes for the batch: sequences in a step, on average and rounded up.
inline int64_t mean_batch(int64_t rows, int64_t seq_len) { return rows / seq_len + (rows % seq_len != 0); }

// Whether a batch with resets is cut there into so many pieces, the longest of so many steps, for fewer steps of more
// rows. A single sequence gains always; a few gain where reading W_hh is what a step costs. Few rows are left alone, so
// that they stay few, and what would take much memory.
inline bool worth_cutting(int64_t seq_len, int64_t batch, int64_t hidden_size, int64_t pieces, int64_t longest) {
  if (batch < 1 || batch >= pieces || pieces > 1024 || longest < 1 || longest > seq_len || seq_len > 65536)
    return false;
  const int64_t rows = seq_len * batch;
  return 4 * longest <= 3 * seq_len && rows > 32 && rows <= 65536 && (batch == 1 || (batch < 8 && hidden_size >= 512));
}

// directions: that may run at the same time, 1 or 2.
Plan make_plan(DataType dtype, int64_t seq_len, int64_t batch, int64_t input_size, int64_t hidden_size, int directions,
               int max_threads, WeightFormat weights = WeightFormat::Plain);
// The same for `members` layers of these sizes, which need not wait for one another.
Plan make_members_plan(DataType dtype, int64_t members, int64_t seq_len, int64_t batch, int64_t input_size,
                       int64_t hidden_size, int directions, int max_threads);
// The same for a forward pass that keeps nothing, through a stack of `layers` layers: input_size is that of the first.
// Where layers_at_once is 1 they go one after the other, each by a plan of its own; so they do where cutting the
// sequences, which those that overlap never are, leaves at most half of the steps, longest_piece. seq_len: not cut.
Plan make_stack_plan(DataType dtype, int64_t layers, int64_t seq_len, int64_t batch, int64_t input_size,
                     int64_t hidden_size, int directions, int max_threads, int64_t longest_piece,
                     WeightFormat weights = WeightFormat::Plain);

// What one thread owns: rows of the batch and groups of hidden units, both half-open.
struct Share {
  int64_t row_low, row_high, group_low, group_high;
};
Share share_of(const Plan& plan, const Rows& rows, int64_t groups, int thread, int threads);

}  // namespace gru::cpu
