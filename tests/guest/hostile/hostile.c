// SPDX-License-Identifier: Apache-2.0
/*
 * hostile COMMAND [argument...]: a guest that attacks its monitor through a virtio-mem device.
 *
 * It takes the device from its driver and drives it by itself, through /dev/mem, with rings and
 * buffers in memory that the kernel was told to leave alone (memmap=4M$0xf000000). Numbers are
 * read as C does. Each check prints "ok NAME" or "FAIL NAME: why"; the status is the number of
 * failures. Every chain that is made available must come back as one used entry.
 *
 *   info                      where the region is, its blocks, what is plugged and requested
 *   requests                  every request that no driver makes, and some that one does
 *   chains                    chains of descriptors of every wrong form
 *   rings CLOSED              rings that are no rings, also at the address CLOSED
 *   registers CLOSED          registers written when they must not be
 *   resets COUNT              device resets, each in the middle of something
 *   flood COUNT               malformed requests, as fast as they go
 *   descriptors FROM TO STEP  buffers at each of these addresses, all of them closed
 *   plug FROM BLOCKS, unplug FROM BLOCKS
 *   fill FROM TO              writes to each page
 *   hoard                     plugs all it can, fills it, gives back all but a block in 128 MiB
 *   touch ADDRESS KIND        read, write, execute, or emulate: a write by an emulated instruction
 *   own-ground                rings and a reply in memory that the request itself gives back
 *   channel                   takes the second device, for partitions, and brings its channel up
 *   partitions                lies about the two partitions that the host wants there
 */
#include "hostile.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const answers[] = { "ACK", "NACK", "BUSY", "ERROR", "none" };

static int failures;

void fail(const char *name, const char *format, ...)
{
	va_list list;

	printf("FAIL %s: ", name);
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	printf("\n");
	failures++;
}

void check(const char *name, int good, const char *why)
{
	if (good)
		printf("ok %s\n", name);
	else
		fail(name, "%s", why);
}

const char *answer_name(int answer)
{
	return answer >= ACK && answer <= NONE ? answers[answer] : "no answer that there is";
}

void answered(const char *name, int got, int answer)
{
	check(name, got == answer, answer_name(got));
}

void expect(const char *name, uint16_t type, uint64_t addr, uint16_t blocks, int answer)
{
	answered(name, request(type, addr, blocks), answer);
}

uint64_t number(const char *text)
{
	return strtoull(text, NULL, 0);
}

static void run(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	uint64_t a = argc > 2 ? number(argv[2]) : 0;
	uint64_t b = argc > 3 ? number(argv[3]) : 0;
	uint64_t c = argc > 4 ? number(argv[4]) : 0;

	if (!strcmp(command, "info"))
		printf("region %#llx %#llx block %#llx usable %#llx plugged %#llx requested %#llx\n",
		       (unsigned long long)region, (unsigned long long)region_size,
		       (unsigned long long)block, (unsigned long long)usable,
		       (unsigned long long)plugged, (unsigned long long)requested);
	else if (!strcmp(command, "requests"))
		requests();
	else if (!strcmp(command, "chains"))
		chains();
	else if (!strcmp(command, "rings"))
		rings(a);
	else if (!strcmp(command, "registers"))
		registers(a);
	else if (!strcmp(command, "resets"))
		resets(a);
	else if (!strcmp(command, "flood"))
		flood(a);
	else if (!strcmp(command, "descriptors") && c)
		descriptors(a, b, c);
	else if (!strcmp(command, "hoard"))
		hoard();
	else if (!strcmp(command, "fill"))
		fill(a, b);
	else if (!strcmp(command, "touch") && argc > 3)
		touch(a, argv[3]);
	else if (!strcmp(command, "own-ground"))
		own_ground();
	else if (!strcmp(command, "channel"))
		bring_up_well();
	else if (!strcmp(command, "partitions"))
		partitions();
	else if (!strcmp(command, "plug") || !strcmp(command, "unplug")) {
		bring_up_well();
		change(command, command[0] == 'p' ? PLUG : UNPLUG, a, b);
	} else {
		printf("hostile: unknown command %s\n", command);
		failures++;
	}
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";

	open_device(!strcmp(command, "channel") || !strcmp(command, "partitions"));
	run(argc, argv);
	return failures;
}
