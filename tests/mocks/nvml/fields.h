/* SPDX-License-Identifier: Apache-2.0 */
/* A GPU's fields by name, for commands. */
#ifndef LEASED_MOCK_FIELDS_H
#define LEASED_MOCK_FIELDS_H

#include "machine.h"

/* False: no such field, or not a value for it. */
bool field_set(struct gpu *gpu, const char *name, const char *value);
/* `name=value` lines; how much of `to` was used. */
size_t field_show(const struct gpu *gpu, char *to, size_t size);

#endif
