// What runs a layer on a GPU, in one word, and who says so: the environment, a measurement on this GPU, the table of
// measurements that gru_ext comes with, or nobody. plan then divides the work.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../gru.h"
#include "device.h"

namespace gru::cuda {

// One layer, of one or two directions.
struct Shape {
  DataType dtype = DataType::Float32;
  int64_t seq_len = 0, batch = 0, input_size = 0, hidden_size = 0;  // seq_len 0: a cell
  int directions = 1;
  bool packed = false, training = false;
  bool tf32 = false;          // of float32: whether products may round to TF32
  bool library_tf32 = false;  // of float32: whether torch's own kernels may, for which cuDNN has a switch of its own
};

// The words of the environment variable GRU_EXT_CUDA_KERNEL: "library", torch's own kernels, which the caller runs; or
// our kernels: "step", "solo", "cluster", "grid"; "stationary", whichever of the last three fits; or "wavefront", the
// same with stacked layers that overlap, for which the caller cares.
//
// The environment variable decides. Else the choice for the nearest batch, no more than twice or less than half of the
// shape's, among those made for this model of GPU and the shape's dtype, hidden size, directions, packed, training and
// tf32. Else the first row of the measured table that holds the shape. Else it is the library. The view is of a
// literal. std::invalid_argument: an unknown word in the variable.
std::string_view chosen(const Shape& shape, const Device& device);

// Who chose, to stand behind "chosen by".
std::string source(const Shape& shape, const Device& device);

// A choice from a measurement on a GPU of this name and compute capability. Kept until the process ends or they are
// forgotten, in place of an earlier one for the same; any thread may make one. std::invalid_argument: an unknown word.
struct Choice {
  Shape shape;
  std::string gpu;
  int major = 0, minor = 0;
  std::string word;
  double ratio = 0;  // torch's time over that of the kernel; 0: not known
  std::string date;
};
void choose(const Choice& choice);
void forget_choices();

// For gru_ext.tune: what runs layers of exactly this batch, on any GPU, until the trial ends. A later one goes before.
void begin_trial(const Shape& shape, const std::string& word);
void end_trial();

// A row of the measured table (measured.h): bounds are inclusive, and hold sizes that were measured. None is of cells.
struct Measured {
  int major, minor;
  DataType dtype;
  bool tf32, library_tf32;  // of float32: what each of the two was measured with
  int directions;
  bool packed, training;
  int64_t least_hidden_size, most_hidden_size, least_batch, most_batch, most_seq_len;
  std::string word;
  double ratio;              // geometric mean of torch's time over that of the kernel
  std::string gpu, results;  // what was measured, and the folder of its results
};
void use_measured(const std::vector<Measured>& rows);  // for tests: in place of the table

}  // namespace gru::cuda
