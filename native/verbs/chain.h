/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs of the chain have of each other. */
#ifndef LEASED_CHAIN_H
#define LEASED_CHAIN_H

#include "../verbs.h"

/*
 * Whether the body of a frame that is whole is plainly the one legal encoding of an event of its
 * kind; `roots[schema - 1][kind]` is its shape, 0 where there is none.
 */
bool leased_body_is_plain(const struct leased_shape *shapes, const uint32_t *roots,
	const uint8_t *frame, unsigned kind);

#endif
