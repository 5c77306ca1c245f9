// SPDX-License-Identifier: Apache-2.0
/* Memory that is not the guest's: touched, pointed at, kept, and given back under its own feet. */
#include "hostile.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Sends the device to closed memory, for each of the four ways to point there. */
void descriptors(uint64_t from, uint64_t to, uint64_t step)
{
	uint64_t bad = 0;

	bring_up_well();
	for (uint64_t at = from; at < to; at += step) {
		struct outcome outcome;

		pair(at, 24, ARENA + REPLY, 10, F_WRITE);
		outcome = submit();
		bad += !outcome.used || outcome.answer != ERROR;
		pair(ARENA + REQUEST, 24, at, 10, F_WRITE);
		outcome = submit();
		bad += !outcome.used || outcome.len != 0;
		indirect(at, 32, 0);
		outcome = submit();
		bad += !outcome.used || outcome.len != 0;
	}
	check("closed memory stays closed to the device", bad == 0, "it answered there");
	expect("a request after all that", STATE, region, 1, ACK);
}

void fill(uint64_t from, uint64_t to)
{
	volatile uint8_t *at = physical(from, to - from, PROT_READ | PROT_WRITE, mem_fd);

	for (uint64_t offset = 0; offset < to - from; offset += PAGE)
		at[offset] = 0x5a;
	munmap((void *)at, to - from);
}

void change(const char *name, uint16_t type, uint64_t from, uint64_t blocks)
{
	while (blocks) {
		uint16_t count = blocks > 1024 ? 1024 : (uint16_t)blocks;

		expect(name, type, from, count, ACK);
		from += count * block;
		blocks -= count;
	}
}

void hoard(void)
{
	uint64_t stride = 128 * MIB, kept = 0;

	bring_up_well();
	read_config();
	change("plug", PLUG, region, requested / block);
	fill(region, region + requested);
	for (uint64_t at = region; at < region + requested; at += stride, kept++)
		change("unplug", UNPLUG, at + block, stride / block - 1);
	printf("kept %llu\n", (unsigned long long)(kept * block));
}

/* The device gives back the memory that its answer, or its own rings, lie in. */
void own_ground(void)
{
	volatile uint8_t *ground = physical(region, 2 * PAGE, PROT_READ | PROT_WRITE, mem_fd);
	struct outcome outcome;

	bring_up_well();
	read_config();
	expect("plug a block for a reply", PLUG, region, 1, ACK);
	ground[0] = 1;
	pair(ARENA + REQUEST, 24, region, 10, F_WRITE);
	set_request(REQUEST, UNPLUG, region, 1);
	outcome = submit();
	check("a reply in what is given back", outcome.used && outcome.len == 0, "it is there");
	read_config();
	check("it was given back", plugged == 0, "it was not");

	bring_up_well();
	expect("plug a block for rings", PLUG, region, 1, ACK);
	memset((void *)ground, 0, 2 * PAGE);
	check("rings there", !(bring_up(region, region + 0x800, region + PAGE) & S_NEEDS_RESET),
	      "the device does not take them");
	set_request(REQUEST, UNPLUG, region, 1);
	memcpy((void *)ground, &(struct desc){ ARENA + REQUEST, 24, F_NEXT, 1 }, 16);
	memcpy((void *)(ground + 16), &(struct desc){ ARENA + REPLY, 10, F_WRITE, 0 }, 16);
	*(volatile uint16_t *)(ground + 0x802) = 1;
	ring_doorbell();
	for (int i = 0; i < 1000 && !(REGISTER(8, 0x14) & S_NEEDS_RESET); i++)
		usleep(1000);
	check("rings that were given back", REGISTER(8, 0x14) & S_NEEDS_RESET, "it goes on");
	bring_up_well();
	expect("a request after all that", STATE, region, 1, ACK);
	read_config();
	check("they were given back", plugged == 0, "they were not");
}

void touch(uint64_t addr, const char *kind)
{
	uint64_t page = addr & ~(PAGE - 1);
	int protection = PROT_READ | PROT_WRITE | PROT_EXEC;
	volatile uint8_t *at = (volatile uint8_t *)physical(page, PAGE, protection, mem_fd);

	at += addr - page;
	/* Out before the guest is stopped. */
	printf("touching\n");
	fflush(stdout);
	if (!strcmp(kind, "read")) {
		printf("read %#x\n", *at);
	} else if (!strcmp(kind, "write")) {
		*at = 0xaa;
		printf("written\n");
	} else if (!strcmp(kind, "execute")) {
		((void (*)(void))(uintptr_t)at)();
	} else if (!strcmp(kind, "emulate")) {
		/* The device's register makes KVM emulate this, its other half as well. */
		const volatile void *source = bar + common;
		volatile void *target = at;

		__asm__ volatile("movsl" : "+S"(source), "+D"(target) : : "memory");
		printf("emulated\n");
	}
}
