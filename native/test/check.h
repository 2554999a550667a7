/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of check-verbs share. */
#ifndef LEASED_CHECK_H
#define LEASED_CHECK_H

/* Print one line, and count what failed. */
void check(const char *what, int good);
void check_chain(void);
void check_dm(void);
void check_projection(void);

#endif
