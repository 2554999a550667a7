/* SPDX-License-Identifier: Apache-2.0 */
/* Columns that grow: arrays of one length, each made longer by itself. */
#ifndef LEASED_COLUMNS_H
#define LEASED_COLUMNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_FIRST = 1024 };

static inline bool wider(void *column, size_t room, size_t bytes)
{
	void *old, *new;
	memcpy(&old, column, sizeof old);
	new = realloc(old, room * bytes);
	if (new == NULL)
		return false;
	memcpy(column, &new, sizeof new);
	return true;
}

#define WIDER(rows, column, room) wider(&(rows)->column, room, sizeof *(rows)->column)

#endif
