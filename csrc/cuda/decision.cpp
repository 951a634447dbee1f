#include "decision.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "measured.h"

namespace gru::cuda {
namespace {

constexpr const char* kVariable = "GRU_EXT_CUDA_KERNEL";

Decision parse(const std::string& what, const std::string& word, const std::string& source) {
  if (word == "library") return {Strategy::Library, Kernel::Step, source};
  if (word == "wavefront") return {Strategy::Wavefront, Kernel::Stationary, source};
  if (word == "step") return {Strategy::Kernels, Kernel::Step, source};
  if (word == "stationary") return {Strategy::Kernels, Kernel::Stationary, source};
  throw std::invalid_argument("gru_ext: " + what + " is " + word + "; expected library, wavefront, step or stationary");
}

std::string gain(double ratio) {
  char text[64];
  std::snprintf(text, sizeof text, ": %.2f times as fast as torch's kernels", ratio);
  return text;
}

Decision decision_of(const Choice& choice) {
  Decision decision = parse("the kernel", choice.kernel, "gru_ext.tune");
  if (!choice.date.empty()) decision.source += " on " + choice.date;
  decision.source += ", with batch " + std::to_string(choice.shape.batch);
  if (decision.strategy == Strategy::Library) {
    decision.source += ": torch's kernels were the fastest";
  } else if (choice.ratio > 0) {
    decision.source += gain(choice.ratio);
  }
  return decision;
}

Decision decision_of(const Measured& row) {
  return parse("the kernel", row.kernel,
               "measurements on " + row.gpu + " (" + row.results + ")" + gain(row.ratio) + " in the geometric mean");
}

template <class Key>
struct Entry {
  Key key;
  Decision decision;
};

std::vector<Entry<Measured>> entries(const std::vector<Measured>& rows) {
  std::vector<Entry<Measured>> all;
  for (const Measured& row : rows) all.push_back({row, decision_of(row)});
  return all;
}

std::mutex mutex;  // of the three below
std::vector<Entry<Shape>> trials;
std::vector<Entry<Choice>> choices;
std::vector<Entry<Measured>> table = entries(measured_table());

bool same_type(const Shape& shape, DataType dtype, bool tf32) {
  return shape.dtype == dtype && (dtype != DataType::Float32 || shape.tf32 == tf32);
}

// All but the batch, the length and the input, which change from call to call or hardly matter.
bool same_layer(const Shape& shape, const Shape& other) {
  return same_type(shape, other.dtype, other.tf32) && shape.hidden_size == other.hidden_size &&
         shape.directions == other.directions && shape.packed == other.packed && shape.training == other.training;
}

bool same_gpu(const Choice& choice, const std::string& gpu, int major, int minor) {
  return choice.gpu == gpu && choice.major == major && choice.minor == minor;
}

const Decision* latest_trial(const Shape& shape) {
  const auto trial = std::find_if(trials.rbegin(), trials.rend(), [&](const Entry<Shape>& entry) {
    return same_layer(entry.key, shape) && entry.key.batch == shape.batch;
  });
  return trial == trials.rend() ? nullptr : &trial->decision;
}

const Decision* nearest_choice(const Shape& shape, const Device& device) {
  const Decision* nearest = nullptr;
  double least = 2.0;
  for (const auto& [choice, decision] : choices) {
    if (!same_layer(choice.shape, shape) || !same_gpu(choice, device.name, device.major, device.minor)) continue;
    const auto larger = static_cast<double>(std::max(choice.shape.batch, shape.batch));
    const auto smaller = static_cast<double>(std::max<int64_t>(1, std::min(choice.shape.batch, shape.batch)));
    if (larger / smaller > least) continue;
    least = larger / smaller;
    nearest = &decision;
  }
  return nearest;
}

bool holds(const Measured& row, const Shape& shape, const Device& device) {
  return row.major == device.major && row.minor == device.minor && same_type(shape, row.dtype, row.tf32) &&
         (row.dtype != DataType::Float32 || row.library_tf32 == shape.library_tf32) &&
         row.directions == shape.directions && row.packed == shape.packed && row.training == shape.training &&
         row.least_hidden_size <= shape.hidden_size && shape.hidden_size <= row.most_hidden_size &&
         row.least_batch <= shape.batch && shape.batch <= row.most_batch && shape.seq_len >= 1 &&
         shape.seq_len <= row.most_seq_len;
}

const Decision* first_row(const Shape& shape, const Device& device) {
  const auto row = std::find_if(table.begin(), table.end(),
                                [&](const Entry<Measured>& entry) { return holds(entry.key, shape, device); });
  return row == table.end() ? nullptr : &row->decision;
}

}  // namespace

const char* name(Strategy strategy) {
  switch (strategy) {
    case Strategy::Library:
      return "library";
    case Strategy::Wavefront:
      return "wavefront";
    case Strategy::Kernels:
      return "kernels";
  }
  return "unknown";
}

const char* name(Kernel kernel) { return kernel == Kernel::Step ? "step" : "stationary"; }

Decision decide(const Shape& shape, const Device& device) {
  const char* const word = std::getenv(kVariable);
  if (word != nullptr && *word != '\0') return parse(kVariable, word, kVariable);
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Decision* const decision = latest_trial(shape)) return *decision;
  if (const Decision* const decision = nearest_choice(shape, device)) return *decision;
  if (const Decision* const decision = first_row(shape, device)) return *decision;
  return {Strategy::Library, Kernel::Step, "default, for want of a measurement"};
}

void choose(const Choice& choice) {
  const Entry<Choice> fresh{choice, decision_of(choice)};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto same = std::find_if(choices.begin(), choices.end(), [&](const Entry<Choice>& entry) {
    return same_layer(entry.key.shape, choice.shape) && entry.key.shape.batch == choice.shape.batch &&
           same_gpu(entry.key, choice.gpu, choice.major, choice.minor);
  });
  if (same == choices.end()) {
    choices.push_back(fresh);
  } else {
    *same = fresh;
  }
}

void forget_choices() {
  const std::lock_guard<std::mutex> lock(mutex);
  choices.clear();
}

void begin_trial(const Shape& shape, const std::string& kernel) {
  const Entry<Shape> trial{shape, parse("the kernel", kernel, "a trial of gru_ext.tune")};
  const std::lock_guard<std::mutex> lock(mutex);
  trials.push_back(trial);
}

void end_trial() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!trials.empty()) trials.pop_back();
}

void use_measured(const std::vector<Measured>& rows) {
  std::vector<Entry<Measured>> fresh = entries(rows);
  const std::lock_guard<std::mutex> lock(mutex);
  table = std::move(fresh);
}

}  // namespace gru::cuda
