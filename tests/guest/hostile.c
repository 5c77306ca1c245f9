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
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1ULL << 20)
#define PAGE 4096ULL

#define ARENA 0xf000000ULL
#define ARENA_SIZE (4 * MIB)
/* Offsets in the arena. */
#define DESC 0x0
#define AVAIL 0x1000
#define USED 0x2000
#define TABLE 0x3000
#define REQUEST 0x10000
#define REPLY 0x20000
#define SLOT 64
#define QUEUE 64

#define F_NEXT 1
#define F_WRITE 2
#define F_INDIRECT 4

#define S_ACKNOWLEDGE 1
#define S_DRIVER 2
#define S_DRIVER_OK 4
#define S_FEATURES_OK 8
#define S_NEEDS_RESET 0x40

enum { PLUG, UNPLUG, UNPLUG_ALL, STATE };
enum { PART_PLUG = 0x100, PART_RELEASE, PART_SHRINK, PART_QUERY, PART_NOTIFY };
enum { ACK, NACK, BUSY, ERROR, NONE };

static const char *const answers[] = { "ACK", "NACK", "BUSY", "ERROR", "none" };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

/* What became of a chain. */
struct outcome {
	int used;
	uint32_t len;
	int answer;
};

static int mem_fd, mem_sync_fd;
static volatile uint8_t *bar, *arena;
static size_t common, notify, device_config;
static uint32_t notify_multiplier;
static uint64_t region, region_size, block, usable, plugged, requested;
static uint16_t made, seen;
static int device_number;
/* VIRTIO_F_VERSION_1, and for partitions VIRTIO_MEM_F_PARTITION. */
static uint32_t features_high = 1;
static int failures;

static void die(const char *what)
{
	perror(what);
	exit(100);
}

static void check(const char *name, int good, const char *why)
{
	if (good) {
		printf("ok %s\n", name);
	} else {
		printf("FAIL %s: %s\n", name, why);
		failures++;
	}
}

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 0);
}

/* Guest-physical memory as this process sees it. */
static void *physical(uint64_t addr, size_t size, int protection, int fd)
{
	void *at = mmap(NULL, size, protection, MAP_SHARED, fd, (off_t)addr);

	if (at == MAP_FAILED)
		die("mmap /dev/mem");
	return at;
}

static void write_file(const char *folder, const char *name, const char *text)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void read_file(const char *folder, const char *name, void *buffer, size_t size)
{
	char path[512];
	ssize_t count;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDONLY);
	count = fd < 0 ? -1 : read(fd, buffer, size - 1);
	if (count < 0)
		die(path);
	((char *)buffer)[count] = 0;
	close(fd);
}

/* The folder in sysfs of virtio-mem device number device_number, in the order of the bus. */
static void find_device(char *folder, size_t size)
{
	char id[16];
	int found = 0;

	for (int slot = 0; slot < 32; slot++) {
		snprintf(folder, size, "/sys/bus/pci/devices/0000:00:%02x.0", slot);
		if (access(folder, F_OK))
			continue;
		read_file(folder, "device", id, sizeof(id));
		if (number(id) == 0x1058 && found++ == device_number)
			return;
	}
	printf("FAIL no virtio-mem device\n");
	exit(100);
}

/* Takes the device from its driver and finds its structures (virtio 1.3, 4.1.4). */
static void take_device(void)
{
	char folder[300], path[400], resource[256];
	uint8_t config[257];
	unsigned long long start;

	find_device(folder, sizeof(folder));
	snprintf(path, sizeof(path), "%s/driver", folder);
	if (!access(path, F_OK))
		write_file(path, "unbind", strrchr(folder, '/') + 1);
	write_file(folder, "enable", "1");
	read_file(folder, "resource", resource, sizeof(resource));
	start = number(resource);
	bar = physical(start, 0x8000, PROT_READ | PROT_WRITE, mem_sync_fd);
	read_file(folder, "config", config, sizeof(config));
	for (uint8_t at = config[0x34]; at; at = config[at + 1]) {
		uint32_t offset;

		if (config[at] != 9)
			continue;
		memcpy(&offset, config + at + 8, 4);
		if (config[at + 3] == 1)
			common = offset;
		if (config[at + 3] == 4)
			device_config = offset;
		if (config[at + 3] == 2) {
			notify = offset;
			memcpy(&notify_multiplier, config + at + 16, 4);
		}
	}
}

#define REGISTER(bits, at) (*(volatile uint##bits##_t *)(bar + common + (at)))

static uint64_t config_u64(size_t at)
{
	volatile uint32_t *word = (volatile uint32_t *)(bar + device_config + at);

	return word[0] | (uint64_t)word[1] << 32;
}

static void read_config(void)
{
	block = config_u64(0);
	region = config_u64(16);
	region_size = config_u64(24);
	usable = config_u64(32);
	plugged = config_u64(40);
	requested = config_u64(48);
}

static void reset(void)
{
	REGISTER(8, 0x14) = 0;
	while (REGISTER(8, 0x14))
		usleep(100);
	made = seen = 0;
}

static void set_ring(size_t at, uint64_t addr)
{
	REGISTER(32, at) = (uint32_t)addr;
	REGISTER(32, at + 4) = (uint32_t)(addr >> 32);
}

/* Brings the device up with its rings at these addresses; returns its status. */
static uint8_t bring_up(uint64_t desc, uint64_t avail, uint64_t used)
{
	reset();
	memset((void *)arena, 0, TABLE);
	REGISTER(8, 0x14) = S_ACKNOWLEDGE;
	REGISTER(8, 0x14) = S_ACKNOWLEDGE | S_DRIVER;
	REGISTER(32, 0x08) = 0;
	REGISTER(32, 0x0c) = 1 << 1;
	REGISTER(32, 0x08) = 1;
	REGISTER(32, 0x0c) = features_high;
	REGISTER(8, 0x14) = S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK;
	REGISTER(16, 0x16) = 0;
	REGISTER(16, 0x18) = QUEUE;
	set_ring(0x20, desc);
	set_ring(0x28, avail);
	set_ring(0x30, used);
	REGISTER(16, 0x1c) = 1;
	REGISTER(8, 0x14) = S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK;
	return REGISTER(8, 0x14);
}

static void bring_up_well(void)
{
	if (bring_up(ARENA + DESC, ARENA + AVAIL, ARENA + USED) & S_NEEDS_RESET) {
		printf("FAIL the device does not come up\n");
		exit(100);
	}
}

static void set_desc(size_t table, int index, uint64_t addr, uint32_t len, uint16_t flags,
		     uint16_t next)
{
	volatile struct desc *desc = (volatile struct desc *)(arena + table) + index;

	desc->addr = addr;
	desc->len = len;
	desc->flags = flags;
	desc->next = next;
}

static void ring_doorbell(void)
{
	__sync_synchronize();
	*(volatile uint16_t *)(bar + notify + REGISTER(16, 0x1e) * notify_multiplier) = 0;
}

static void make_available(uint16_t head)
{
	volatile uint16_t *avail = (volatile uint16_t *)(arena + AVAIL);

	avail[2 + made % QUEUE] = head;
	__sync_synchronize();
	avail[1] = ++made;
}

static uint16_t used_index(void)
{
	__sync_synchronize();
	return ((volatile uint16_t *)(arena + USED))[1];
}

/* Waits for what was made available; returns whether all of it came back. */
static int wait_used(void)
{
	for (int i = 0; i < 200000 && used_index() != made; i++)
		usleep(100);
	return used_index() == made;
}

/* Makes the chain that begins with descriptor 0 available and waits for it. */
static struct outcome submit(void)
{
	volatile uint32_t *entry;
	struct outcome outcome = { 0, 0, NONE };

	memset((void *)(arena + REPLY), 0xee, 16);
	make_available(0);
	ring_doorbell();
	if (!wait_used())
		return outcome;
	entry = (volatile uint32_t *)(arena + USED + 4) + 2 * (seen++ % QUEUE);
	outcome.used = entry[0] == 0;
	outcome.len = entry[1];
	if (outcome.len >= 10)
		outcome.answer = *(volatile uint16_t *)(arena + REPLY);
	return outcome;
}

static void set_request(size_t at, uint16_t type, uint64_t addr, uint16_t blocks)
{
	memset((void *)(arena + at), 0, 24);
	*(volatile uint16_t *)(arena + at) = type;
	*(volatile uint64_t *)(arena + at + 8) = addr;
	*(volatile uint16_t *)(arena + at + 16) = blocks;
}

/* A request as a driver makes it; returns the answer. */
static int request(uint16_t type, uint64_t addr, uint16_t blocks)
{
	set_request(REQUEST, type, addr, blocks);
	set_desc(DESC, 0, ARENA + REQUEST, 24, F_NEXT, 1);
	set_desc(DESC, 1, ARENA + REPLY, 10, F_WRITE, 0);
	return submit().answer;
}

static void expect(const char *name, uint16_t type, uint64_t addr, uint16_t blocks, int answer)
{
	int got = request(type, addr, blocks);

	check(name, got == answer, got <= NONE ? answers[got] : "no answer that there is");
}

/* What the driver would never ask, and that the device keeps its books all the same. */
static void requests(void)
{
	uint64_t end = region + region_size;

	bring_up_well();
	read_config();
	expect("unplug everything", UNPLUG_ALL, 0, 0, ACK);
	expect("plug 0 blocks", PLUG, region, 0, ERROR);
	expect("plug 65535 blocks", PLUG, region, 65535, ERROR);
	expect("plug 65535 blocks at the end", PLUG, end - block, 65535, ERROR);
	expect("plug one past the end", PLUG, end, 1, ERROR);
	expect("plug over the end", PLUG, end - block, 2, ERROR);
	expect("plug before the region", PLUG, region - block, 1, ERROR);
	expect("plug half a block", PLUG, region + block / 2, 1, ERROR);
	expect("plug memory of the boot", PLUG, 0, 1, ERROR);
	expect("plug round the end of addresses", PLUG, -block, 2, ERROR);
	expect("plug at the last address", PLUG, UINT64_MAX, 65535, ERROR);
	expect("plug more than requested", PLUG, region, (uint16_t)(requested / block + 1),
	       usable > requested ? NACK : ERROR);
	expect("unplug what is not plugged", UNPLUG, region, 1, ERROR);
	expect("unplug 0 blocks", UNPLUG, region, 0, ERROR);
	expect("unplug 65535 blocks", UNPLUG, region, 65535, ERROR);
	expect("unplug memory of the boot", UNPLUG, 0, 64, ERROR);
	expect("unplug round the end of addresses", UNPLUG, -block, 2, ERROR);
	expect("state of 0 blocks", STATE, region, 0, ERROR);
	expect("state past the end", STATE, end, 1, ERROR);
	expect("state round the end of addresses", STATE, -block, 65535, ERROR);
	expect("an unknown type", 0xffff, region, 1, ERROR);
	expect("plug a block", PLUG, region, 1, ACK);
	expect("plug it again", PLUG, region, 1, ERROR);
	expect("plug it with the next", PLUG, region, 2, ERROR);
	expect("unplug it with the next", UNPLUG, region, 2, ERROR);
	expect("state of both", STATE, region, 2, ACK);
	check("they are mixed", arena[REPLY + 8] == 2, "not mixed");
	read_config();
	check("one block is plugged", plugged == block, "another size");
	expect("unplug it", UNPLUG, region, 1, ACK);
	expect("unplug it again", UNPLUG, region, 1, ERROR);
	expect("plug all that is requested", PLUG, region, (uint16_t)(requested / block), ACK);
	expect("plug one more", PLUG, region + requested, 1, usable > requested ? NACK : ERROR);
	expect("unplug everything again", UNPLUG_ALL, 0, 0, ACK);
	read_config();
	check("nothing is plugged", plugged == 0, "something is");
}

/* Submits what was set up; the device writes LEN bytes, ANSWER among them, or what it likes. */
static void expect_chain(const char *name, int len, int answer)
{
	struct outcome outcome = submit();

	check(name, outcome.used, "no used entry, or another head's");
	if (len >= 0 && ((int)outcome.len != len || outcome.answer != answer)) {
		printf("FAIL %s: %u bytes, %s\n", name, outcome.len, answers[outcome.answer % 5]);
		failures++;
	}
}

static void pair(uint64_t request_at, uint32_t request_len, uint64_t reply_at, uint32_t reply_len,
		 uint16_t reply_flags)
{
	set_request(REQUEST, STATE, region, 1);
	set_desc(DESC, 0, request_at, request_len, F_NEXT, 1);
	set_desc(DESC, 1, reply_at, reply_len, reply_flags, 0);
}

static void indirect(uint64_t at, uint32_t len, uint16_t flags)
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

static void chains(void)
{
	bring_up_well();
	read_config();
	chains_of_two();
	chains_of_others();
	expect("a request after all that", STATE, region, 1, ACK);
	usleep(100000);
	check("one used entry for each head", used_index() == made, "more than that");
}

static void refused_rings(const char *name, uint64_t desc, uint64_t avail, uint64_t used)
{
	check(name, bring_up(desc, avail, used) & S_NEEDS_RESET, "the device took it");
}

static void rings(uint64_t closed)
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

static void registers(uint64_t closed)
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
static void resets(uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		bring_up_well();
		set_request(REQUEST, i % 2 ? PLUG : UNPLUG_ALL, region, 1);
		set_desc(DESC, 0, ARENA + REQUEST, 24, F_NEXT, 1);
		set_desc(DESC, 1, ARENA + REPLY, 10, F_WRITE, 0);
		make_available(0);
		ring_doorbell();
	}
	bring_up_well();
	expect("a request after all that", UNPLUG_ALL, 0, 0, ACK);
}

static void flood(uint64_t count)
{
	bring_up_well();
	set_request(REQUEST, PLUG, region, 0);
	set_desc(DESC, 0, ARENA + REQUEST, 24, F_NEXT, 1);
	set_desc(DESC, 1, ARENA + REPLY, 10, F_WRITE, 0);
	for (uint64_t i = 0; i < count; i += QUEUE) {
		for (int j = 0; j < QUEUE; j++)
			make_available(0);
		ring_doorbell();
		if (!wait_used())
			break;
	}
	check("an answer to each", used_index() == made, "not to all");
}

/* Sends the device to closed memory, for each of the four ways to point there. */
static void descriptors(uint64_t from, uint64_t to, uint64_t step)
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

static void fill(uint64_t from, uint64_t to)
{
	volatile uint8_t *at = physical(from, to - from, PROT_READ | PROT_WRITE, mem_fd);

	for (uint64_t offset = 0; offset < to - from; offset += PAGE)
		at[offset] = 0x5a;
	munmap((void *)at, to - from);
}

static void change(const char *name, uint16_t type, uint64_t from, uint64_t blocks)
{
	while (blocks) {
		uint16_t count = blocks > 1024 ? 1024 : (uint16_t)blocks;

		expect(name, type, from, count, ACK);
		from += count * block;
		blocks -= count;
	}
}

static void hoard(void)
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
static void own_ground(void)
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

static void expect_part(const char *name, int got, int answer)
{
	check(name, got == answer, got <= NONE ? answers[got] : "no answer that there is");
}

#define RECORD 4152
#define RECORD_U32(at) (*(volatile uint32_t *)(arena + REPLY + (at)))
#define RECORD_U64(at) (*(volatile uint64_t *)(arena + REPLY + (at)))

/* Both are wanted and neither is there; the first has more blocks than the second. */
static void partitions(void)
{
	uint64_t first_run, second_run;
	uint32_t first, second;

	bring_up_well();
	read_config();
	expect_part("query", part(PART_QUERY, 0, 0, 0, 0, RECORD), ACK);
	first = RECORD_U32(16);
	expect_part("query the next", part(PART_QUERY, first + 1, 0, 0, 0, RECORD), ACK);
	second = RECORD_U32(16);
	expect_part("query past the last", part(PART_QUERY, second + 1, 0, 0, 0, RECORD), NACK);
	expect_part("query the highest number", part(PART_QUERY, -1, 0xffff, 0xffff, -1, RECORD), NACK);
	expect_part("query without room", part(PART_QUERY, 0, 0, 0, 0, RECORD - 1), ERROR);
	expect_part("plug without room", part(PART_PLUG, first, 0, 0, 0, RECORD - 1), ERROR);
	expect_part("release what is not there", part(PART_RELEASE, first, 0, 0, 0, 10), ERROR);
	expect_part("release the unknown", part(PART_RELEASE, 99999, 0, 0, 0, 10), ERROR);
	expect_part("plug the unknown", part(PART_PLUG, 99999, 0, 0, 0, RECORD), NACK);
	expect_part("plug the first", part(PART_PLUG, first, 0, 0, 0, RECORD), ACK);
	first_run = RECORD_U64(56);
	expect_part("plug it again", part(PART_PLUG, first, 0, 0, 0, RECORD), ERROR);
	expect_part("plug the second", part(PART_PLUG, second, 0, 0, 0, RECORD), ACK);
	second_run = RECORD_U64(56);
	fill(first_run, first_run + 2 * block);
	fill(second_run, second_run + 2 * block);
	expect_part("shrink what is wanted", part(PART_SHRINK, first, 1, 0, first_run, 10), NACK);
	expect_part("shrink the other's", part(PART_SHRINK, first, 1, 0, second_run, 10), ERROR);
	expect_part("shrink nothing", part(PART_SHRINK, first, 0, 0, first_run, 10), ERROR);
	expect_part("shrink too much", part(PART_SHRINK, first, 0xffff, 0, first_run, 10), ERROR);
	expect_part("shrink round the end", part(PART_SHRINK, first, 2, 0, -block, 10), ERROR);
	expect_part("shrink half a block", part(PART_SHRINK, first, 1, 0, first_run + PAGE, 10), ERROR);
	expect_part("notify of no event", part(PART_NOTIFY, first, 0, 0xffff, 0, 10), ERROR);
	expect_part("notify of the unknown", part(PART_NOTIFY, 99999, 0, 1, 0, 10), ERROR);
	expect_part("boast", part(PART_NOTIFY, first, 0, 6, UINT64_MAX, 10), ACK);
	expect_part("plug by address", request(PLUG, region, 1), ERROR);
	expect_part("unplug by address", request(UNPLUG, first_run, 1), ERROR);
	expect_part("release the first", part(PART_RELEASE, first, 0, 0, 0, 10), ACK);
	expect_part("release it again", part(PART_RELEASE, first, 0, 0, 0, 10), ERROR);
	expect_part("shrink it", part(PART_SHRINK, first, 1, 0, first_run, 10), ERROR);
	fill(second_run, second_run + block);
	printf("released %#llx kept %#llx\n", (unsigned long long)first_run,
	       (unsigned long long)second_run);
}

static void touch(uint64_t addr, const char *kind)
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
	mem_fd = open("/dev/mem", O_RDWR);
	mem_sync_fd = open("/dev/mem", O_RDWR | O_SYNC);
	if (mem_fd < 0 || mem_sync_fd < 0)
		die("/dev/mem");
	if (argc > 1 && (!strcmp(argv[1], "channel") || !strcmp(argv[1], "partitions"))) {
		device_number = 1;
		features_high |= 1 << 24;
	}
	take_device();
	arena = physical(ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE, mem_fd);
	read_config();
	run(argc, argv);
	return failures;
}
