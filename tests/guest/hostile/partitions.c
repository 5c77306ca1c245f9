// SPDX-License-Identifier: Apache-2.0
/* Lies about partitions. */
#include "hostile.h"

#include <stdio.h>
#include <string.h>

#define RECORD 4152
#define RECORD_U32(at) (*(volatile uint32_t *)(arena + REPLY + (at)))
#define RECORD_U64(at) (*(volatile uint64_t *)(arena + REPLY + (at)))

static int part(uint16_t type, uint32_t id, uint16_t flags, uint16_t event, uint64_t arg,
		uint32_t room)
{
	memset((void *)(arena + REQUEST), 0, 24);
	*(volatile uint16_t *)(arena + REQUEST) = type;
	*(volatile uint32_t *)(arena + REQUEST + 8) = id;
	*(volatile uint16_t *)(arena + REQUEST + 12) = flags;
	*(volatile uint16_t *)(arena + REQUEST + 14) = event;
	*(volatile uint64_t *)(arena + REQUEST + 16) = arg;
	set_desc(DESC, 0, ARENA + REQUEST, 24, F_NEXT, 1);
	set_desc(DESC, 1, ARENA + REPLY, room, F_WRITE, 0);
	return submit().answer;
}

/* Both are wanted and neither is there; the first has more blocks than the second. */
void partitions(void)
{
	uint64_t first_run, first_size, second_run;
	uint32_t first, second;

	bring_up_well();
	read_config();
	answered("query", part(PART_QUERY, 0, 0, 0, 0, RECORD), ACK);
	first = RECORD_U32(16);
	answered("query the next", part(PART_QUERY, first + 1, 0, 0, 0, RECORD), ACK);
	second = RECORD_U32(16);
	answered("query past the last", part(PART_QUERY, second + 1, 0, 0, 0, RECORD), NACK);
	answered("query the highest number", part(PART_QUERY, -1, 0xffff, 0xffff, -1, RECORD), NACK);
	answered("query without room", part(PART_QUERY, 0, 0, 0, 0, RECORD - 1), ERROR);
	answered("plug without room", part(PART_PLUG, first, 0, 0, 0, RECORD - 1), ERROR);
	answered("release what is not there", part(PART_RELEASE, first, 0, 0, 0, 10), ERROR);
	answered("release the unknown", part(PART_RELEASE, 99999, 0, 0, 0, 10), ERROR);
	answered("plug the unknown", part(PART_PLUG, 99999, 0, 0, 0, RECORD), NACK);
	answered("plug the first", part(PART_PLUG, first, 0, 0, 0, RECORD), ACK);
	first_run = RECORD_U64(56);
	first_size = RECORD_U64(64);
	answered("plug it again", part(PART_PLUG, first, 0, 0, 0, RECORD), ERROR);
	answered("plug the second", part(PART_PLUG, second, 0, 0, 0, RECORD), ACK);
	second_run = RECORD_U64(56);
	fill(first_run, first_run + first_size);
	fill(second_run, second_run + 2 * block);
	answered("shrink what is wanted", part(PART_SHRINK, first, 1, 0, first_run, 10), NACK);
	answered("shrink the other's", part(PART_SHRINK, first, 1, 0, second_run, 10), ERROR);
	answered("shrink nothing", part(PART_SHRINK, first, 0, 0, first_run, 10), ERROR);
	answered("shrink too much", part(PART_SHRINK, first, 0xffff, 0, first_run, 10), ERROR);
	answered("shrink round the end", part(PART_SHRINK, first, 2, 0, -block, 10), ERROR);
	answered("shrink half a block", part(PART_SHRINK, first, 1, 0, first_run + PAGE, 10), ERROR);
	answered("notify of no event", part(PART_NOTIFY, first, 0, 0xffff, 0, 10), ERROR);
	answered("notify of the unknown", part(PART_NOTIFY, 99999, 0, 1, 0, 10), ERROR);
	answered("boast", part(PART_NOTIFY, first, 0, 6, UINT64_MAX, 10), ACK);
	answered("plug by address", request(PLUG, region, 1), ERROR);
	answered("unplug by address", request(UNPLUG, first_run, 1), ERROR);
	answered("release the first", part(PART_RELEASE, first, 0, 0, 0, 10), ACK);
	answered("release it again", part(PART_RELEASE, first, 0, 0, 0, 10), ERROR);
	answered("shrink it", part(PART_SHRINK, first, 1, 0, first_run, 10), ERROR);
	fill(second_run, second_run + block);
	printf("released %#llx kept %#llx\n", (unsigned long long)first_run,
	       (unsigned long long)second_run);
}
