// SPDX-License-Identifier: Apache-2.0
/* Chains of descriptors of every wrong form. */
#include "hostile.h"

#include <unistd.h>

/* Submits what was set up; the device writes LEN bytes, ANSWER among them, or what it likes. */
static void expect_chain(const char *name, int len, int answer)
{
	struct outcome outcome = submit();

	check(name, outcome.used, "no used entry, or another head's");
	if (len >= 0 && ((int)outcome.len != len || outcome.answer != answer))
		fail(name, "%u bytes, %s", outcome.len, answer_name(outcome.answer));
}

void pair(uint64_t request_at, uint32_t request_len, uint64_t reply_at, uint32_t reply_len,
	  uint16_t reply_flags)
{
	set_request(REQUEST, STATE, region, 1);
	set_desc(DESC, 0, request_at, request_len, F_NEXT, 1);
	set_desc(DESC, 1, reply_at, reply_len, reply_flags, 0);
}

void indirect(uint64_t at, uint32_t len, uint16_t flags)
{
	set_request(REQUEST, STATE, region, 1);
	set_desc(DESC, 0, at, len, F_INDIRECT | flags, 1);
	set_desc(DESC, 1, ARENA + REPLY, 10, F_WRITE, 0);
	set_desc(TABLE, 0, ARENA + REQUEST, 24, F_NEXT, 1);
	set_desc(TABLE, 1, ARENA + REPLY, 10, F_WRITE, 0);
}

static void chains_of_two(void)
{
	uint64_t request_at = ARENA + REQUEST, reply_at = ARENA + REPLY;

	pair(request_at, 24, reply_at, 10, F_WRITE);
	expect_chain("a good chain", 10, ACK);
	pair(request_at, 23, reply_at, 10, F_WRITE);
	expect_chain("a short request", 10, ERROR);
	pair(request_at, 24, reply_at, 9, F_WRITE);
	expect_chain("a short reply", 0, NONE);
	pair(request_at, 24, reply_at, 10, 0);
	expect_chain("a read-only reply", 0, NONE);
	pair(request_at, 0, reply_at, 0, F_WRITE);
	expect_chain("empty descriptors", 0, NONE);
	pair(request_at, 24, request_at, 24, F_WRITE);
	expect_chain("a reply over its request", -1, 0);
	check("that reply", arena[REQUEST] == ACK, "another");
	pair(UINT64_MAX - 5, 24, reply_at, 10, F_WRITE);
	expect_chain("a request at the end of addresses", 10, ERROR);
	pair(request_at, 24, UINT64_MAX - 5, 10, F_WRITE);
	expect_chain("a reply at the end of addresses", 0, NONE);
	pair(region + region_size, 24, reply_at, 10, F_WRITE);
	expect_chain("a request past the end of memory", 10, ERROR);
	pair(request_at, UINT32_MAX, reply_at, UINT32_MAX, F_WRITE);
	expect_chain("descriptors of 4 GiB", -1, 0);
	pair(request_at, 24, reply_at, 10, F_WRITE);
	set_desc(DESC, 0, reply_at, 10, F_WRITE | F_NEXT, 1);
	set_desc(DESC, 1, request_at, 24, 0, 0);
	expect_chain("a reply before its request", 10, ERROR);
}

static void chains_of_others(void)
{
	uint64_t request_at = ARENA + REQUEST, reply_at = ARENA + REPLY;

	set_desc(DESC, 0, request_at, 24, 0, 0);
	expect_chain("no reply", 0, NONE);
	set_desc(DESC, 0, reply_at, 10, F_WRITE, 0);
	expect_chain("no request", 10, ERROR);
	pair(request_at, 24, reply_at, 10, F_WRITE | F_NEXT);
	expect_chain("a loop", 0, NONE);
	set_desc(DESC, 0, request_at, 24, F_NEXT, 0);
	expect_chain("a descriptor that follows itself", 0, NONE);
	set_desc(DESC, 0, request_at, 24, F_NEXT, 0xffff);
	expect_chain("a chain that leaves its table", 0, NONE);
	set_request(REQUEST, STATE, region, 1);
	for (int i = 0; i < 34; i++) {
		int reads = i < 24;

		set_desc(DESC, i, reads ? request_at + i : reply_at + i - 24, 1,
			 (reads ? 0 : F_WRITE) | (i < 33 ? F_NEXT : 0), i + 1);
	}
	expect_chain("34 descriptors of one byte", 10, ACK);
	for (int i = 0; i < QUEUE; i++)
		set_desc(DESC, i, request_at, 1, F_NEXT, (i + 1) % QUEUE);
	expect_chain("a loop through the whole table", 0, NONE);
	indirect(ARENA + TABLE, 32, 0);
	expect_chain("an indirect table", -1, 0);
	indirect(ARENA + TABLE, 0, 0);
	expect_chain("an empty indirect table", -1, 0);
	indirect(ARENA + TABLE, 17, 0);
	expect_chain("an indirect table of one and a bit", -1, 0);
	indirect(ARENA + TABLE, UINT32_MAX & ~15U, 0);
	expect_chain("an indirect table of 4 GiB", -1, 0);
	indirect(UINT64_MAX & ~15ULL, 64, 0);
	expect_chain("an indirect table at the end of addresses", -1, 0);
	indirect(ARENA + TABLE, 32, F_NEXT);
	expect_chain("an indirect table with a successor", -1, 0);
	indirect(ARENA + TABLE, 32, F_WRITE);
	expect_chain("an indirect table to be written", -1, 0);
	indirect(ARENA + TABLE, 32, 0);
	set_desc(TABLE, 0, ARENA + TABLE, 32, F_INDIRECT, 0);
	expect_chain("an indirect table in itself", -1, 0);
}

void chains(void)
{
	bring_up_well();
	read_config();
	chains_of_two();
	chains_of_others();
	expect("a request after all that", STATE, region, 1, ACK);
	usleep(100000);
	check("one used entry for each head", used_index() == made, "more than that");
}
