/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names by which a command sets and shows what a GPU is and how it does.
 *
 * Rule: one row a field; a name that is not here is an error, never ignored.
 */
#include "fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct field {
	const char *name;
	size_t offset, size;
	bool text;
};

#define NUMBER(member)                                                                             \
	{                                                                                          \
#member, offsetof(struct gpu, member), sizeof((struct gpu *)0)->member, false      \
	}
#define TEXT(member)                                                                               \
	{                                                                                          \
#member, offsetof(struct gpu, member), sizeof((struct gpu *)0)->member, true       \
	}

static const struct field fields[] = {
	NUMBER(minor),
	NUMBER(pci_domain),
	NUMBER(pci_bus),
	NUMBER(pci_device),
	NUMBER(pci_device_id),
	NUMBER(pci_subsystem_id),
	TEXT(name),
	TEXT(uuid),
	TEXT(serial),
	TEXT(vbios),
	TEXT(part),
	NUMBER(total_mib),
	NUMBER(reserved_mib),
	NUMBER(bar1_mib),
	NUMBER(context_mib),
	NUMBER(cc_major),
	NUMBER(cc_minor),
	NUMBER(sms),
	NUMBER(numa_node),
	NUMBER(memory_node),
	NUMBER(power_limit_mw),
	NUMBER(clock_mhz),
	NUMBER(clock_memory_mhz),
	NUMBER(mig_capable),
	NUMBER(gpm_capable),
	NUMBER(graphics),
	NUMBER(compute_mode),
	NUMBER(persistence),
	NUMBER(mig_mode),
	NUMBER(mig_pending),
	NUMBER(accounting),
	NUMBER(ecc),
	NUMBER(utilization),
	NUMBER(utilization_memory),
	NUMBER(power_mw),
	NUMBER(temperature_c),
	NUMBER(temperature_memory_c),
	NUMBER(clocks_event_reasons),
	NUMBER(energy_mj),
	NUMBER(throttle_ns),
	NUMBER(ecc_corrected),
	NUMBER(ecc_uncorrected),
	NUMBER(ecc_lifetime_corrected),
	NUMBER(ecc_lifetime_uncorrected),
	NUMBER(remap_correctable),
	NUMBER(remap_uncorrectable),
	NUMBER(remap_pending),
	NUMBER(remap_failure),
	NUMBER(retired_pending),
	NUMBER(repair_channel),
	NUMBER(repair_tpc),
	NUMBER(unrepairable),
	NUMBER(recovery_action),
	NUMBER(fabric_state),
	NUMBER(fabric_status),
	NUMBER(fabric_clique),
	NUMBER(fabric_health),
	NUMBER(fabric_summary),
	NUMBER(lost),
	NUMBER(draining),
	NUMBER(removed),
	NUMBER(scrub_on_free),
	NUMBER(attach_ms),
	NUMBER(release_ms),
	NUMBER(release_busy_ms),
	NUMBER(latch_on_kill),
	NUMBER(latched),
	NUMBER(mig_in_use),
};

bool field_set(struct gpu *gpu, const char *name, const char *value)
{
	for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
		const struct field *const field = &fields[i];
		if (strcmp(field->name, name) != 0)
			continue;
		char *const at = (char *)gpu + field->offset;
		if (field->text) {
			snprintf(at, field->size, "%s", value);
			return true;
		}
		char *end;
		const long long number = strtoll(value, &end, 0);
		if (*end || end == value)
			return false;
		if (field->size == sizeof(uint64_t))
			*(uint64_t *)(void *)at = (uint64_t)number;
		else
			*(uint32_t *)(void *)at = (uint32_t)number;
		return true;
	}
	return false;
}

size_t field_show(const struct gpu *gpu, char *to, size_t size)
{
	size_t used = 0;
	for (size_t i = 0; i < sizeof fields / sizeof fields[0] && used < size; i++) {
		const struct field *const field = &fields[i];
		const char *const at = (const char *)gpu + field->offset;
		int wrote;
		if (field->text)
			wrote = snprintf(to + used, size - used, "%s=%s\n", field->name, at);
		else if (field->size == sizeof(uint64_t))
			wrote = snprintf(to + used, size - used, "%s=%llu\n", field->name,
				(unsigned long long)*(const uint64_t *)(const void *)at);
		else
			wrote = snprintf(to + used, size - used, "%s=%u\n", field->name,
				*(const uint32_t *)(const void *)at);
		used += (size_t)wrote;
	}
	return used < size ? used : size;
}
