#include "choice.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "measured.h"

namespace gru::cuda {
namespace {

constexpr const char* kVariable = "GRU_EXT_CUDA_KERNEL";
constexpr std::string_view kLibrary = "library";
constexpr std::array<std::string_view, 7> kWords = {kLibrary, "step",       "solo",     "cluster",
                                                    "grid",   "stationary", "wavefront"};

// The literal that equals the word.
std::string_view known(const char* where, std::string_view word) {
  const auto literal = std::find(kWords.begin(), kWords.end(), word);
  if (literal != kWords.end()) return *literal;
  throw std::invalid_argument("gru_ext: " + std::string(where) + " is " + std::string(word) +
                              "; expected library, step, solo, cluster, grid, stationary (whichever of the three "
                              "before it fits) or wavefront (the same, with stacked layers that overlap)");
}

// Empty where the environment does not decide.
std::string_view asked() {
  const char* const value = std::getenv(kVariable);
  return value == nullptr || *value == '\0' ? std::string_view() : known(kVariable, value);
}

struct Made {
  Choice choice;
  std::string_view word;
};
std::mutex mutex;  // of the three below
std::vector<Made> made;
std::vector<std::pair<Shape, std::string_view>> trials;
std::vector<Measured> table = measured_table();

bool same_type(const Shape& shape, DataType dtype, bool tf32) {
  return shape.dtype == dtype && (dtype != DataType::Float32 || shape.tf32 == tf32);
}

// All but the batch, the length and the input, which change from call to call or hardly matter.
bool alike(const Shape& shape, const Shape& other) {
  return same_type(shape, other.dtype, other.tf32) && shape.hidden_size == other.hidden_size &&
         shape.directions == other.directions && shape.packed == other.packed && shape.training == other.training;
}

const Made* nearest(const Shape& shape, const Device& device) {
  const Made* nearest = nullptr;
  double least = 2.0;
  for (const Made& one : made) {
    const Choice& choice = one.choice;
    if (!alike(choice.shape, shape)) continue;
    if (choice.major != device.major || choice.minor != device.minor || choice.gpu != device.name) continue;
    const auto larger = static_cast<double>(std::max(choice.shape.batch, shape.batch));
    const auto smaller = static_cast<double>(std::max<int64_t>(1, std::min(choice.shape.batch, shape.batch)));
    if (larger / smaller > least) continue;
    least = larger / smaller;
    nearest = &one;
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

// The word, and what says so; the pointers are good while the mutex is held.
struct Decision {
  std::string_view word = kLibrary;
  const char* by = "default, for want of a measurement";
  const Choice* choice = nullptr;
  const Measured* row = nullptr;
};
Decision decide(const Shape& shape, const Device& device) {
  Decision decision;
  decision.word = asked();
  decision.by = kVariable;
  if (!decision.word.empty()) return decision;
  const auto trial = std::find_if(trials.rbegin(), trials.rend(), [&](const auto& of) {
    return alike(of.first, shape) && of.first.batch == shape.batch;
  });
  if (trial != trials.rend()) return {trial->second, "a trial of gru_ext.tune"};
  if (const Made* const tuned = nearest(shape, device)) return {tuned->word, "gru_ext.tune", &tuned->choice};
  const auto row = std::find_if(table.begin(), table.end(), [&](const auto& of) { return holds(of, shape, device); });
  if (row != table.end()) return {known("the kernel", row->word), "measurements", nullptr, &*row};
  return {};
}

std::string times(double ratio) {
  char text[64];
  std::snprintf(text, sizeof text, ": %.2f times as fast as torch's kernels", ratio);
  return text;
}

}  // namespace

std::string_view chosen(const Shape& shape, const Device& device) {
  const std::lock_guard<std::mutex> lock(mutex);
  return decide(shape, device).word;
}

std::string source(const Shape& shape, const Device& device) {
  const std::lock_guard<std::mutex> lock(mutex);
  const Decision decision = decide(shape, device);
  std::string words = decision.by;
  if (const Choice* const choice = decision.choice) {
    if (!choice->date.empty()) words += " on " + choice->date;
    words += ", with batch " + std::to_string(choice->shape.batch);
    if (decision.word == kLibrary) return words + ": torch's kernels were the fastest";
    return choice->ratio > 0 ? words + times(choice->ratio) : words;
  }
  if (const Measured* const row = decision.row) {
    words += " on " + row->gpu + " (" + row->results + ")" + times(row->ratio) + " in the geometric mean";
  }
  return words;
}

void choose(const Choice& choice) {
  const Made fresh{choice, known("the kernel", choice.word)};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto same = std::find_if(made.begin(), made.end(), [&](const Made& other) {
    return alike(other.choice.shape, choice.shape) && other.choice.shape.batch == choice.shape.batch &&
           other.choice.gpu == choice.gpu && other.choice.major == choice.major && other.choice.minor == choice.minor;
  });
  if (same == made.end()) {
    made.push_back(fresh);
  } else {
    *same = fresh;
  }
}

void forget_choices() {
  const std::lock_guard<std::mutex> lock(mutex);
  made.clear();
}

void begin_trial(const Shape& shape, const std::string& word) {
  const std::string_view literal = known("the kernel", word);
  const std::lock_guard<std::mutex> lock(mutex);
  trials.emplace_back(shape, literal);
}

void end_trial() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!trials.empty()) trials.pop_back();
}

void use_measured(const std::vector<Measured>& rows) {
  for (const Measured& row : rows) (void)known("the kernel", row.word);
  const std::lock_guard<std::mutex> lock(mutex);
  table = rows;
}

}  // namespace gru::cuda
