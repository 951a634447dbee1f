#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

#include "targets.h"
#include "threads.h"

namespace gru::cpu {

namespace {

std::atomic<const Target*> target_in_use{targets_on(processor()).front()};

// Below this many operations for each thread, waking the pool and meeting at the end costs more than it saves.
constexpr double kOperationsWorthAThread = 4e5;
// The same for one step, where the threads meet after each.
constexpr double kOperationsWorthABarrier = 6e4;
// Below this many operations a step meeting after it costs two threads more than having all the weights to read costs
// one.
constexpr double kOperationsOfShortStep = 5e5;
// Up to so many rows (step, sequence) rearranging the weights costs more than it saves; of a single step it saves less,
// for W_hh is read only once. Where the weights are small, at most a row for so many hidden units; half as many of 16
// bits that are widened every time they are read; by bfloat16 dot products 8 of a single step; and on tiles as many as
// their reading hides (estimated, not measured).
constexpr int64_t kFewRows = 16, kFewRowsOfStep = 32, kFewRowsOfDotStep = 8, kUnitsOfFewRow = 10, kFewRowsOfTiles = 4;
// Fewer rows than this would leave a thread's tiles too low to hide the reading of the weights.
constexpr int64_t kRowsWorthASplit = 4;
// A step takes a thread as long as so many rows of it do, and its rows.
constexpr int64_t kRowsOfStep = 2;
// Up to so many rows of a thread a step takes as long as reading its weights does, so that half the bytes are worth
// more than the instructions that widen them. The bits are the same either way.
constexpr int64_t kRowsOfNarrowWeights = 2;
// And of inputs, all steps together, for W_ih that was packed ahead: more repay widening it first.
constexpr int64_t kRowsOfNarrowInputs = 8;
constexpr int64_t kUnitsInNearestCache = 48;
// What forward keeps, where it is larger than the near caches, goes past all of them on Intel's processors, which fetch
// a line before they write to it. On AMD's the same stores cost a sixth of a forward pass (Zen 3), or win a twentieth
// of float32's and cost as much of bfloat16's (Zen 4).
constexpr int64_t kStreamedBytes = int64_t{8} << 20;
// Threads that share a layer lose about so much of their time to waiting and to reading the same weights, which those
// that take whole members do not; they may end at different times instead.
constexpr double kLossOfSharing = 1.25;

// Operands of 16 bits: widened and multiplied as floats, or by an instruction of their own.
enum class Halves { Widened, Dot, Tiles };
Halves halves_on(const Target& target, DataType dtype) {
#ifdef GRU_EXT_AMX
  if (&target == &kTargetAvx512Amx && (dtype == DataType::BFloat16 || processor().float16_tiles)) return Halves::Tiles;
#endif
#ifdef GRU_EXT_X86
  if (&target == &kTargetAvx512Bf16 && dtype == DataType::BFloat16) return Halves::Dot;
#endif
#ifdef GRU_EXT_NEON
  if (&target == &kTargetNeonBf16 && dtype == DataType::BFloat16) return Halves::Dot;
#endif
  (void)target;
  return Halves::Widened;
}

bool is_few_rows(const Target& target, DataType dtype, int64_t seq_len, int64_t batch, int64_t hidden_size) {
  if (seq_len == 1 && batch <= 1) return true;
  int64_t most = std::min(hidden_size / kUnitsOfFewRow, seq_len == 1 ? kFewRowsOfStep : kFewRows);
  if (dtype == DataType::BFloat16 || dtype == DataType::Float16) {
    const Halves halves = halves_on(target, dtype);
    if (halves == Halves::Widened) most /= 2;
    if (halves == Halves::Dot && seq_len == 1) most = std::min(most, kFewRowsOfDotStep);
    if (halves == Halves::Tiles) most = std::min(most, kFewRowsOfTiles);
  }
  return batch <= most && seq_len <= most && seq_len * batch <= most;  // each alone first: a product may overflow
}

// A target other than the best was asked for by name, and uses its own instructions alone.
const Target& target_of_bytes() {
  const Target* const best = targets_on(processor()).front();
  if (&target() != best) return target();
#ifdef GRU_EXT_X86
  if (best == &kTargetAvx512 && kTargetAvx512Vnni.runs_on(processor())) return kTargetAvx512Vnni;
#ifdef GRU_EXT_AVX_VNNI
  if (best == &kTargetAvx2 && kTargetAvx2Vnni.runs_on(processor())) return kTargetAvx2Vnni;
#endif
#endif
#ifdef GRU_EXT_NEON
  if (best == &kTargetNeon && kTargetNeonDot.runs_on(processor())) return kTargetNeonDot;
#endif
  return *best;
}

double operations_of_step(int64_t batch, int64_t input_size, int64_t hidden_size) {
  return 6.0 * static_cast<double>(batch) * static_cast<double>(hidden_size) *
         (static_cast<double>(hidden_size) + static_cast<double>(input_size));
}

}  // namespace

std::vector<const Target*> targets_on(const Processor& processor) {
  std::vector<const Target*> targets;
  std::copy_if(std::begin(kTargets), std::end(kTargets), std::back_inserter(targets),
               [&](const Target* candidate) { return candidate->runs_on(processor); });
#ifdef GRU_EXT_X86
  // Bfloat16 dot products do twice the operations of float32's multiply-adds on AMD's processors, but half of them on
  // Intel's (121 and 243 GFLOP/s on a Xeon): without tiles to take their place there, widening is faster.
  const auto dot = std::find(targets.begin(), targets.end(), &kTargetAvx512Bf16);
  if (processor.intel && dot != targets.end()) std::iter_swap(dot, dot + 1);  // behind kTargetAvx512
#endif
  return targets;
}

std::vector<std::string> target_names() {
  std::vector<std::string> names;
  for (const Target* candidate : targets_on(processor())) names.emplace_back(candidate->name);
  return names;
}

const Target& target() { return *target_in_use.load(std::memory_order_relaxed); }

void set_target(const std::string& name) {
  std::string known;
  for (const Target* candidate : targets_on(processor())) {
    if (name == candidate->name) {
      target_in_use.store(candidate, std::memory_order_relaxed);
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + candidate->name;
  }
  throw std::invalid_argument("SIMD target '" + name + "' is not available on this machine; expected one of: " + known);
}

void set_target_from_environment() {
  const char* name = std::getenv("GRU_EXT_SIMD");
  if (name && *name) set_target(name);
}

std::string Plan::division() const {
  if (directions_at_once) return std::string("2 threads, a direction each") + (few_rows ? ", few rows" : "");
  if (members_at_once > 1)
    return std::to_string(members_at_once) + " threads over the members" + (few_rows ? ", few rows" : "");
  if (layers_at_once > 1) return std::to_string(layers_at_once) + " threads over the layers";
  std::string text = std::to_string(threads) + " thread";
  if (threads > 1) text += split == Split::Batch ? "s over the batch" : "s over the hidden units";
  return few_rows ? text + ", few rows" : text;
}

Plan make_plan(DataType dtype, int64_t seq_len, int64_t batch, int64_t input_size, int64_t hidden_size, int directions,
               int max_threads, WeightFormat weights) {
  Plan plan;
  plan.target = weights == WeightFormat::Int8 ? &target_of_bytes() : &target();
  if (max_threads > 1) max_threads = std::min(max_threads, available_cores());
  plan.few_rows = weights == WeightFormat::Plain && is_few_rows(*plan.target, dtype, seq_len, batch, hidden_size);
  const double step = operations_of_step(batch, input_size, hidden_size);
  const double all = step * static_cast<double>(seq_len);
  const auto worth = [max_threads](double operations, double each) {  // clamped before the cast, which has a range
    return static_cast<int64_t>(std::min<double>(operations / each, max_threads));
  };
  const int64_t by_batch = std::min(batch / kRowsWorthASplit, worth(all, kOperationsWorthAThread));
  const int64_t by_units =
      std::min({hidden_size / 16, worth(all, kOperationsWorthAThread), worth(step, kOperationsWorthABarrier)});
  // A single step reads every weight once: two threads with the same weights would both read all of them.
  plan.split = seq_len > 1 && by_batch >= by_units ? Split::Batch : Split::Units;
  plan.threads = static_cast<int>(std::max<int64_t>({1, seq_len > 1 ? by_batch : 1, by_units}));
  // Directions need not wait for each other, where threads that share the units would after every step.
  if (directions == 2 && worth(all, kOperationsWorthAThread) > 1 &&
      (plan.threads == 1 || (plan.threads == 2 && plan.split == Split::Units && step < kOperationsOfShortStep))) {
    plan.directions_at_once = true;
    plan.threads = 1;
    plan.split = Split::Batch;
  }
  const int64_t rows = plan.split == Split::Batch ? mean_batch(batch, plan.threads) : batch;
  if (processor().intel) plan.stream_above = kStreamedBytes;
  const bool packed = weights != WeightFormat::Plain;
  plan.narrow_weights = (seq_len > 1 || packed) && rows <= kRowsOfNarrowWeights;
  // In the nearest cache widened weights are no slower to read, and a long sequence repays widening them first.
  if (packed && hidden_size <= kUnitsInNearestCache && seq_len > kRowsOfNarrowInputs) plan.narrow_weights = false;
  plan.narrow_inputs = packed && seq_len <= kRowsOfNarrowInputs && seq_len * rows <= kRowsOfNarrowInputs;
  return plan;
}

Plan make_members_plan(DataType dtype, int64_t members, int64_t seq_len, int64_t batch, int64_t input_size,
                       int64_t hidden_size, int directions, int max_threads) {
  if (max_threads > 1) max_threads = std::min(max_threads, available_cores());
  const Plan shared = make_plan(dtype, seq_len, batch, input_size, hidden_size, directions, max_threads);
  const double all =
      operations_of_step(batch, input_size, hidden_size) * static_cast<double>(seq_len) * static_cast<double>(members);
  const auto worth = static_cast<int64_t>(std::min<double>(all / kOperationsWorthAThread, max_threads));
  const int64_t threads = std::min(members, worth);
  if (threads <= 1) return shared;
  const double speedup = static_cast<double>(members) / static_cast<double>(mean_batch(members, threads));
  if (kLossOfSharing * speedup < (shared.directions_at_once ? 2 : shared.threads)) return shared;
  Plan apart = make_plan(dtype, seq_len, batch, input_size, hidden_size, 1, 1);
  apart.members_at_once = static_cast<int>(threads);
  return apart;
}

Plan make_stack_plan(DataType dtype, int64_t layers, int64_t seq_len, int64_t batch, int64_t input_size,
                     int64_t hidden_size, int directions, int max_threads, int64_t longest_piece,
                     WeightFormat weights) {
  const auto plan_of_layer = [&](int64_t columns) {
    return make_plan(dtype, seq_len, batch, columns, hidden_size, directions, max_threads, weights);
  };
  Plan plan = plan_of_layer(input_size);
  if (layers == 1 || directions > 1 || longest_piece <= seq_len / 2 || plan.threads > 1 || plan.few_rows ||
      plan_of_layer(hidden_size).threads > 1)
    return plan;
  const auto operations = [&](int64_t columns) {
    return operations_of_step(batch, columns, hidden_size) * static_cast<double>(seq_len);
  };
  const double first = operations(input_size), other = operations(hidden_size);
  const double all = first + other * static_cast<double>(layers - 1);
  if (max_threads > 1) max_threads = std::min(max_threads, available_cores());
  const int64_t threads =
      std::min(layers, static_cast<int64_t>(std::min<double>(all / kOperationsWorthAThread, max_threads)));
  if (threads <= 1) return plan;
  // A first layer of many inputs may be most of the work, and of few steps each layer waits for most of the one below.
  const double behind = static_cast<double>(std::min(kOverlappingSteps, seq_len)) / static_cast<double>(seq_len);
  const double longest = std::max(first, other) + other * std::max(static_cast<double>(mean_batch(layers, threads) - 1),
                                                                   behind * static_cast<double>(layers - 1));
  if (all - longest >= static_cast<double>(threads - 1) * kOperationsWorthAThread)
    plan.layers_at_once = static_cast<int>(threads);
  return plan;
}

Share share_of(const Plan& plan, const Rows& rows, int64_t groups, int thread, int threads) {
  Share share{0, rows.batch, 0, groups};
  if (plan.split == Split::Units) {
    share.group_low = groups * thread / threads;
    share.group_high = groups * (thread + 1) / threads;
    return share;
  }
  if (!rows.batch_sizes) {
    share.row_low = rows.batch * thread / threads;
    share.row_high = rows.batch * (thread + 1) / threads;
    return share;
  }
  // Sequences of different lengths come longest first. A thread takes so many that it ends when those behind it will on
  // average, the longest of which begin where it stops.
  int64_t left = rows.in_all(), steps = rows.seq_len;
  share.row_high = 0;
  for (int part = 0; part <= thread; ++part) {
    const int64_t longest = steps, sharing = threads - part;
    int64_t taken = 0;
    share.row_low = share.row_high;
    for (; share.row_high < rows.batch; ++share.row_high) {
      while (rows.batch_sizes[steps - 1] <= share.row_high) --steps;
      const int64_t own = 2 * (taken + kRowsOfStep * longest) + steps;  // twice, with half of this sequence
      const int64_t all = 2 * (left + kRowsOfStep * (longest + (sharing - 1) * steps));
      if (sharing > 1 && taken > 0 && own * sharing >= all) break;
      taken += steps;
    }
    left -= taken;
  }
  return share;
}

}  // namespace gru::cpu
