#include "phases.h"

#include <chrono>

namespace gru::cpu {

namespace {

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Nanoseconds of one thread. Written by that thread alone, but for the zeros of a new beginning.
struct Counts {
  std::atomic<int64_t> calls{0}, whole{0}, of_threads{0};
  std::array<std::atomic<int64_t>, kPhases> phases{};
};
struct Slot {
  std::array<Counts, kPasses> passes;
  std::atomic<bool> taken{true};
  Slot* next = nullptr;
};

// Slots are never freed, and are taken over when their thread has ended. Without a mutex: in a forked child it may stay
// locked for ever.
std::atomic<Slot*> slots{nullptr};

class Owner {
 public:
  Owner() {
    for (Slot* slot = slots.load(std::memory_order_acquire); slot && !slot_; slot = slot->next)
      if (!slot->taken.exchange(true, std::memory_order_acq_rel)) slot_ = slot;
    if (slot_) return;
    slot_ = new Slot;
    slot_->next = slots.load(std::memory_order_relaxed);
    while (!slots.compare_exchange_weak(slot_->next, slot_, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;
  ~Owner() { slot_->taken.store(false, std::memory_order_release); }

  Counts& of(Pass pass) { return slot_->passes[static_cast<size_t>(pass)]; }

 private:
  Slot* slot_ = nullptr;
};

thread_local Owner mine;

void add(std::atomic<int64_t>& to, int64_t value) { to.fetch_add(value, std::memory_order_relaxed); }
double seconds(const std::atomic<int64_t>& nanoseconds) {
  return static_cast<double>(nanoseconds.load(std::memory_order_relaxed)) * 1e-9;
}

template <class Body>
void for_each_slot(const Body& body) {
  for (Slot* slot = slots.load(std::memory_order_acquire); slot; slot = slot->next) body(*slot);
}

}  // namespace

const char* name(Phase phase) {
  switch (phase) {
    case Phase::Packing:
      return "packing";
    case Phase::Projection:
      return "projection";
    case Phase::Product:
      return "product";
    case Phase::Gates:
      return "gates";
    case Phase::Waiting:
      return "waiting";
    case Phase::Gradients:
      return "gradients";
    case Phase::Recompute:
      return "recompute";
  }
  return "";
}

void set_phase_clock(bool on) {
  if (on) {
    for_each_slot([](Slot& slot) {
      for (Counts& counts : slot.passes) {
        for (std::atomic<int64_t>* count : {&counts.calls, &counts.whole, &counts.of_threads}) count->store(0);
        for (std::atomic<int64_t>& phase : counts.phases) phase.store(0);
      }
    });
  }
  phase_clock_on.store(on);
}

std::array<PassTimes, kPasses> phase_times() {
  std::array<PassTimes, kPasses> times;
  for_each_slot([&](const Slot& slot) {
    for (size_t pass = 0; pass < kPasses; ++pass) {
      const Counts& counts = slot.passes[pass];
      PassTimes& to = times[pass];
      to.calls += counts.calls.load(std::memory_order_relaxed);
      to.seconds += seconds(counts.whole);
      to.thread_seconds += seconds(counts.of_threads);
      std::array<double, kPhases> phases{};
      double all = 0;
      for (size_t phase = 0; phase < kPhases; ++phase) all += phases[phase] = seconds(counts.phases[phase]);
      if (all > 0) to.phases.push_back(phases);
    }
  });
  return times;
}

void PhaseClock::start(Pass pass, Phase first) {
  pass_ = pass;
  phase_ = first;
  nanoseconds_.fill(0);
  since_ = now();
}

void PhaseClock::turn(Phase next) {
  if (next == phase_) return;
  const int64_t time = now();
  nanoseconds_[static_cast<size_t>(phase_)] += time - since_;
  since_ = time;
  phase_ = next;
}

void PhaseClock::stop() {
  nanoseconds_[static_cast<size_t>(phase_)] += now() - since_;
  Counts& counts = mine.of(pass_);
  for (size_t phase = 0; phase < kPhases; ++phase) add(counts.phases[phase], nanoseconds_[phase]);
}

void PassTimer::start(Pass pass, int threads) {
  pass_ = pass;
  threads_ = threads;
  begin_ = now();
}

void PassTimer::stop() {
  const int64_t time = now() - begin_;
  Counts& counts = mine.of(pass_);
  add(counts.calls, 1);
  add(counts.whole, time);
  add(counts.of_threads, time * threads_);
}

}  // namespace gru::cpu
