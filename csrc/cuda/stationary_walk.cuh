// The walk of a warp through all steps of a pass (stationary.cuh), forward or backward as its cells are.
#pragma once

#include <algorithm>

#include "stationary_exchange.cuh"
#include "stationary_product.cuh"

namespace gru::cuda {

constexpr int kMarksOfWarp = static_cast<int>(sizeof(uint32_t)) * kWarpSize;  // bytes, of one cell of each lane

// All steps of a warp, which does cells (kDoesCells) or only multiplies. What a pass does with the sums of a step is
// told by Cells (ForwardCells, BackwardCells), an object of which belongs to a lane:
//   kOperands, kValues  operands of a step, which the cells give for the next one; values that splits hand over a unit
//   kLooksBack          whether the operands are of the step before, which may have more sequences
//   Word, kWordsAtOnce  of the exchange in a grid, and how many a thread gathers at once
//   kSlot               bytes that a warp takes from memory in a step, for one cell of each lane
//   first_state, first_operand   what is there before the first step
//   reset_mark, reset            which rows' marks say that a state is reset, and what becomes of it: backward before
//                                the cell of the step, forward behind it
//   fetch, take                  what a step takes from memory, into shared memory and from there
//   total                        what splits hand over, of the sums of the three gates
//   compute, store               the cells and their results in memory, forward's output at a reset by store_output;
//                                word, put: in the exchange of a grid
//   finish                       the state after the last step
template <bool kDoesCells, bool kGrid, int kSequences, class Cells, class Element, int kTiles>
__device__ inline void walk(const StationaryPass& pass, const Place& place, const Product<Element, kTiles>& product,
                            const Cells& cells, bool descending, int last_step) {
  constexpr int kCells = kSequences / kSequencesOfTile;  // sequences of a lane in a tile
  // Sums are added to in turn, for a product takes as long as four need to begin: of each gate, or, where only their
  // total is wanted, two.
  constexpr int kSums = Cells::kOperands == 1 || kCells == 1 ? 3 : 2;
  const int first_sequence = place.group * pass.group_batch, exist = place.exist(pass.hidden_size);
  const int sequence = exist > 0 ? place.sequence : kNoSequence;
  auto* const operands = reinterpret_cast<Element*>(shared_memory() + pass.parts.operands);
  constexpr int kState = static_cast<int>(sizeof(float2)) * kWarpSize;        // bytes of a warp, before its slot
  constexpr int kMark = kState + Cells::kSlot, kSlot = kMark + kMarksOfWarp;  // of a cell: up to its mark, and all
  unsigned char* const slots = shared_memory() + hold(pass.parts.slots + place.warp * kCells * kSlot);
  const auto state = [&](unsigned char* slot) { return reinterpret_cast<float2*>(slot) + place.lane; };
  const auto mark_in = [&](unsigned char* slot) { return reinterpret_cast<uint32_t*>(slot + kMark) + place.lane; };
  const int tiles = hold(pass.tiles), operand_tile = kGrid ? 0 : place.operand_tile;
  const int operand_stride = Cells::kOperands == 1 ? 0 : place.operand_next;
  const int last_input = pass.last_input, batch_stride = kCells == 1 ? 0 : hold(pass.batch_stride);
  const bool packed = hold(static_cast<int>(pass.batch_sizes != nullptr)) != 0;
  // The mark of a row of the walk's next step; 0 of one that does not exist.
  const auto fetch_mark = [&](unsigned char* slot, int row, bool exists) {
    copy_async<sizeof(uint32_t)>(mark_in(slot), pass.marks + row, exists ? sizeof(uint32_t) : 0);
  };

  Steps steps(pass, descending, place.sequence);
  const SplitSums<kCells, Cells::kValues> split_sums(pass, place);
  const ClusterExchange<Element, Cells::kOperands, kCells> cluster(pass, place);
  const GridExchange<Element, typename Cells::Word> grid(pass, place);
  if constexpr (kDoesCells) {
    for (int i = 0; i < tiles * kCells; ++i) {
      const int tile = i / kCells, cell = i % kCells, of_batch = sequence + tile * kSequences + cell;
      unsigned char* const slot = slots + tile * pass.parts.slot_tile + cell * kSlot;
      *state(slot) = cells.first_state(of_batch, of_batch < pass.batch ? exist : 0);
      const int row = steps.row() + tile * pass.tile_stride + cell * batch_stride;
      const int exist_here = of_batch < steps.active() ? exist : 0;
      cells.fetch(slot + kState, row, exist_here, place.lane);
      if (pass.marked != 0) fetch_mark(slot, row, exist_here > 0);
    }
    copy_async_commit();
  }
  if constexpr (!kGrid) {
    for (int turn = 0; turn < 2; ++turn) {  // of the other one the padding is needed
      cells.first_operand(operands + turn * pass.parts.operand_turn, pass.group_batch, first_sequence);
    }
    cluster.start(pass, place);
  }

  int turn = 0, active_before = 0;
  for (int s = 0;; ++s) {
    const bool last = s == last_step;
    const int active = s <= last_input ? steps.active() : 0;
    Element *now = operands + turn, *next = operands + (pass.parts.operand_turn - turn);
    const auto gather = [&](int in_group) {
      block_sync();  // all have read the tile before
      if (s == 0) {
        cells.first_operand(operands, kSequences, first_sequence + in_group);
      } else {
#pragma unroll
        for (int i = 0; i < kCells; ++i) {
          const int eight = i * kSequencesOfTile;
          grid.template gather<Cells::kWordsAtOnce>(operands + eight * pass.row, pass.row, s, in_group + eight,
                                                    [&](Element* to, const auto& words) { cells.put(to, words); });
        }
      }
      block_sync();
    };
    if constexpr (!kGrid) cluster.wait(s);
    if (packed) steps.look_ahead(pass, s + 1);
    int sums_turn = 0, row = steps.row();
    unsigned char* slot = slots;
    for (int tile = 0;;) {
      const int in_group = tile * kSequences;
      if constexpr (kGrid) gather(in_group);
      const int most = Cells::kLooksBack && active < active_before ? active_before : active;
      float sums[kCells][kSums][4], values[kCells][Cells::kValues][4];
      const int operand_row = sizeof(Element) == 2 ? place.row : pass.row;  // float32 has no register for it
      product.template multiply<Cells::kOperands == 1>(sums, now + tile * operand_tile, operand_row, operand_stride,
                                                       place, most - first_sequence - in_group);
#pragma unroll
      for (int cell = 0; cell < kCells; ++cell) Cells::total(values[cell], sums[cell]);
      if constexpr (!kDoesCells) {
        split_sums.give_away(pass, values, sums_turn);
      } else {
        copy_async_wait<0>();
        const int of_batch = sequence + in_group;
        float2 states[kCells];
        typename Cells::Inputs inputs[kCells];
        int in_step[kCells];  // units
        bool is_reset[kCells];
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
          float kept[kUnitsOfLane];
          PairRun<float>::read(kept, slot + cell * kSlot, place.lane);
          states[cell] = make_float2(kept[0], kept[1]);
          cells.take(inputs[cell], slot + cell * kSlot + kState, place.lane);
          const uint32_t mark = pass.marked != 0 ? opaque(*mark_in(slot + cell * kSlot)) : 0;
          in_step[cell] = of_batch + cell < active && (mark & kPadding) == 0 ? exist : 0;
          is_reset[cell] = (mark & cells.reset_mark()) != 0;
        }
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
          unsigned char* const slot_of_cell = slot + cell * kSlot;
          const bool exists_next = s < last_input && of_batch + cell < steps.next_active();
          const int next_row = row + cell * batch_stride + steps.stride(), exist_next = exists_next ? exist : 0;
          cells.fetch(slot_of_cell + kState, next_row, exist_next, place.lane);
          if (pass.marked != 0) fetch_mark(slot_of_cell, next_row, exist_next > 0);
        }
        float2 own[kCells][Cells::kValues];
        split_sums.share(own, values, sums_turn);
        typename Cells::Outputs outputs[kCells];
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
          const int row_of_cell = row + cell * batch_stride;
          if constexpr (Cells::kLooksBack) {
            if (is_reset[cell]) cells.reset(own[cell], states[cell], row_of_cell, exist);
          }
          outputs[cell] = cells.compute(own[cell], inputs[cell], states[cell], in_step[cell]);
          if constexpr (!Cells::kLooksBack) {
            if (is_reset[cell]) {
              cells.store_output(outputs[cell], row_of_cell, in_step[cell]);
              cells.reset(outputs[cell], states[cell], s, of_batch + cell, exist);
            }
          }
          *state(slot + cell * kSlot) = states[cell];
        }
        if (!last) {
#pragma unroll
          for (int cell = 0; cell < kCells; ++cell) {
            if constexpr (kGrid) {
#pragma unroll
              for (int piece = 0; piece < grid.kPieces; ++piece) {
                grid.publish(s, in_group + cell, piece,
                             [&](uint32_t number) { return Cells::word(outputs[cell].results, piece, number); });
              }
            } else {
              cluster.keep(place, next + tile * operand_tile, outputs[cell].results, cell);
            }
          }
          if (!kGrid && tile == tiles - 1) cluster.send(next, tiles, s, place);
        }
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell)
          cells.store(outputs[cell], row + cell * batch_stride, in_step[cell], is_reset[cell]);
      }
      if (++tile == tiles) break;
      sums_turn = pass.parts.sums_turn - sums_turn;
      row += pass.tile_stride;
      slot += pass.parts.slot_tile;
    }
    if (kDoesCells) copy_async_commit();
    if (last) break;
    active_before = active;
    steps.advance();
    turn = pass.parts.operand_turn - turn;
    if constexpr (!kGrid) cluster.finish();
  }

  for (int i = 0; kDoesCells && i < tiles * kCells; ++i) {
    const int tile = i / kCells, cell = i % kCells, of_batch = sequence + tile * kSequences + cell;
    cells.finish(*state(slots + tile * pass.parts.slot_tile + cell * kSlot), of_batch,
                 of_batch < pass.batch ? exist : 0);
  }
}

// The whole kernel of a block: `product` has its weights.
template <bool kGrid, int kSequences, class Cells, class Element, int kTiles>
__device__ inline void walk_block(const StationaryPass& pass, const Place& place,
                                  const Product<Element, kTiles>& product, const Cells& cells, bool descending,
                                  int last_step) {
  if (all_do_cells(kTiles, sizeof(Element)) || place.does_cells()) {
    walk<true, kGrid, kSequences>(pass, place, product, cells, descending, hold(last_step));
  } else if constexpr (!all_do_cells(kTiles, sizeof(Element))) {
    walk<false, kGrid, kSequences>(pass, place, product, cells, descending, hold(last_step));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory, in bytes
// ---------------------------------------------------------------------------------------------------------------------

inline int tail_bytes(const Partition& partition, size_t element) {
  const int words = element == 2 ? Product<__half, 4>::kTailWords : Product<float, 4>::kTailWords;
  const int tail = partition.k_tiles - tiles_in_registers(partition.k_tiles, element, partition.tf32);
  return words * tail * partition.warps * kWarpSize * static_cast<int>(sizeof(uint4));
}
inline int stage_bytes(const Partition& partition, size_t element) {
  return partition.units() * padded_row(partition.columns(), element) * static_cast<int>(element);
}
inline int transposed_stage_bytes(const Partition& partition, size_t element) {
  return partition.columns() * padded_row(partition.units(), element) * static_cast<int>(element);
}

// operands: of a step. slot: bytes that a warp takes from memory in a step. values: those that splits hand over of a
// unit. stage: bytes.
inline SharedParts shared_parts(const Partition& partition, size_t element, int operands, int slot, int values,
                                bool biases, int stage) {
  const int unit_tiles = partition.warps / partition.splits, cell_warps = kCellWarps * unit_tiles;
  const int tile = partition.tile, cells = tile / kSequencesOfTile;
  const int lane_bytes = static_cast<int>(sizeof(float2)) * kWarpSize;
  const int row = padded_row(partition.width(), element);
  const int behind_tail = kTailBegin + tail_bytes(partition, element);
  SharedParts parts{};
  parts.operands = behind_tail;
  parts.operand_tile = partition.grid ? 0 : tile * row;
  parts.operand_next = (partition.grid ? tile : partition.group_batch) * row;
  parts.operand_turn = partition.grid ? 0 : operands * parts.operand_next;
  parts.slots = parts.operands + (operands * parts.operand_next + parts.operand_turn) * static_cast<int>(element);
  parts.slot_tile = cell_warps * cells * (lane_bytes + slot + kMarksOfWarp);
  parts.biases = parts.slots + partition.group_batch / tile * parts.slot_tile;
  parts.sums = parts.biases + (biases ? partition.units() * static_cast<int>(sizeof(float4)) : 0);
  const int turn = cell_warps * (partition.splits - 1) * values * cells * lane_bytes;
  parts.sums_turn = turn;
  parts.end = std::max(parts.sums + 2 * turn, behind_tail + stage);
  return parts;
}

}  // namespace gru::cuda
