// SPDX-License-Identifier: Apache-2.0
/* Memory that is sent to others without being copied, as the sender would have it. */
#include "behave.h"

#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

/*
 * What is put into a pipe or a socket as it is would keep the partition for as long as its reader
 * likes: it is copied.
 */
#define PIPED (64 * PAGE)

static int pipes[2];

static void vmsplice_body(void)
{
	char *mem = map_memory(HUGE_PAGE);
	struct iovec whole = { mem, PIPED };

	madvise(mem, HUGE_PAGE, MADV_NOHUGEPAGE);
	fill(mem, PIPED, 1);
	expect_in("memory", mem, PIPED, IN_A);
	expect_equal("bytes put into the pipe", vmsplice(pipes[1], &whole, 1, SPLICE_F_GIFT), PIPED);
}

/* What arrives is what was sent, and the sender is gone. */
static void expect_to_arrive(const char *what, int from, size_t size)
{
	char *copy = map_memory(size);
	size_t got = 0;
	ssize_t len;

	while (got < size && (len = read(from, copy + got, size - got)) > 0)
		got += len;
	expect_equal(what, got, size);
	expect_holds(what, copy, size, 1);
}

static void vmsplice_exit(void)
{
	if (pipe(pipes) || fcntl(pipes[1], F_SETPIPE_SZ, PIPED) < 0)
		die("pipe");
	bind_to(FN0, "");
	in_function(vmsplice_body);
	unbind(FN0);
	expect_gone("A while the pipe is full", FN0);
	expect_to_arrive("bytes read from the pipe", pipes[0], PIPED);
}

/* More than the peer, who reads nothing, has room for. */
#define SENT (4 * MIB)

/* Says how much it could send without waiting for the peer. */
static void zerocopy_body(void)
{
	char *mem = map_memory(SENT);
	int one = 1, most = 2 * SENT;
	ssize_t sent;

	fill(mem, SENT, 1);
	expect_in("memory", mem, SENT, IN_A);
	if (setsockopt(pipes[1], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)) ||
	    setsockopt(pipes[1], SOL_SOCKET, SO_SNDBUFFORCE, &most, sizeof(most)))
		die("setsockopt");
	while (shared->value < (long)SENT) {
		sent = send(pipes[1], mem + shared->value, SENT - shared->value,
			    MSG_ZEROCOPY | MSG_DONTWAIT);
		if (sent <= 0)
			break;
		shared->value += sent;
	}
	expect_at_least("bytes sent", shared->value, MIB);
}

static void zerocopy(void)
{
	struct sockaddr_in local = { .sin_family = AF_INET };
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof(local);

	pipes[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (ioctl(listener, SIOCSIFFLAGS, &lo) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&local, &size))
		die("listen");
	local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(pipes[1], (struct sockaddr *)&local, sizeof(local)))
		die("connect");
	pipes[0] = accept(listener, NULL, NULL);
	bind_to(FN0, "");
	in_function(zerocopy_body);
	close(pipes[1]);
	unbind(FN0);
	expect_gone("A before its peer has read", FN0);
	expect_to_arrive("bytes read from the socket", pipes[0], shared->value);
}

const struct behaviour send_cases[] = {
	{ "vmsplice", vmsplice_exit },
	{ "zerocopy", zerocopy },
	{ NULL, NULL },
};
