/* SPDX-License-Identifier: Apache-2.0 */
/* What the attacks of hostile have in common: checks, and the device as its driver has it. */
#ifndef HOSTILE_H
#define HOSTILE_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

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

/* /dev/mem. */
extern int mem_fd;
/* The device's registers; where the common ones are. */
extern volatile uint8_t *bar;
extern size_t common;
extern volatile uint8_t *arena;
/* What its configuration said last. */
extern uint64_t region, region_size, block, usable, plugged, requested;
/* How many chains were made available since the device was brought up. */
extern uint16_t made;

#define REGISTER(bits, at) (*(volatile uint##bits##_t *)(bar + common + (at)))

/* What an attack expects, and what it says when it finds something else. It goes on. */
void fail(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check(const char *name, int good, const char *why);
const char *answer_name(int answer);
void answered(const char *name, int got, int answer);
/* The same of a request as a driver makes it. */
void expect(const char *name, uint16_t type, uint64_t addr, uint16_t blocks, int answer);

uint64_t number(const char *text);
/* Guest-physical memory as this process sees it. */
void *physical(uint64_t addr, size_t size, int protection, int fd);

/* Takes the device from its driver; there is another for partitions. */
void open_device(int for_partitions);
void read_config(void);
/* Brings it up with its rings at these addresses; returns its status. */
uint8_t bring_up(uint64_t desc, uint64_t avail, uint64_t used);
void bring_up_well(void);
void set_ring(size_t at, uint64_t addr);

/* Chains, which begin with descriptor 0 of the arena's. */
void set_desc(size_t table, int index, uint64_t addr, uint32_t len, uint16_t flags,
	      uint16_t next);
void set_request(size_t at, uint16_t type, uint64_t addr, uint16_t blocks);
/* A request as a driver makes it. */
void set_plain(uint16_t type, uint64_t addr, uint16_t blocks);
/* One whose request and reply are elsewhere, and one in an indirect table. */
void pair(uint64_t request_at, uint32_t request_len, uint64_t reply_at, uint32_t reply_len,
	  uint16_t reply_flags);
void indirect(uint64_t at, uint32_t len, uint16_t flags);
void make_available(uint16_t head);
void ring_doorbell(void);
uint16_t used_index(void);
/* Waits for what was made available; returns whether all of it came back. */
int wait_used(void);
/* Makes a chain available and waits for it. */
struct outcome submit(void);
/* Makes a request as a driver does; returns the answer. */
int request(uint16_t type, uint64_t addr, uint16_t blocks);

/* Writes to each page. */
void fill(uint64_t from, uint64_t to);
/* Plugs or unplugs, in requests of at most 1024 blocks. */
void change(const char *name, uint16_t type, uint64_t from, uint64_t blocks);

/* The commands. */
void requests(void);
void chains(void);
void rings(uint64_t closed);
void registers(uint64_t closed);
void resets(uint64_t count);
void flood(uint64_t count);
void descriptors(uint64_t from, uint64_t to, uint64_t step);
void hoard(void);
void own_ground(void);
void touch(uint64_t addr, const char *kind);
void partitions(void);

#endif
