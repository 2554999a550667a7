/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A binary heap of slots by `due_ns`, with each slot knowing its place, so that a renewal moves one
 * entry.
 */
#include "reaper.h"

static void place(struct reaper *r, uint32_t position, uint32_t slot)
{
	r->heap[position] = slot;
	r->slots[slot].heap_at = position;
}

static uint64_t due_at(const struct reaper *r, uint32_t position)
{
	return r->slots[r->heap[position]].due_ns;
}

static void rise(struct reaper *r, uint32_t position)
{
	uint32_t slot = r->heap[position];
	while (position > 0) {
		uint32_t parent = (position - 1) / 2;
		if (due_at(r, parent) <= r->slots[slot].due_ns)
			break;
		place(r, position, r->heap[parent]);
		position = parent;
	}
	place(r, position, slot);
}

static void sink(struct reaper *r, uint32_t position)
{
	uint32_t slot = r->heap[position];
	for (;;) {
		uint32_t child = 2 * position + 1;
		if (child >= r->heap_length)
			break;
		if (child + 1 < r->heap_length && due_at(r, child + 1) < due_at(r, child))
			child++;
		if (r->slots[slot].due_ns <= due_at(r, child))
			break;
		place(r, position, r->heap[child]);
		position = child;
	}
	place(r, position, slot);
}

/* Put a slot into the heap, or move it. NEVER takes it out. */
void heap_set(struct reaper *r, uint32_t at, uint64_t due_ns)
{
	struct slot *slot = &r->slots[at];
	if (due_ns == NEVER) {
		heap_drop(r, at);
		slot->due_ns = NEVER;
		return;
	}
	slot->due_ns = due_ns;
	if (slot->heap_at == NONE)
		place(r, r->heap_length++, at);
	rise(r, slot->heap_at);
	sink(r, slot->heap_at);
}

void heap_drop(struct reaper *r, uint32_t at)
{
	uint32_t position = r->slots[at].heap_at;
	if (position == NONE)
		return;
	r->slots[at].heap_at = NONE;
	uint32_t last = r->heap[--r->heap_length];
	if (position < r->heap_length) {
		place(r, position, last);
		rise(r, position);
		sink(r, r->slots[last].heap_at);
	}
}

uint64_t heap_first_ns(const struct reaper *r)
{
	return r->heap_length ? due_at(r, 0) : NEVER;
}
