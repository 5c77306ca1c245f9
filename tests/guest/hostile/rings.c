// SPDX-License-Identifier: Apache-2.0
/* Rings and registers that are wrong, or written at the wrong time or too often. */
#include "hostile.h"

#include <stdio.h>
#include <unistd.h>

static void refused_rings(const char *name, uint64_t desc, uint64_t avail, uint64_t used)
{
	check(name, bring_up(desc, avail, used) & S_NEEDS_RESET, "the device took it");
}

void rings(uint64_t closed)
{
	const uint64_t desc = ARENA + DESC, avail = ARENA + AVAIL, used = ARENA + USED;
	const uint64_t bad[] = { closed, region + region_size, UINT64_MAX & ~15ULL, 0 };
	volatile uint16_t *ring = (volatile uint16_t *)(arena + AVAIL);

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		printf("rings at %#llx\n", (unsigned long long)bad[i]);
		refused_rings("descriptors there", bad[i], avail, used);
		refused_rings("available ring there", desc, bad[i], used);
		refused_rings("used ring there", desc, avail, bad[i]);
	}
	bring_up_well();
	ring[1] = 1000;
	ring_doorbell();
	usleep(200000);
	check("an index too far ahead", REGISTER(8, 0x14) & S_NEEDS_RESET, "the device went on");
	bring_up_well();
	made = 0;
	make_available(0xffff);
	ring_doorbell();
	usleep(200000);
	check("a head that is no descriptor",
	      (REGISTER(8, 0x14) & S_NEEDS_RESET) || used_index() == made, "neither answer");
	bring_up_well();
	expect("a request after all that", STATE, region, 1, ACK);
}

void registers(uint64_t closed)
{
	bring_up_well();
	expect("a request", STATE, region, 1, ACK);
	REGISTER(16, 0x16) = 0;
	REGISTER(16, 0x18) = 2;
	set_ring(0x20, closed);
	set_ring(0x28, closed);
	set_ring(0x30, closed);
	REGISTER(16, 0x1c) = 0;
	REGISTER(32, 0x0c) = UINT32_MAX;
	expect("the rings stay where they were", STATE, region, 1, ACK);
	REGISTER(16, 0x16) = 0xffff;
	check("a queue that is none has no size", REGISTER(16, 0x18) == 0, "it has one");
	REGISTER(16, 0x18) = 64;
	REGISTER(16, 0x1a) = 0;
	REGISTER(16, 0x1c) = 1;
	set_ring(0x20, closed);
	REGISTER(16, 0x16) = 0;
	expect("the queue that is one works", STATE, region, 1, ACK);
	for (size_t at = 0; at < 0x40; at++) {
		REGISTER(8, at) = 0xff;
		if (at % 2 == 0)
			REGISTER(16, at) = 0xffff;
		if (at % 4 == 0)
			REGISTER(32, at) = UINT32_MAX;
		if (at % 8 == 0)
			REGISTER(64, at) = UINT64_MAX;
	}
	for (size_t at = 0; at < 0x8000; at += 4)
		*(volatile uint32_t *)(bar + at) = (uint32_t)(at * 0x9e3779b1);
	bring_up_well();
	expect("a request after all that", STATE, region, 1, ACK);
}

/* Resets right after a request: its answer may come or not, but the next life is a whole one. */
void resets(uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		bring_up_well();
		set_plain(i % 2 ? PLUG : UNPLUG_ALL, region, 1);
		make_available(0);
		ring_doorbell();
	}
	bring_up_well();
	expect("a request after all that", UNPLUG_ALL, 0, 0, ACK);
}

void flood(uint64_t count)
{
	bring_up_well();
	set_plain(PLUG, region, 0);
	for (uint64_t i = 0; i < count; i += QUEUE) {
		for (int j = 0; j < QUEUE; j++)
			make_available(0);
		ring_doorbell();
		if (!wait_used())
			break;
	}
	check("an answer to each", used_index() == made, "not to all");
}
