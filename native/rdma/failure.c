/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What failed first: an errno says why, the answer also says at what.
 *
 * Does not print: the worker that asked puts both into its error.
 */
#include "rdma.h"

#include <errno.h>

static const char *first;

/* Remember what failed, if nothing did before; returns -errno. A library that forgot to set one
 * gets EIO. */
int failed(const char *at, int error)
{
	if (first == NULL)
		first = at;
	if (error < 0)
		error = -error;
	return error == 0 ? -EIO : -error;
}

const char *failed_at(void)
{
	return first == NULL ? "" : first;
}

void failure_forget(void)
{
	first = NULL;
}
