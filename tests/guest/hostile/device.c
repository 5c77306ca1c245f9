// SPDX-License-Identifier: Apache-2.0
/* The device without its driver: found, brought up, and asked one thing at a time. */
#include "hostile.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int mem_fd;
volatile uint8_t *bar, *arena;
size_t common;
uint64_t region, region_size, block, usable, plugged, requested;
uint16_t made;
static int mem_sync_fd;
static size_t notify, device_config;
static uint32_t notify_multiplier;
static uint16_t seen;
static int device_number;
/* VIRTIO_F_VERSION_1, and for partitions VIRTIO_MEM_F_PARTITION. */
static uint32_t features_high = 1;

static void die(const char *what)
{
	perror(what);
	exit(100);
}

void *physical(uint64_t addr, size_t size, int protection, int fd)
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

static uint64_t config_u64(size_t at)
{
	volatile uint32_t *word = (volatile uint32_t *)(bar + device_config + at);

	return word[0] | (uint64_t)word[1] << 32;
}

void read_config(void)
{
	block = config_u64(0);
	region = config_u64(16);
	region_size = config_u64(24);
	usable = config_u64(32);
	plugged = config_u64(40);
	requested = config_u64(48);
}

void open_device(int for_partitions)
{
	mem_fd = open("/dev/mem", O_RDWR);
	mem_sync_fd = open("/dev/mem", O_RDWR | O_SYNC);
	if (mem_fd < 0 || mem_sync_fd < 0)
		die("/dev/mem");
	if (for_partitions) {
		device_number = 1;
		features_high |= 1 << 24;
	}
	take_device();
	arena = physical(ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE, mem_fd);
	read_config();
}

static void reset(void)
{
	REGISTER(8, 0x14) = 0;
	while (REGISTER(8, 0x14))
		usleep(100);
	made = seen = 0;
}

void set_ring(size_t at, uint64_t addr)
{
	REGISTER(32, at) = (uint32_t)addr;
	REGISTER(32, at + 4) = (uint32_t)(addr >> 32);
}

uint8_t bring_up(uint64_t desc, uint64_t avail, uint64_t used)
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

void bring_up_well(void)
{
	if (bring_up(ARENA + DESC, ARENA + AVAIL, ARENA + USED) & S_NEEDS_RESET) {
		printf("FAIL the device does not come up\n");
		exit(100);
	}
}

void set_desc(size_t table, int index, uint64_t addr, uint32_t len, uint16_t flags,
	      uint16_t next)
{
	volatile struct desc *desc = (volatile struct desc *)(arena + table) + index;

	desc->addr = addr;
	desc->len = len;
	desc->flags = flags;
	desc->next = next;
}

void ring_doorbell(void)
{
	__sync_synchronize();
	*(volatile uint16_t *)(bar + notify + REGISTER(16, 0x1e) * notify_multiplier) = 0;
}

void make_available(uint16_t head)
{
	volatile uint16_t *avail = (volatile uint16_t *)(arena + AVAIL);

	avail[2 + made % QUEUE] = head;
	__sync_synchronize();
	avail[1] = ++made;
}

uint16_t used_index(void)
{
	__sync_synchronize();
	return ((volatile uint16_t *)(arena + USED))[1];
}

int wait_used(void)
{
	for (int i = 0; i < 200000 && used_index() != made; i++)
		usleep(100);
	return used_index() == made;
}

struct outcome submit(void)
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

void set_request(size_t at, uint16_t type, uint64_t addr, uint16_t blocks)
{
	memset((void *)(arena + at), 0, 24);
	*(volatile uint16_t *)(arena + at) = type;
	*(volatile uint64_t *)(arena + at + 8) = addr;
	*(volatile uint16_t *)(arena + at + 16) = blocks;
}

void set_plain(uint16_t type, uint64_t addr, uint16_t blocks)
{
	set_request(REQUEST, type, addr, blocks);
	set_desc(DESC, 0, ARENA + REQUEST, 24, F_NEXT, 1);
	set_desc(DESC, 1, ARENA + REPLY, 10, F_WRITE, 0);
}

int request(uint16_t type, uint64_t addr, uint16_t blocks)
{
	set_plain(type, addr, blocks);
	return submit().answer;
}
