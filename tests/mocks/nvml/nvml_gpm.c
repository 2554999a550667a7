/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVML: GPM, rates between two samples.
 *
 * Rule: Hopper and later; a metric that the mock has no source for says NOT_SUPPORTED by itself.
 * Busy is the time with a kernel running, from the clients.
 */
#include "nvml.h"

#include <stdlib.h>

struct nvmlGpmSample_st {
	struct target target;
	uint64_t at_ns, busy_ns, sent, received;
};

EXPORTED nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support)
{
	ENTER(device, 0);
	WANT(support->version == 1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	support->isSupportedDevice = GPU_OF(target)->gpm_capable;
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample)
{
	ENTER_SYSTEM();
	*sample = calloc(1, sizeof **sample);
	return *sample ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORTED nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
	ENTER_SYSTEM();
	WANT(sample, NVML_ERROR_INVALID_ARGUMENT);
	free(sample);
	return NVML_SUCCESS;
}

static nvmlReturn_t take(struct target target, nvmlGpmSample_t sample)
{
	struct machine *const machine = machine_open();
	const uint64_t now = now_ns();
	WANT(GPU_OF(target)->gpm_capable, NVML_ERROR_NOT_SUPPORTED);
	*sample = (struct nvmlGpmSample_st){ .target = target, .at_ns = now };
	for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
		const struct client *const client = &machine->client[i];
		if (client->kind == CLIENT_NONE || client->gpu != target.gpu ||
			(target.gi != NONE && client->gi != target.gi))
			continue;
		sample->busy_ns += client->busy_ns;
		if (client->running)
			sample->busy_ns += now - client->busy_since_ns;
	}
	for (uint32_t i = 0; i < LINKS_MAX; i++) {
		sample->sent += GPU_OF(target)->link[i].sent;
		sample->received += GPU_OF(target)->link[i].received;
	}
	return NVML_SUCCESS;
}

EXPORTED nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample)
{
	ENTER(device, LOCKED);
	WANT(!GPU_OF(target)->mig_mode, nvml_leave(NVML_ERROR_NOT_SUPPORTED));
	return nvml_leave(take(target, sample));
}

EXPORTED nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned gi, nvmlGpmSample_t sample)
{
	ENTER(device, LOCKED);
	WANT(instance_find(target.gpu, gi), nvml_leave(NVML_ERROR_INVALID_ARGUMENT));
	target.gi = gi;
	return nvml_leave(take(target, sample));
}

EXPORTED nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
	ENTER_SYSTEM();
	WANT(get->version == 1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
	const struct nvmlGpmSample_st *const from = get->sample1, *const to = get->sample2;
	WANT(from && to && to->at_ns > from->at_ns, NVML_ERROR_INVALID_ARGUMENT);
	const double lasted_s = (double)(to->at_ns - from->at_ns) / 1e9;
	double share = 100.0 * (double)(to->busy_ns - from->busy_ns) / 1e9 / lasted_s;
	if (to->busy_ns < from->busy_ns) /* the client that was busy has gone */
		share = 0.0;
	for (unsigned i = 0; i < get->numMetrics; i++) {
		nvmlGpmMetric_t *const it = &get->metrics[i];
		it->nvmlReturn = NVML_SUCCESS;
		switch (it->metricId) {
		case 1: /* graphics */
		case 2: it->value = share > 100.0 ? 100.0 : share; break;
		case 3:
		case 5:
		case 10:
		case 11:
		case 12:
		case 13:
		case 20:
		case 21: it->value = 0.0; break;
		case 60:
			it->value = (double)(to->received - from->received) / lasted_s / 1048576.0;
			break;
		case 61: it->value = (double)(to->sent - from->sent) / lasted_s / 1048576.0; break;
		default: it->nvmlReturn = NVML_ERROR_NOT_SUPPORTED; break;
		}
	}
	return NVML_SUCCESS;
}
