// SPDX-License-Identifier: Apache-2.0
/* Memory that others hold or make: userfaultfd, pins for a moment and for long. */
#include "behave.h"

#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define SIZE (4 * MIB)

/* Linux 6.8; the headers may be older. */
struct move_pages {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t moved;
};

#define MOVE_PAGES _IOWR(UFFDIO, 0x05, struct move_pages)

/* A monitor outside of the partition fills a function's memory: by copies and by zeroes. */
static void serve_faults(int uffd, char *mem)
{
	struct uffd_msg message;
	char *page = map_memory(HUGE_PAGE);

	while (read(uffd, &message, sizeof(message)) == sizeof(message)) {
		uintptr_t at = message.arg.pagefault.address & ~(PAGE - 1);
		size_t offset = at - (uintptr_t)mem;
		struct uffdio_copy copy = { .dst = at, .src = (uintptr_t)page, .len = PAGE };
		struct uffdio_zeropage zero = { .range = { .start = at, .len = PAGE } };

		if (message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		fill(page, PAGE, offset / PAGE);
		if (offset < SIZE / 2 ? ioctl(uffd, UFFDIO_COPY, &copy)
				      : ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
			expect(errno == EEXIST, "filling %#zx: found error %d", offset, errno);
		if (offset + PAGE == SIZE)
			break;
	}
}

static int open_uffd(void *mem, size_t size)
{
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)mem, .len = size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range))
		die("userfaultfd");
	return uffd;
}

static void userfault_body(void)
{
	char *mem = map_memory(SIZE);
	int uffd = open_uffd(mem, SIZE), status = 0;
	pid_t monitor = fork();

	if (!monitor) {
		must_join(OUT);
		serve_faults(uffd, mem);
		end_function();
	}
	for (size_t at = 0; at < SIZE / 2; at += PAGE)
		expect_holds("a page that was copied", mem + at, PAGE, at / PAGE);
	touch(mem + SIZE / 2, SIZE / 2);
	expect_zero("pages of zeroes", mem + SIZE / 2, SIZE / 2);
	expect_in("memory that a monitor filled", mem, SIZE, IN_A);
	if (waitpid(monitor, &status, 0) != monitor)
		die("waitpid");
	expect_equal("status of the monitor", status, 0);
}

static void userfault(void)
{
	bind_to(FN0, "");
	in_function(userfault_body);
	expect_empty("used after its end", FN0);
}

/* A page of the function's gets another address, and stays. */
static void userfault_move_body(void)
{
	char *from = map_memory(SIZE), *to = map_memory(SIZE);
	int uffd = open_uffd(to, SIZE);
	struct move_pages move = {
		.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = SIZE,
	};
	uint64_t *frames;

	madvise(from, SIZE, MADV_NOHUGEPAGE);
	madvise(to, SIZE, MADV_NOHUGEPAGE);
	fill(from, SIZE, 1);
	frames = frames_of(from, SIZE);
	if (ioctl(uffd, MOVE_PAGES, &move))
		die("moving pages");
	expect_equal("bytes moved", move.moved, SIZE);
	expect_unmoved("memory with a new address", to, SIZE, frames);
	expect_holds("memory with a new address", to, SIZE, 1);
	touch(from, SIZE);
	expect_zero("the old address", from, SIZE);
	expect_in("the old address", from, SIZE, IN_A);
}

static void userfault_move(void)
{
	bind_to(FN0, "");
	in_function(userfault_move_body);
	expect_empty("used after its end", FN0);
}

/*
 * Buffers that are registered with io_uring are pinned for as long as the ring lives, which is
 * longer than the function: they leave the partition first.
 */
static int ring;

static void pin_long_body(void)
{
	char *small = map_memory(SIZE), *huge = map_memory(SIZE), *fresh = map_memory(SIZE);
	struct iovec buffers[] = { { small, SIZE }, { huge, SIZE }, { fresh, SIZE } };

	madvise(small, SIZE, MADV_NOHUGEPAGE);
	fill(small, SIZE, 1);
	fill(huge, SIZE, 2);
	expect_in("memory", small, SIZE, IN_A);
	expect_in("memory", huge, SIZE, IN_A);
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers, 3))
		die("IORING_REGISTER_BUFFERS");
	expect_in("pages that are pinned", small, SIZE, OUTSIDE);
	expect_in("huge pages that are pinned", huge, SIZE, OUTSIDE);
	expect_in("pages that were made in order to be pinned", fresh, SIZE, OUTSIDE);
	expect_used_at_most("used after they were pinned", FN0, SLACK);
	expect_holds("pages that are pinned", small, SIZE, 1);
	expect_holds("huge pages that are pinned", huge, SIZE, 2);
	expect_zero("pages that were made in order to be pinned", fresh, SIZE);
}

static void pin_long(void)
{
	struct io_uring_params parameters = { 0 };

	ring = syscall(SYS_io_uring_setup, 4, &parameters);
	if (ring < 0)
		die("io_uring_setup");
	bind_to(FN0, "");
	in_function(pin_long_body);
	unbind(FN0);
	expect_gone("A while the buffers are pinned", FN0);
	close(ring);
}

/* What is pinned for a moment stays, and so does what is not the pin's. */
static void pin_short_body(void)
{
	char *mem = map_memory(SIZE), path[] = "/dev/zram0";
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	uint64_t *frames;

	if (fd < 0)
		die(path);
	fill(mem, SIZE / 2, 1);
	fill(mem + SIZE / 2, SIZE / 2, 2);
	frames = frames_of(mem, SIZE);
	expect_equal("bytes read from the disk", pread(fd, mem, SIZE / 2, 0), SIZE / 2);
	expect_zero("what was read from the disk", mem, SIZE / 2);
	expect_unmoved("memory", mem, SIZE, frames);
	expect_in("memory", mem, SIZE, IN_A);
	expect_holds("what was not read", mem + SIZE / 2, SIZE / 2, 2);
	close(fd);
}

static void pin_short(void)
{
	bind_to(FN0, "");
	in_function(pin_short_body);
	expect_empty("used after its end", FN0);
}

/*
 * Functions are killed while a disk writes to their memory, and end before it does. That memory is the
 * partition's until the disk is done: who gets pages that were given up finds in them what it wrote,
 * and A is gone after that.
 */
#define READERS 2
#define READS 8

/*
 * Has the disk write to MEM, over and over, with all reads under way at once. Who is killed meanwhile
 * does not wait for it.
 */
static void read_at_once(int fd, char *mem)
{
	struct io_uring_params params = { 0 };
	int uring = syscall(SYS_io_uring_setup, READS, &params);
	char *queue = mmap(NULL, params.sq_off.array + READS * 4, PROT_READ | PROT_WRITE,
			   MAP_SHARED, uring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, READS * sizeof(*entries), PROT_READ | PROT_WRITE,
					    MAP_SHARED, uring, IORING_OFF_SQES);

	if (fd < 0 || queue == MAP_FAILED || entries == MAP_FAILED)
		die("io_uring_setup");
	for (int i = 0; i < READS; i++) {
		entries[i] = (struct io_uring_sqe){
			.opcode = IORING_OP_READ,
			.fd = fd,
			.addr = (uintptr_t)mem,
			.len = SIZE,
		};
		((uint32_t *)(queue + params.sq_off.array))[i] = i;
	}
	atomic_store((_Atomic uint32_t *)(queue + params.sq_off.tail), READS);
	if (syscall(SYS_io_uring_enter, uring, READS, READS, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		die("io_uring_enter");
	munmap(queue, params.sq_off.array + READS * 4);
	munmap(entries, READS * sizeof(*entries));
	close(uring);
}

static void read_body(void)
{
	int fd = open("/dev/vda", O_RDONLY | O_DIRECT | O_CLOEXEC);
	char *mem = map_memory(SIZE);

	for (;;)
		read_at_once(fd, mem);
}

static void reuse_body(void)
{
	for (int round = 0; shared->step < 1; round++) {
		char *mem = map_memory(4 * SIZE);

		madvise(mem, 4 * SIZE, MADV_NOHUGEPAGE);
		fill(mem, 4 * SIZE, round);
		expect_holds("memory beside readers", mem, 4 * SIZE, round);
		expect_in("memory beside readers", mem, 4 * SIZE, IN_A);
		munmap(mem, 4 * SIZE);
	}
}

static int reads_in_flight(void)
{
	char text[64];

	if (get("/sys/block/vda/inflight", text, sizeof(text)))
		die("inflight");
	return atoi(text);
}

/* Readers begin and are killed; returns whether the disk went on after their end. */
static int outlived_by_reads(int last)
{
	pid_t pids[READERS];
	int reads;

	for (int i = 0; i < READERS; i++)
		pids[i] = start(FN0, read_body);
	while (!reads_in_flight())
		;
	for (int i = 0; i < READERS; i++)
		kill(pids[i], SIGKILL);
	if (last)
		unbind(FN0);
	for (int i = 0; i < READERS; i++)
		finish(pids[i], SIGKILL);
	reads = reads_in_flight();
	while (!last && reads_in_flight())
		usleep(1000);
	return reads > 0;
}

static void direct_killed(void)
{
	int outlived = 0;
	pid_t other;

	bind_to(FN0, "");
	other = start(FN0, reuse_body);
	for (int round = 0; round < 5 || (round < 15 && outlived < 3); round++)
		outlived += outlived_by_reads(0);
	dprintf(1, "outlived %d\n", outlived);
	reach(1);
	finish(other, 0);
	outlived_by_reads(1);
	expect_gone("A after their end", FN0);
}

/*
 * The host takes the partition back while two functions share it: all moves out but what somebody
 * holds, which follows when he lets go of it, though the function that has it lives on.
 */
#define STUCK (16 * PAGE)

static void wait_for_caller(void)
{
	while (access("/tmp/stop", F_OK))
		usleep(10000);
}

/* Reads HELD of a function, to where the first fault waits until step 3: so long it is pinned. */
static void hold(pid_t function, char *held)
{
	char *copy = map_memory(HUGE_PAGE);
	struct iovec from = { held, STUCK }, to = { copy, STUCK };
	struct uffdio_zeropage zero = { .range = { .start = (uintptr_t)copy, .len = STUCK } };
	int uffd = open_uffd(copy, STUCK);
	struct uffd_msg message;

	if (!fork()) {
		if (read(uffd, &message, sizeof(message)) != sizeof(message))
			die("a fault");
		reach(2);
		wait_for_caller();
		await(3);
		if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
			die("UFFDIO_ZEROPAGE");
		end_function();
	}
	expect_equal("bytes read of the function", process_vm_readv(function, &to, 1, &from, 1, 0),
		     STUCK);
	expect_holds("what was read of the function", copy, STUCK, 3);
	wait(NULL);
	end_function();
}

static void expect_evacuated(const char *mem)
{
	expect_in("memory after the evacuation", mem, 2 * SIZE, OUTSIDE);
	expect_holds("memory after the evacuation", mem, SIZE, 1);
	expect_holds("memory after the evacuation", mem + SIZE, SIZE, 2);
}

static void evacuated_body(void)
{
	char *mem = map_memory(2 * SIZE), *held = map_memory(HUGE_PAGE);
	int status = 0;
	pid_t child;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	madvise(held, HUGE_PAGE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	fill(mem + SIZE, SIZE, 2);
	fill(held, STUCK, 3);
	expect_in("memory", mem, 2 * SIZE, IN_A);
	shared->address = (uintptr_t)held;
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		must_join(FN1);
		wait_for_caller();
		expect_evacuated(mem);
		end_function();
	}
	reach(1);
	wait_for_caller();
	expect_evacuated(mem);
	expect_in("what somebody holds", held, STUCK, IN_A);
	expect_holds("what somebody holds", held, STUCK, 3);
	fill(mem, SIZE, 4);
	expect_in("what was written since", mem, SIZE, OUTSIDE);
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	expect_equal("status of the other", status, 0);
	/* What is held is let go of before the function ends, and not before both have looked. */
	reach(3);
	await(4);
	expect_in("what was held", held, STUCK, OUTSIDE);
	expect_holds("what was held", held, STUCK, 3);
}

static void evacuated(void)
{
	struct pollfd events = { .events = POLLPRI };
	pid_t pid, reader;
	char copy[256];

	unlink("/tmp/stop");
	bind_to(FN0, "");
	bind_to(FN1, "");
	events.fd = open(FN0 "/memory.partition.events", O_RDONLY | O_CLOEXEC);
	expect_at_least("bytes read of the events", read(events.fd, copy, sizeof(copy)), 1);
	pid = start(FN0, evacuated_body);
	await(1);
	reader = fork();
	if (!reader)
		hold(pid, (char *)shared->address);
	await(2);
	expect_equal("events before there was one", poll(&events, 1, 0), 0);
	dprintf(1, "ready\n");
	expect_equal("events for who waits for one", poll(&events, 1, 30000), 1);
	expect_equal("events of being revoked", event_count(FN0, "revoked"), 1);
	expect_equal("events of spills", event_count(FN0, "spill"), 0);
	close(events.fd);
	wait_for_caller();
	await(3);
	finish(reader, 0);
	/* The driver tries again each five seconds, and not for the end of a function. */
	for (int ms = 0; ms < 20000 && draining(FN0) >= 0; ms += 10)
		usleep(10000);
	expect_equal("in use of A while its function lives on", draining(FN0), -1);
	reach(4);
	finish(pid, 0);
}

const struct behaviour pin_cases[] = {
	{ "userfault", userfault },
	{ "userfault-move", userfault_move },
	{ "pin-long", pin_long },
	{ "pin-short", pin_short },
	{ "direct-killed", direct_killed },
	{ "evacuated", evacuated },
	{ NULL, NULL },
};
