// Microseconds a step of every kernel alone, without torch:
//
//   nvcc -std=c++17 -O3 -arch=sm_90a -Icsrc benchmarks/cuda/steps.cu csrc/cuda/*.c* -o build/steps
//   build/steps [--dtypes bfloat16 float32 tf32 float16 float64] [--hidden-sizes N ...] [--batches N ...]
//               [--kernels solo cluster grid step] [--tunings K,S,W ...] [--steps N] [--few N] [--repeats N]
//               [--checks 0]
//
// For each kernel and dtype first one small shape of each pass against float64 on the host; a kernel that is wrong is
// not timed. Then each hidden size (the first given first), batch, pass and mode, as plan divides it or by each of the
// tunings, which are numbers of GRU_EXT_CUDA_TUNING. Prints a CSV, a line at once for each time; 1 is the exit code
// when a check failed, 3 when an error left the GPU unusable. A step is timed as the difference of two launches, over
// the difference in steps. The clock is that of the multiprocessors, measured after each time; cycles are the time at
// this clock. "step" is the cell kernel alone, one launch a step, without the library's product.
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include "cuda/plan.h"
#include "cuda/step.h"
#include "harness.h"
#include "host_passes.h"

namespace {

using namespace gru;
using namespace gru::cuda;
using namespace benchmarks;

// ---------------------------------------------------------------------------------------------------------------------
// A pass, ready to be launched
// ---------------------------------------------------------------------------------------------------------------------

struct Case {
  std::string kernel;  // step, or how a stationary kernel exchanges: solo, cluster or grid
  Type type;
  int64_t hidden_size, batch;
  Pass pass;
  bool training;
  std::string tuning = "";  // of a stationary kernel; empty: the plan's own
  const char* pass_name() const { return pass == Pass::Forward ? "forward" : "backward"; }
  const char* mode() const { return training ? "training" : "inference"; }
};

// Whether the kernel is one for the case; the plan, if so.
bool planned(const Case& of, Plan& result) {
  Shape shape;
  shape.dtype = of.type.dtype;
  shape.tf32 = of.type.tf32;
  shape.seq_len = 256;
  shape.batch = of.batch;
  shape.input_size = shape.hidden_size = of.hidden_size;
  shape.training = of.training;
  const std::string exchange = of.kernel == "grid" ? "grid" : "cluster";
  setenv("GRU_EXT_CUDA_TUNING", (of.tuning.empty() ? exchange : of.tuning + "," + exchange).c_str(), 1);
  result = plan(shape, of.pass, device_at(-1), of.kernel == "step" ? Kernel::Step : Kernel::Stationary);
  return of.kernel == result.path();
}

// The tensors of a pass by the names that gru.h gives them; time-major, one direction.
class Run {
 public:
  Run(const Case& of, const Plan& plan, int64_t seq_len) : case_(of), plan_(plan) {
    const int64_t rows = seq_len * of.batch, state = of.batch * of.hidden_size;
    const bool forward = of.pass == Pass::Forward, step = plan.kernel == Kernel::Step;
    const int64_t units = padded(of.hidden_size, stored_size(of.type.dtype));
    add("weight_hh", 3 * of.hidden_size * of.hidden_size);
    for (const char* bias : {"bias_ih", "bias_hh"}) add(bias, 3 * of.hidden_size);
    if (forward) add("input_gates", rows * 3 * (step ? of.hidden_size : units));
    add(forward ? "output" : "grad_output", rows * of.hidden_size);
    add(forward ? "h0" : "grad_h_n", state);
    add(forward ? "h_n" : "grad_h0", state);
    if (of.training) add("saved", rows * kSavedValues * units);
    if (!forward) add("d_gates", rows * kGateGradients * of.hidden_size);
    if (step) add(forward ? "hidden_gates" : "product", forward ? 3 * state : state);
    if (step) buffers_.emplace("state", static_cast<size_t>(state) * compute_size(of.type.dtype));
    const size_t element = stored_size(of.type.dtype);
    const int64_t words = step      ? 0
                          : forward ? forward_exchange_words(plan.partition, element)
                                    : backward_exchange_words(plan.partition, element);
    buffers_.emplace("exchange", static_cast<size_t>(words) * sizeof(uint64_t));
  }

  // Numbers of 0.01 to 1 in every tensor: zeros would take less power, and run at another clock.
  void fill() {
    for (auto& [name, buffer] : buffers_) {
      if (buffer.bytes() != 0) check(cudaMemset(buffer.data(), 0x3c, buffer.bytes()));
    }
  }
  // To be called before each launch.
  void prepare() { buffers_.at("exchange").zero(); }

  void start(int64_t seq_len) {
    Rows rows;
    rows.seq_len = seq_len;
    rows.batch = rows.time_stride = case_.batch;
    rows.batch_stride = 1;
    if (case_.pass == Pass::Forward) {
      forward(rows);
    } else {
      backward(rows);
    }
  }

  void set(const char* name, const std::vector<double>& values) {
    const std::vector<unsigned char> bytes = stored(case_.type.dtype, values);
    if (bytes.size() != buffers_.at(name).bytes()) throw std::logic_error(std::string(name) + " has another size");
    check(cudaMemcpy(buffers_.at(name).data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  // The state that the step path keeps unrounded.
  void set_state(const std::vector<double>& values) {
    const DataType dtype = case_.type.dtype == DataType::Float64 ? DataType::Float64 : DataType::Float32;
    const std::vector<unsigned char> bytes = stored(dtype, values);
    check(cudaMemcpy(buffers_.at("state").data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  std::vector<double> get(const char* name) {
    Buffer& buffer = buffers_.at(name);
    std::vector<unsigned char> bytes(buffer.bytes());
    check(cudaMemcpy(bytes.data(), buffer.data(), bytes.size(), cudaMemcpyDeviceToHost));
    return widened(case_.type.dtype, bytes);
  }

 private:
  void add(const char* name, int64_t count) {
    buffers_.emplace(name, static_cast<size_t>(count) * stored_size(case_.type.dtype));
  }
  void* at(const char* name) {
    const auto place = buffers_.find(name);
    return place == buffers_.end() ? nullptr : place->second.data();
  }

  void forward(const Rows& rows) {
    ForwardParams params;
    params.dtype = case_.type.dtype;
    params.rows = rows;
    params.hidden_size = params.output_stride = case_.hidden_size;
    params.weight_hh = at("weight_hh");
    params.bias_ih = at("bias_ih");
    params.bias_hh = at("bias_hh");
    params.h0 = at("h0");
    params.output = at("output");
    params.h_n = at("h_n");
    params.saved = at("saved");
    if (plan_.kernel != Kernel::Step) {
      const void* const input_gates = at("input_gates");
      forward_stationary(plan_.partition, &params, 1, &input_gates, sequence(rows), nullptr);
      return;
    }
    ForwardStep step;
    step.input_gates = at("input_gates");
    step.hidden_gates = at("hidden_gates");
    step.state = at("state");
    for (step.time = 0; step.time < rows.seq_len; ++step.time) forward_cell(params, step, nullptr);
  }

  void backward(const Rows& rows) {
    BackwardParams params;
    params.dtype = case_.type.dtype;
    params.rows = rows;
    params.hidden_size = params.grad_output_stride = case_.hidden_size;
    params.weight_hh = at("weight_hh");
    params.saved = at("saved");
    params.grad_output = at("grad_output");
    params.grad_h_n = at("grad_h_n");
    params.grad_h0 = at("grad_h0");
    if (plan_.kernel != Kernel::Step) {
      void* const d_gates = at("d_gates");
      backward_stationary(plan_.partition, &params, 1, &d_gates, sequence(rows), nullptr);
      return;
    }
    BackwardStep step;
    step.carry = at("state");
    step.product = at("product");
    step.d_gates = at("d_gates");
    for (step.time = rows.seq_len - 1; step.time >= 0; --step.time) {
      backward_cell(params, step, nullptr);
      step.product_batch = case_.batch;
    }
  }

  StationarySequence sequence(const Rows& rows) {
    StationarySequence sequence;
    sequence.rows = rows.seq_len * rows.batch;
    sequence.exchange = static_cast<uint64_t*>(at("exchange"));
    return sequence;
  }

  Case case_;
  Plan plan_;
  std::map<std::string, Buffer> buffers_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Checks
// ---------------------------------------------------------------------------------------------------------------------

// What is wrong with a kernel in one small shape; nothing if it is right.
std::string wrong(const Case& of, const Plan& plan) {
  constexpr int64_t kSeqLen = 4;
  const int64_t hidden_size = of.hidden_size, rows = kSeqLen * of.batch, state = of.batch * hidden_size;
  const int64_t units = padded(hidden_size, stored_size(of.type.dtype));
  const bool step = plan.kernel == Kernel::Step;
  std::mt19937 generator(7);
  const auto drawn = [&](int64_t count, double scale) { return draw(generator, of.type.dtype, count, scale); };
  const auto size = [](int64_t count) { return static_cast<size_t>(count); };
  const double scale = 2 / std::sqrt(static_cast<double>(hidden_size));
  Run run(of, plan, kSeqLen);
  const Values weight_hh = drawn(3 * hidden_size * hidden_size, scale);
  run.set("weight_hh", weight_hh);
  std::string said;
  const auto compare = [&](const char* name, const Values& expected) {
    if (said.empty()) said = difference(name, run.get(name), expected, of.type.tolerance);
  };
  if (of.pass == Pass::Forward) {
    HostForward host;
    host.weight_hh = weight_hh;
    host.input_gates = drawn(rows * 3 * (step ? hidden_size : units), 1);
    host.bias_ih = drawn(3 * hidden_size, 1);
    host.bias_hh = drawn(3 * hidden_size, 1);
    host.h0 = drawn(state, 1);
    if (step) host.hidden_gates = drawn(3 * state, 1);
    host.output.resize(size(rows * hidden_size));
    host.saved.assign(size(rows * kSavedValues * units), std::nan(""));
    host.run(kSeqLen, size(of.batch), size(hidden_size));
    run.set("input_gates", host.input_gates);
    run.set("bias_ih", host.bias_ih);
    run.set("bias_hh", host.bias_hh);
    run.set("h0", host.h0);
    if (step) {
      run.set("hidden_gates", host.hidden_gates);
      run.set("h_n", host.h0);
      run.set_state(host.h0);
    }
    run.prepare();
    run.start(kSeqLen);
    check(cudaDeviceSynchronize());
    compare("output", host.output);
    compare("h_n", host.h_n);
    if (of.training) compare("saved", host.saved);
    return said;
  }
  HostBackward host;
  host.weight_hh = weight_hh;
  host.saved = drawn(rows * kSavedValues * units, 1);
  host.grad_output = drawn(rows * hidden_size, 1);
  host.grad_h_n = drawn(state, 1);
  if (step) host.product = drawn(state, 1);
  host.d_gates.resize(size(rows * kGateGradients * hidden_size));
  host.run(kSeqLen, size(of.batch), size(hidden_size));
  run.set("saved", host.saved);
  run.set("grad_output", host.grad_output);
  run.set("grad_h_n", host.grad_h_n);
  if (step) {
    run.set("product", host.product);
    run.set_state(host.grad_h_n);
  }
  run.prepare();
  run.start(kSeqLen);
  check(cudaDeviceSynchronize());
  compare("d_gates", host.d_gates);
  if (!step) compare("grad_h0", host.grad_h0);
  return said;
}

// ---------------------------------------------------------------------------------------------------------------------
// Timing
// ---------------------------------------------------------------------------------------------------------------------

__global__ void clock_kernel(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

// Of the multiprocessors, now.
float megahertz() {
  constexpr int kFew = 50'000, kMore = 400'000;
  const auto start = [](int cycles) { launch(clock_kernel, {1, 1}, nullptr, static_cast<long long>(cycles)); };
  return 1 / step_microseconds({kFew, kMore, 3}, [] {}, start);
}

void print(const Case& of, const Plan& plan, const std::string& columns) {
  const Partition& by = plan.partition;
  std::printf("%s,%s,%s,%s,%lld,%lld,%d,%d,%d,%d,%d,%d,%s\n", of.kernel.c_str(), of.pass_name(), of.mode(),
              of.type.name, static_cast<long long>(of.hidden_size), static_cast<long long>(of.batch), by.k_tiles,
              by.splits, by.warps, by.blocks, by.groups, by.group_batch, columns.c_str());
}

void time_steps(const Case& of, const Plan& plan, const Lengths& lengths) {
  Run run(of, plan, lengths.few + lengths.more);
  run.fill();
  const float step = step_microseconds(lengths, [&] { run.prepare(); }, [&](int steps) { run.start(steps); });
  const float clock = megahertz();
  char columns[96];
  std::snprintf(columns, sizeof columns, "%.4f,%.0f,%.0f,", step, step * clock, clock);
  print(of, plan, columns);
}

// What it does is said before, for the case that it hangs, and an error is a row's note. One that has left the GPU
// unusable is the last.
template <class Function>
bool noted(const char* what, const Case& of, const Plan& plan, Function&& function) {
  std::fprintf(stderr, "steps: %s %s %s %s %s H=%lld B=%lld\n", what, of.kernel.c_str(), of.pass_name(), of.mode(),
               of.type.name, static_cast<long long>(of.hidden_size), static_cast<long long>(of.batch));
  std::string note;
  try {
    note = function();
  } catch (const std::exception& error) {
    note = error.what();
    (void)cudaGetLastError();
  }
  std::replace(note.begin(), note.end(), ',', ';');
  if (!note.empty()) print(of, plan, ",,," + note);
  if (!note.empty() && cudaDeviceSynchronize() != cudaSuccess) std::exit(3);
  return note.empty();
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

using CommandLine = std::map<std::string, std::vector<std::string>>;

bool parse(int count, char** arguments, CommandLine& options) {
  std::vector<std::string>* values = nullptr;
  for (int i = 1; i < count; ++i) {
    const std::string word = arguments[i];
    const auto option = options.find(word);
    if (option != options.end()) {
      values = &option->second;
      values->clear();
    } else if (values == nullptr || word.rfind("--", 0) == 0) {
      std::fprintf(stderr, "steps: there is no option %s; they stand at the head of steps.cu\n", word.c_str());
      return false;
    } else {
      values->push_back(word);
    }
  }
  for (const auto& [option, words] : options) {
    if (option == "--dtypes" || option == "--kernels" || option == "--tunings") continue;
    const int least = option == "--checks" ? 0 : 1;
    const bool valid = !words.empty() && std::all_of(words.begin(), words.end(), [&](const std::string& value) {
      return std::isdigit(static_cast<unsigned char>(value[0])) && std::atoi(value.c_str()) >= least;
    });
    if (valid) continue;
    std::fprintf(stderr, "steps: %s takes whole numbers of at least %d\n", option.c_str(), least);
    return false;
  }
  for (const std::string& dtype : options["--dtypes"]) {
    if (std::any_of(std::begin(kTypes), std::end(kTypes), [&](const Type& type) { return dtype == type.name; }))
      continue;
    std::fprintf(stderr, "steps: there is no dtype %s\n", dtype.c_str());
    return false;
  }
  return true;
}

struct Direction {
  Pass pass;
  bool training;
};
constexpr Direction kPasses[] = {{Pass::Forward, true}, {Pass::Backward, true}, {Pass::Forward, false}};

// A size for each kernel; the batch leaves a tile of sequences unfilled.
int64_t small_size(const std::string& kernel) { return kernel == "solo" || kernel == "step" ? 40 : 200; }
constexpr int64_t kSmallBatch = 5;

int run(CommandLine& options) {
  const auto number = [&](const char* option) { return std::atoi(options[option].front().c_str()); };
  const Lengths lengths{number("--few"), number("--steps"), number("--repeats")};
  std::map<std::string, bool> right;
  std::vector<Type> types;
  for (const std::string& dtype : options["--dtypes"]) {
    for (const Type& type : kTypes) {
      if (dtype == type.name) types.push_back(type);
    }
  }
  std::printf("kernel,pass,mode,dtype,hidden_size,batch,k_tiles,splits,warps,blocks,groups,group_batch,microseconds,");
  std::printf("cycles,megahertz,note\n");

  const auto key = [](const Case& of) { return of.kernel + of.type.name + of.pass_name() + of.mode(); };
  int checked = 0, failures = 0;
  for (const std::string& kernel : options["--kernels"]) {
    for (const Type& type : types) {
      for (const Direction& direction : kPasses) {
        const Case of{kernel, type, small_size(kernel), kSmallBatch, direction.pass, direction.training};
        Plan plan;
        right[key(of)] = true;
        if (number("--checks") == 0 || !planned(of, plan)) continue;
        ++checked;
        right[key(of)] = noted("check", of, plan, [&] { return wrong(of, plan); });
        if (!right[key(of)]) ++failures;
      }
    }
  }
  std::fprintf(stderr, "steps: %d kernels checked against float64 on the host, %d wrong\n", checked, failures);

  if (options["--tunings"].empty()) options["--tunings"] = {""};
  for (const std::string& hidden_size : options["--hidden-sizes"]) {
    for (const std::string& batch : options["--batches"]) {
      for (const Type& type : types) {
        for (const Direction& direction : kPasses) {
          for (const std::string& kernel : options["--kernels"]) {
            for (const std::string& tuning : options["--tunings"]) {
              const Case of{kernel,
                            type,
                            std::atoi(hidden_size.c_str()),
                            std::atoi(batch.c_str()),
                            direction.pass,
                            direction.training,
                            tuning};
              Plan plan;
              noted("time", of, plan, [&] {
                if (right[key(of)] && planned(of, plan)) time_steps(of, plan, lengths);
                return std::string();
              });
            }
          }
        }
      }
    }
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  CommandLine options = {{"--dtypes", {"bfloat16", "float32", "tf32", "float16"}},
                         {"--hidden-sizes", {"256", "512", "1024", "128", "768", "64", "2048", "192", "384"}},
                         {"--batches", {"8", "64", "1"}},
                         {"--kernels", {"solo", "cluster", "grid", "step"}},
                         {"--tunings", {}},
                         {"--steps", {"1024"}},
                         {"--few", {"64"}},
                         {"--repeats", {"5"}},
                         {"--checks", {"1"}}};
  if (!parse(count, arguments, options)) return 2;
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "steps: %s\n", error.what());
    return 1;
  }
}
