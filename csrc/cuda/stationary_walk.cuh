// The walk of a warp through all steps of a pass (stationary.cuh), forward or backward as its cells are.
#pragma once

#include "stationary_exchange.cuh"
#include "stationary_product.cuh"

namespace gru::cuda {

// All steps of a warp, which does cells (kDoesCells) or only multiplies. What a pass does with the sums of a step is
// told by Cells (ForwardCells, BackwardCells), an object of which belongs to a lane:
//   kOperands, kValues  operands of a step, which the cells give for the next one; values that splits hand over a unit
//   kLooksBack          whether the operands are of the step before, which may have more sequences
//   Word, kWordsAtOnce  of the exchange in a grid, and how many a thread gathers at once
//   kSlot               bytes that a warp takes from memory in a step
//   first_state, first_operand   what is there before the first step
//   fetch, exchange              what a step takes from memory, on its way through shared memory
//   total                        what splits hand over, of the sums of the three gates
//   compute, store               the cells and their results in memory; word, put: in the exchange of a grid
//   finish                       the state after the last step
template <bool kDoesCells, bool kGrid, class Cells, class Element, int kTiles>
__device__ inline void walk(const StationaryPass& pass, const Place& place, const Product<Element, kTiles>& product,
                            const Cells& cells, bool descending, int last_step) {
  const int first_sequence = place.group * pass.group_batch, exist = place.exist(pass.hidden_size);
  const int sequence = exist > 0 ? place.sequence : kNoSequence;
  unsigned char* const shared = shared_memory();
  auto* const operands = reinterpret_cast<Element*>(shared + pass.parts.operands);
  constexpr int kState = static_cast<int>(sizeof(float2)) * kWarpSize;  // bytes of a warp, before its slot
  unsigned char* const slots = shared + pass.parts.slots + place.warp * (kState + Cells::kSlot);
  const auto state = [&](unsigned char* slot) { return reinterpret_cast<float2*>(slot) + place.lane; };
  const int tiles = hold(pass.tiles), operand_tile = kGrid ? 0 : hold(pass.parts.operand_tile);
  const int operand_stride = Cells::kOperands == 1 ? 0 : hold(pass.parts.operand_next);
  const int last_input = pass.seq_len - 1;
  const bool packed = hold(static_cast<int>(pass.batch_sizes != nullptr)) != 0;

  Steps steps(pass, descending, place.sequence);
  const SplitSums<Cells::kValues> split_sums(pass, place);
  const ClusterExchange<Element, Cells::kOperands> cluster(pass, place);
  const GridExchange<Element, typename Cells::Word> grid(pass, place);
  if constexpr (kDoesCells) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int of_batch = sequence + tile * kSequencesOfTile;
      unsigned char* const slot = slots + tile * pass.parts.slot_tile;
      *state(slot) = cells.first_state(of_batch, of_batch < pass.batch ? exist : 0);
      cells.fetch(slot + kState, steps.row() + tile * pass.tile_stride, of_batch < steps.active() ? exist : 0,
                  place.lane);
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
    const auto gather = [&](int tile) {
      block_sync();  // all have read the tile before
      if (s == 0) {
        cells.first_operand(operands, kSequencesOfTile, first_sequence + tile * kSequencesOfTile);
      } else {
        grid.template gather<Cells::kWordsAtOnce>(operands, pass.row, s, tile,
                                                  [&](Element* to, const auto& words) { cells.put(to, words); });
      }
      block_sync();
    };
    if constexpr (!kGrid) cluster.wait(s);
    if (packed) steps.look_ahead(pass, s + 1);
    int sums_turn = 0, row = steps.row();
    unsigned char* slot = slots;
    for (int tile = 0;;) {
      if constexpr (kGrid) gather(tile);
      const int in_group = tile * kSequencesOfTile;
      const int most = Cells::kLooksBack && active < active_before ? active_before : active;
      float sums[3][4], values[Cells::kValues][4];
      product.template multiply<Cells::kOperands == 1>(sums, now + tile * operand_tile, pass.row, operand_stride, place,
                                                       most - first_sequence - in_group);
      Cells::total(values, sums);
      if constexpr (!kDoesCells) {
        split_sums.give_away(pass, values, sums_turn);
      } else {
        copy_async_wait<0>();
        float2 of_state = *state(slot);
        const int of_batch = sequence + in_group;
        const bool exists_next = s < last_input && of_batch < steps.next_active();
        typename Cells::Inputs inputs;
        cells.exchange(inputs, slot + kState, row + steps.stride(), exists_next ? exist : 0, place.lane);
        float2 own[Cells::kValues];
        split_sums.share(pass, own, values, sums_turn);
        const int in_step = of_batch < active ? exist : 0;
        Pair<Element> results[Cells::kOperands];
        const typename Cells::Outputs outputs = cells.compute(results, own, inputs, of_state, in_step);
        *state(slot) = of_state;
        if (!last) {
          if constexpr (kGrid) {
#pragma unroll
            for (int piece = 0; piece < grid.kPieces; ++piece) {
              grid.publish(s, tile, piece, [&](uint32_t number) { return Cells::word(results, piece, number); });
            }
          } else {
            cluster.keep(pass, next + tile * operand_tile, results);
            if (tile == tiles - 1) cluster.send(pass, next, tiles, s, place);
          }
        }
        cells.store(outputs, row, in_step);
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

  for (int tile = 0; kDoesCells && tile < tiles; ++tile) {
    const int of_batch = sequence + tile * kSequencesOfTile;
    cells.finish(*state(slots + tile * pass.parts.slot_tile), of_batch, of_batch < pass.batch ? exist : 0);
  }
}

// The whole kernel of a block: `product` has its weights.
template <bool kGrid, class Cells, class Element, int kTiles>
__device__ inline void walk_block(const StationaryPass& pass, const Place& place,
                                  const Product<Element, kTiles>& product, const Cells& cells, bool descending,
                                  int last_step) {
  if (all_do_cells(kTiles, sizeof(Element)) || place.does_cells()) {
    walk<true, kGrid>(pass, place, product, cells, descending, hold(last_step));
  } else if constexpr (!all_do_cells(kTiles, sizeof(Element))) {
    walk<false, kGrid>(pass, place, product, cells, descending, hold(last_step));
  }
}

}  // namespace gru::cuda
