/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of libcrypto and zlib as the chain uses, and what here is quicker than they are. Both are
 * what the interpreter itself runs on, so they are on every host that can build or run this, their
 * headers are not.
 *
 * SHA-256 by its own three functions: EVP costs more per call than a short record takes to hash.
 */
#ifndef LEASED_DIGESTS_H
#define LEASED_DIGESTS_H

#include "../verbs.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 112 bytes in OpenSSL 1.1 and 3; nobody but libcrypto looks inside. */
typedef struct {
	uint64_t room[16];
} SHA256_CTX;

int SHA256_Init(SHA256_CTX *context);
int SHA256_Update(SHA256_CTX *context, const void *data, size_t bytes);
int SHA256_Final(unsigned char *digest, SHA256_CTX *context);

unsigned long crc32(unsigned long crc, const unsigned char *data, unsigned bytes);

struct leased_message {
	const uint8_t *data;
	size_t bytes;
	uint8_t *digest; /* room for LEASED_HASH_BYTES, not within any message's data */
};

/*
 * The digest of head || data of each message (verbs/sha256.c). `head_bytes` is at most 64. `each`
 * is the one to call; the other two are how, and `by_two` is for a processor that has it.
 */
void leased_sha256_each(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count);
void leased_sha256_by_two(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count);
void leased_sha256_by_library(const uint8_t *head, size_t head_bytes,
	const struct leased_message *messages, size_t count);
bool leased_sha256_has_two(void);

/* The same (verbs/crc.c), at many times its speed where the processor can. */
uint32_t leased_crc32(uint32_t crc, const unsigned char *data, size_t bytes);

#endif
