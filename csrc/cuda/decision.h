// What runs a layer on a GPU, and who says so: the environment, a measurement on this GPU, the table of measurements
// that gru_ext comes with, or the default. plan.h then divides the work of our kernels.
#pragma once

#include <cstdint>
#include <string>
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

enum class Strategy {
  Library,    // torch's own kernels
  Wavefront,  // our kernels, in stacked layers that overlap
  Kernels,    // our kernels, layer by layer
};
enum class Kernel {
  Step,        // a library matrix product and one fused cell kernel for each time step
  Stationary,  // W_hh stays in the registers of the blocks for the whole sequence (stationary.h)
};
const char* name(Strategy strategy);  // "library", ...
const char* name(Kernel kernel);      // "step", ...

struct Decision {
  Strategy strategy = Strategy::Library;
  Kernel kernel = Kernel::Step;  // ours; of the library's: what runs where the library cannot, as in a compiled graph
  std::string source;            // to stand behind "chosen by"
};

// The first of these that has an answer:
// - the environment variable GRU_EXT_CUDA_KERNEL;
// - the latest trial for layers of this batch;
// - the choice for the nearest batch, at most twice or half of the shape's, made for this model of GPU;
// - the first row of the measured table that holds the shape;
// - the library.
// A trial and a choice are for one dtype, hidden size, number of directions, packed, training and tf32.
// std::invalid_argument: an unknown word in the variable.
Decision decide(const Shape& shape, const Device& device);

// A decision is kept in one word: library, wavefront, step or stationary. The functions below throw
// std::invalid_argument for any other, and may be called from any thread.

// A choice by a measurement on a GPU of this name and compute capability. It replaces an earlier one for the same.
struct Choice {
  Shape shape;
  std::string gpu;
  int major = 0, minor = 0;
  std::string kernel;
  double ratio = 0;  // torch's time over that of the kernel; 0: not known
  std::string date;
};
void choose(const Choice& choice);
void forget_choices();

// For gru_ext.tune: what runs layers of exactly this batch, on any GPU, until the trial ends.
void begin_trial(const Shape& shape, const std::string& kernel);
void end_trial();

// A row of the measured table (measured.h): bounds are inclusive, and hold sizes that were measured. None is of cells.
struct Measured {
  int major, minor;
  DataType dtype;
  bool tf32, library_tf32;  // of float32: what each of the two was measured with
  int directions;
  bool packed, training;
  int64_t least_hidden_size, most_hidden_size, least_batch, most_batch, most_seq_len;
  std::string kernel;
  double ratio;              // geometric mean of torch's time over that of the kernel
  std::string gpu, results;  // what was measured, and the folder of its results
};
void use_measured(const std::vector<Measured>& rows);  // for tests: in place of the table

}  // namespace gru::cuda
