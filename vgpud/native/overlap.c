/*
 * Where two buffers share memory, and which positions their common bytes have in each: by sorting
 * their extents by address and going through both lists at once.
 *
 * A guest chooses how many extents there are and in which order, so all of this is done in steps:
 * each function does a part of its work and is called again, with the same state, until it returns
 * nonzero.
 */
#include "native.h"

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Sort by start, stably: a merge sort from runs of one on. `most` items are moved in one call. At
 * the end the result is in `spare` if state->swapped. The state is zeros at first. */
int vgpud_sort_places(vgpud_place *places, vgpud_place *spare, uint64_t count, vgpud_sort *state,
                      uint64_t most)
{
    if (state->width == 0) {
        state->width = 1;
        state->right = least(1, count);
    }
    while (state->width < count) {
        const vgpud_place *from = state->swapped ? spare : places;
        vgpud_place *to = state->swapped ? places : spare;

        while (state->out != count) {
            uint64_t middle = least(state->low + state->width, count);
            uint64_t high = least(middle + state->width, count);

            if (most-- == 0)
                return 0;
            if (state->left != middle &&
                (state->right == high || from[state->left].start <= from[state->right].start))
                to[state->out++] = from[state->left++];
            else
                to[state->out++] = from[state->right++];
            if (state->out == high) {
                state->low = state->left = high;
                state->right = least(high + state->width, count);
            }
        }
        state->swapped = !state->swapped;
        state->width *= 2;
        state->low = state->left = state->out = 0;
        state->right = least(state->width, count);
    }
    return 1;
}

/*
 * Go through two sorted lists, `most` extents in one call, and note in the state what they share.
 *
 * Extents are met in the order of their starts, so one shares memory with a former one of the other
 * list if that list has reached beyond its start. Where the extents of each list are disjoint, that
 * can only be the last one. The state is zeros at first, but for `last` and `other_last`.
 */
int vgpud_sweep_places(const vgpud_place *places, uint64_t count, const vgpud_place *others,
                       uint64_t other_count, vgpud_sweep *state, uint64_t most)
{
    while (state->at != count || state->other_at != other_count) {
        const vgpud_place *place, *other;

        if (most-- == 0)
            return 0;
        if (state->other_at == other_count ||
            (state->at != count && places[state->at].start <= others[state->other_at].start)) {
            place = &places[state->at++];
            state->twice |= place->start < state->last;
            other = state->other_at != 0 && place->start < state->other_last
                        ? &others[state->other_at - 1]
                        : NULL;
            if (place->end > state->last)
                state->last = place->end;
        } else {
            other = &others[state->other_at++];
            state->twice |= other->start < state->other_last;
            place = state->at != 0 && other->start < state->last ? &places[state->at - 1] : NULL;
            if (other->end > state->other_last)
                state->other_last = other->end;
        }
        if (place != NULL && other != NULL) {
            int64_t later = (place->start - place->position) - (other->start - other->position);

            state->shared = 1;
            state->later |= later > 0;
            state->earlier |= later < 0;
        }
    }
    return 1;
}
