/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA: modules of PTX text, and the few kernels that the mock can run.
 *
 * Rule: a kernel is known by its entry's name and the types of its parameters, both read from the
 * PTX that was loaded; the mock does to memory what that kernel does. One that it does not know is
 * refused at the launch, never passed over.
 *
 * Does not compile PTX: that the text is right only a GPU can tell.
 */
#define _GNU_SOURCE
#include "cuda.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARAMETERS_MAX 8

struct CUmod_st {
	char *text;
	struct CUfunc_st *functions;
};

struct CUfunc_st {
	struct CUfunc_st *next;
	char name[64], parameters[PARAMETERS_MAX * 5]; /* "u64,u32," */
};

EXPORTED CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
	CUDA_ENTER_CURRENT();
	const char *const text = image;
	REFUSE_UNLESS(strstr(text, ".version") && strstr(text, ".target") &&
			      strstr(text, ".address_size"),
		CUDA_ERROR_INVALID_PTX);
	*module = calloc(1, sizeof **module);
	if (*module)
		(*module)->text = strdup(text);
	return cuda_leave(*module && (*module)->text ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

EXPORTED CUresult cuModuleLoadDataEx(
	CUmodule *module, const void *image, unsigned count, int *options, void **values)
{
	(void)count, (void)options, (void)values;
	return cuModuleLoadData(module, image);
}

EXPORTED CUresult cuModuleUnload(CUmodule module)
{
	CUDA_ENTER_CURRENT();
	while (module->functions) {
		struct CUfunc_st *const first = module->functions;
		module->functions = first->next;
		free(first);
	}
	free(module->text);
	free(module);
	return cuda_leave(CUDA_SUCCESS);
}

/* The text behind `.entry NAME` up to its parameters, or NULL. */
static const char *entry(const char *text, const char *name)
{
	for (const char *at = text; (at = strstr(at, ".entry")); at++) {
		const char *begin = at + strlen(".entry");
		while (isspace((unsigned char)*begin))
			begin++;
		const size_t length = strlen(name);
		if (strncmp(begin, name, length) != 0)
			continue;
		begin += length;
		while (isspace((unsigned char)*begin))
			begin++;
		if (*begin == '(')
			return begin + 1;
	}
	return NULL;
}

static void read_parameters(const char *text, struct CUfunc_st *function)
{
	const char *const end = strchr(text, ')');
	for (const char *at = text; end && (at = strstr(at, ".param")) && at < end; at++) {
		char type[4];
		const size_t used = strlen(function->parameters);
		if (sscanf(at, ".param .%3s", type) == 1 && used + 5 < sizeof function->parameters)
			snprintf(function->parameters + used, sizeof function->parameters - used,
				"%s,", type);
	}
}

EXPORTED CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	CUDA_ENTER_CURRENT();
	const char *const parameters = entry(module->text, name);
	REFUSE_UNLESS(parameters, CUDA_ERROR_NOT_FOUND);
	struct CUfunc_st *const made = calloc(1, sizeof *made);
	REFUSE_UNLESS(made, CUDA_ERROR_OUT_OF_MEMORY);
	snprintf(made->name, sizeof made->name, "%s", name);
	read_parameters(parameters, made);
	made->next = module->functions;
	module->functions = made;
	*function = made;
	return cuda_leave(CUDA_SUCCESS);
}

struct residue {
	uint32_t pattern;
	uint64_t found;
};

/* Of the 16-byte units in this part, those with a word that is not the pattern. */
static CUresult count_units(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	struct residue *const residue = with;
	const struct chunk *const it = &chunks_of(gpu)[chunk];
	if (!it->stored) {
		residue->found += it->fill == residue->pattern ? 0 : bytes / 16;
		return CUDA_SUCCESS;
	}
	uint32_t *const words = malloc(bytes);
	if (!words || memory_read(gpu, chunk, from, words, bytes)) {
		free(words);
		return CUDA_ERROR_LAUNCH_FAILED;
	}
	for (uint64_t unit = 0; unit < bytes / 16; unit++)
		for (int i = 0; i < 4; i++)
			if (words[unit * 4 + (uint64_t)i] != residue->pattern) {
				residue->found++;
				break;
			}
	free(words);
	return CUDA_SUCCESS;
}

static CUresult read_u64(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	return memory_read(gpu, chunk, from, with, bytes) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}

static CUresult write_u64(uint32_t gpu, uint32_t chunk, uint64_t from, uint64_t bytes, void *with)
{
	return memory_write(gpu, chunk, from, with, bytes) ? CUDA_ERROR_LAUNCH_FAILED
							   : CUDA_SUCCESS;
}

/* leased_residue(base, units, pattern, found): *found += the units that differ. */
static CUresult run_residue(int device, CUstream stream, void **parameters)
{
	(void)device, (void)stream;
	struct residue residue = { .pattern = *(const uint32_t *)parameters[2] };
	const CUdeviceptr base = *(const uint64_t *)parameters[0];
	const uint64_t units = *(const uint64_t *)parameters[1];
	const CUdeviceptr found = *(const uint64_t *)parameters[3];
	CUresult result = cuda_each(base, units * 16, count_units, &residue);
	if (result || !residue.found)
		return result;
	uint64_t total = 0;
	result = cuda_each(found, sizeof total, read_u64, &total);
	if (result)
		return result;
	total += residue.found;
	return cuda_each(found, sizeof total, write_u64, &total);
}

/* leased_spin(flag): until the word at `flag` is not zero. */
static CUresult run_spin(int device, CUstream stream, void **parameters)
{
	const CUdeviceptr flag = *(const uint64_t *)parameters[0];
	if (!mapping_at(flag, 4))
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	cuda_spin(stream, device, flag);
	return CUDA_SUCCESS;
}

static const struct {
	const char *name, *parameters;
	CUresult (*run)(int device, CUstream stream, void **parameters);
} kernels[] = {
	{ "leased_residue", "u64,u64,u32,u64,", run_residue },
	{ "leased_spin", "u64,", run_spin },
};

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
	unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
	unsigned shared_bytes, CUstream stream, void **parameters, void **extra)
{
	(void)shared_bytes;
	CUDA_ENTER_CURRENT();
	REFUSE_UNLESS(grid_x && grid_y && grid_z && block_x && block_y && block_z &&
			      (uint64_t)block_x * block_y * block_z <= 1024 && parameters && !extra,
		CUDA_ERROR_INVALID_VALUE);
	for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
		if (strcmp(kernels[i].name, function->name) == 0 &&
			strcmp(kernels[i].parameters, function->parameters) == 0)
			return cuda_leave(kernels[i].run(current, stream, parameters));
	return cuda_leave(CUDA_ERROR_NOT_SUPPORTED);
}
