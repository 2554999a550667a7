/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of libcrypto and zlib as the chain uses. Both are what the interpreter itself runs on, so
 * they are on every host that can build or run this, their headers are not.
 *
 * SHA-256 by its own three functions: EVP costs more per call than a short record takes to hash.
 */
#ifndef LEASED_DIGESTS_H
#define LEASED_DIGESTS_H

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

/* The same (verbs/crc.c), at many times its speed where the processor can. */
uint32_t leased_crc32(uint32_t crc, const unsigned char *data, size_t bytes);

#endif
