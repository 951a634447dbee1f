// Passes of layers for a test on another machine (tests/arm.py), by one target: requests on stdin, results on stdout.
//
// A request: the numbers of Request, then tensors in the order of the calls of `take` below. Each is its size in bytes
// and the bytes; no tensor: -1. The answer: the bytes of the tensors that are results, as the pass left them.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../guarded.h"
#include "cpu/targets.h"

int check_byte_dots();
int check_plain_bytes();

namespace {

using namespace gru;

struct Request {
  int64_t pass, dtype, threads, seq_len, batch, time_stride, batch_stride, input_size, hidden_size, reverse, directions,
      recompute, reset_time_stride, reset_batch_stride, weights;
};

void read_all(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) throw std::runtime_error("a request ends early");
}

class Tensors {
 public:
  template <class Pointer>
  void take(Pointer& pointer, bool is_result = false) {
    int64_t bytes;
    read_all(&bytes, sizeof bytes);
    pointer = nullptr;
    if (bytes < 0) return;
    Tensor& tensor = tensors_.emplace_back(Tensor{std::make_unique<GuardedBytes>(bytes), size_t(bytes), is_result});
    read_all(tensor.memory->data(), tensor.bytes);
    pointer = reinterpret_cast<Pointer>(tensor.memory->data());
  }
  template <class... Pointers>
  void take_results(Pointers&... pointers) {
    (take(pointers, true), ...);
  }
  void answer() const {
    for (const Tensor& tensor : tensors_)
      if (tensor.is_result) std::fwrite(tensor.memory->data(), 1, tensor.bytes, stdout);
    std::fflush(stdout);
  }

 private:
  struct Tensor {
    std::unique_ptr<GuardedBytes> memory;
    size_t bytes;
    bool is_result;
  };
  std::vector<Tensor> tensors_;
};

template <class Pointer>
void advance(Pointer& pointer, int64_t bytes) {
  if (pointer) pointer = const_cast<char*>(static_cast<const char*>(pointer)) + bytes;
}

void take_layer(const Request& request, Tensors& tensors, LayerParams& p) {
  p.dtype = static_cast<DataType>(request.dtype);
  p.rows.seq_len = request.seq_len;
  p.rows.batch = request.batch;
  p.rows.time_stride = request.time_stride;
  p.rows.batch_stride = request.batch_stride;
  p.input_size = request.input_size;
  p.hidden_size = request.hidden_size;
  p.reverse = request.reverse;
  p.options.directions = request.directions;
  p.options.recompute = request.recompute;
  p.reset_time_stride = request.reset_time_stride;
  p.reset_batch_stride = request.reset_batch_stride;
  p.weights = static_cast<WeightFormat>(request.weights);
  for (const int64_t** shape : {&p.rows.offsets, &p.rows.batch_sizes, &p.rows.sequences}) tensors.take(*shape);
  tensors.take(p.resets);
  for (const void** tensor : {&p.input, &p.weight_ih, &p.weight_hh, &p.bias_ih, &p.bias_hh, &p.reset_state})
    tensors.take(*tensor);
  for (const float** scale : {&p.scale_ih, &p.scale_hh}) tensors.take(*scale);
  if (arm_test::fault == arm_test::kReadsOn) advance(p.input, 1);
}

void answer(const Request& request) {
  const int64_t element = request.dtype == int64_t(DataType::Float32)   ? 4
                          : request.dtype == int64_t(DataType::Float64) ? 8
                                                                        : 2;
  const int64_t stride = request.directions * request.hidden_size;
  const int64_t of_direction = request.reverse * request.hidden_size * element;
  Tensors tensors;
  const auto plan_of = [&](const LayerParams& p) {
    const int64_t batch = cpu::mean_batch(p.rows.in_all(), p.rows.seq_len);
    return cpu::make_plan(p.dtype, p.rows.seq_len, batch, p.input_size, p.hidden_size, 1, int(request.threads),
                          p.weights);
  };
  if (request.pass == int64_t(Pass::Forward)) {
    ForwardParams p;
    take_layer(request, tensors, p);
    tensors.take(p.h0);
    tensors.take_results(p.output, p.h_n, p.saved);
    p.output_stride = stride;
    advance(p.output, of_direction);
    const cpu::Plan plan = plan_of(p);
    plan.target->forward(p, plan);
  } else {
    BackwardParams p;
    take_layer(request, tensors, p);
    for (const void** tensor : {&p.saved, &p.grad_output, &p.grad_h_n}) tensors.take(*tensor);
    tensors.take_results(p.grad_h0, p.grad_reset_state, p.grad_input, p.grad_weight_ih, p.grad_weight_hh,
                         p.grad_bias_ih, p.grad_bias_hh);
    p.add_to_input = request.reverse;
    p.grad_output_stride = stride;
    advance(p.grad_output, of_direction);
    const cpu::Plan plan = plan_of(p);
    plan.target->backward(p, plan);
  }
  tensors.answer();
}

}  // namespace

// worker targets: names those of this processor, and that of weights of bytes. worker bytes, worker TARGET: runs
// checks, answers requests; a number behind them is that of a fault.
int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  arm_test::fault = count > 2 ? std::atoi(arguments[2]) : 0;
  if (what == "targets") {
    for (const std::string& name : cpu::target_names()) std::printf("%s\n", name.c_str());
    std::printf("%s\n", cpu::make_plan(DataType::Float32, 1, 1, 1, 1, 1, 1, WeightFormat::Int8).target->name);
    return 0;
  }
  if (what == "bytes") return check_plain_bytes() + (cpu::processor().neon_dot ? check_byte_dots() : 0);
  cpu::set_target(what);
  Request request;
  while (std::fread(&request, sizeof request, 1, stdin) == 1) answer(request);
  return 0;
}
