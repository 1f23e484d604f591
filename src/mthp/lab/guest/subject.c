/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A process under test. Whatever state its memory gets, it gets by the system calls below, each
 * over a range of pages counted from the process's base. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define MAX_CHILDREN 64

/* What Linux 7.3 has and older headers do not: accesses of every kind are tracked.
 * Kernel: include/uapi/linux/userfaultfd.h. */
#define MODE_RWP (1ULL << 3)
#define FEATURE_RWP (1ULL << 17)
#define IOCTL_RWPROTECT _IOWR(UFFDIO, 0x09, struct uffdio_writeprotect)

static uint64_t base, heap;
static int uffd = -1;
static uint64_t uffd_mode;
static pid_t children[MAX_CHILDREN];
static int child_count;
static int sock;

static long failed(void)
{
	return -errno;
}

static long or_errno(long result)
{
	return result < 0 ? failed() : result;
}

static volatile uint64_t *page(uint64_t index)
{
	return (volatile uint64_t *)(base + index * PAGE);
}

static long touch(const char *op, uint64_t first, uint64_t pages, uint64_t step)
{
	for (uint64_t i = first; i < first + pages; i += step ? step : 1) {
		if (!strcmp(op, "rd"))
			(void)*page(i);
		else
			*page(i) = !strcmp(op, "same") ? 0x5a5a5a5a : (uint64_t)page(i) | 1;
	}
	return 0;
}

static long fill(uint64_t first, uint64_t pages, uint64_t value)
{
	for (uint64_t i = first; i < first + pages; i++)
		memset((void *)page(i), value, PAGE);
	return 0;
}

static long map(uint64_t first, uint64_t pages, int sharing)
{
	void *at = mmap((void *)page(first), pages * PAGE, PROT_READ | PROT_WRITE,
			sharing | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	if (at == MAP_FAILED)
		return failed();
	return at == (void *)page(first) ? 0 : -EEXIST;
}

static long move(uint64_t first, uint64_t pages, uint64_t to)
{
	void *at = mremap((void *)page(first), pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			  (void *)page(to));

	return at == MAP_FAILED ? failed() : 0;
}

/* The heap of a program begins at a page; libc's own, which is not used, ends there. */
static long place_heap(uint64_t first)
{
	unsigned long at = (unsigned long)page(first);

	if (prctl(PR_SET_MM, PR_SET_MM_BRK, at, 0, 0) || prctl(PR_SET_MM, PR_SET_MM_START_BRK, at, 0, 0))
		return failed();
	return heap = first, 0;
}

static long set_brk(uint64_t pages)
{
	uint64_t wanted = (uint64_t)page(heap + pages);

	return (uint64_t)syscall(SYS_brk, wanted) == wanted ? 0 : -ENOMEM;
}

static long register_uffd(uint64_t first, uint64_t pages, uint64_t mode)
{
	struct uffdio_register range = {
		.range = { .start = (uint64_t)page(first), .len = pages * PAGE }, .mode = mode,
	};
	struct uffdio_api api = { .api = UFFD_API, .features = mode & MODE_RWP ? FEATURE_RWP : 0 };

	uffd_mode = mode;
	if (uffd < 0) {
		uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
			return failed();
	}
	return or_errno(ioctl(uffd, UFFDIO_REGISTER, &range));
}

/* Protect pages against writes, or in a range of that mode against every access: both have one form. */
static long write_protect(uint64_t first, uint64_t pages, uint64_t on)
{
	struct uffdio_writeprotect range = {
		.range = { .start = (uint64_t)page(first), .len = pages * PAGE },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return or_errno(ioctl(uffd, uffd_mode & MODE_RWP ? IOCTL_RWPROTECT : UFFDIO_WRITEPROTECT, &range));
}

/* From now on, what is touched lies on that node. */
static long bind_to_node(uint64_t node)
{
	unsigned long nodes = 1UL << node;

	return or_errno(syscall(SYS_set_mempolicy, MPOL_BIND, &nodes, 8 * sizeof(nodes) + 1));
}

/* Registered buffers hold a long-term pin (FOLL_PIN | FOLL_LONGTERM) until the ring is closed. */
static long pin_uring(uint64_t first, uint64_t pages)
{
	struct io_uring_params params = { 0 };
	struct iovec range = { (void *)page(first), pages * PAGE };
	int ring = syscall(SYS_io_uring_setup, 4, &params);

	if (ring < 0)
		return failed();
	return or_errno(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &range, 1));
}

/* Pages in a pipe hold a plain reference each until they are read, and they never are. */
static long pin_vmsplice(uint64_t first, uint64_t pages)
{
	struct iovec range = { (void *)page(first), pages * PAGE };
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) || fcntl(ends[1], F_SETPIPE_SZ, pages * PAGE) < 0)
		return failed();
	return vmsplice(ends[1], &range, 1, SPLICE_F_NONBLOCK) == (ssize_t)range.iov_len ? 0 : -EIO;
}

/* fork(); both sides have memory of their own when the parent returns. */
static pid_t fork_own(void)
{
	int ends[2];
	char nothing;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC))
		return -1;
	pid = fork();
	close(ends[!!pid]);
	if (pid >= 0)
		have_own();
	/* It ends when the child closes its end. */
	if (pid > 0 && read(ends[0], &nothing, 1))
		pid = -1;
	close(ends[!pid]);
	return pid;
}

static long fork_sleepers(uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		pid_t pid = fork_own();

		if (pid < 0)
			return failed();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
		if (child_count == MAX_CHILDREN)
			return -ENOSPC;
		children[child_count++] = pid;
	}
	return 0;
}

static long end_sleeper(uint64_t index)
{
	if (index >= (uint64_t)child_count || !children[index])
		return -ESRCH;
	kill(children[index], SIGKILL);
	syscall(SYS_wait4, children[index], NULL, 0, NULL);
	children[index] = 0;
	return 0;
}

static void end_sleepers(void)
{
	while (child_count) {
		end_sleeper(child_count - 1);
		child_count--;
	}
}

/* A child that takes ops of its own; PID 1 gets its socket through ours. */
static long fork_subject(void)
{
	int ends[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
		return failed();
	pid = fork_own();
	if (pid < 0)
		return failed();
	if (!pid) {
		close(ends[0]);
		close(sock);
		child_count = 0;
		subject_loop(ends[1]);
	}
	close(ends[1]);
	if (send_fd(sock, ends[0], pid))
		return failed();
	close(ends[0]);
	return 0;
}

static long write_own_pid(const char *path)
{
	char text[16];
	int fd = open(path, O_WRONLY | O_CLOEXEC), length = sprintf(text, "%d", getpid());
	long result;

	if (fd < 0)
		return failed();
	result = write(fd, text, length) == length ? 0 : failed();
	close(fd);
	return result;
}

/* madvise() on another process, by its pid. */
static long advise_other(const struct words *w)
{
	struct iovec range = { (void *)number(w, 2), number(w, 3) };
	int pidfd = syscall(SYS_pidfd_open, (pid_t)number(w, 1), 0);
	long result;

	if (pidfd < 0)
		return failed();
	result = or_errno(syscall(SYS_process_madvise, pidfd, &range, 1, (int)number(w, 4), 0));
	close(pidfd);
	return result < 0 ? result : 0;
}

/* One entry of 8 bytes of a file of /proc. */
static uint64_t entry(const char *path, uint64_t index)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t value = 0;

	if (fd >= 0 && pread(fd, &value, sizeof(value), index * 8) != sizeof(value))
		value = 0;
	close(fd);
	return value;
}

/* Touch a page of each 2 MiB until one gets a small folio: how many got a large one. */
static long fill_tables(uint64_t first, uint64_t windows)
{
	const uint64_t large = 1 << 15 | 1 << 16; /* KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL */
	uint64_t i, frame;

	for (i = 0; i < windows; i++) {
		*page(first + i * 512) = 1;
		frame = entry("/proc/self/pagemap", (uint64_t)page(first + i * 512) / PAGE) << 9 >> 9;
		if (!(entry("/proc/kpageflags", frame) & large))
			break;
	}
	return i;
}

#define REGION 10 /* the order of regions of memory that are kept whole */
#define NR_REGIONS 1024

static unsigned char kept[NR_REGIONS];

/* The frames of pages of ours, up to 512 from that page on, 0 of what is not there. */
static long frames_of(int pagemap, uint64_t first, uint64_t *frames)
{
	if (pread(pagemap, frames, 512 * 8, (uint64_t)page(first) / PAGE * 8) < 8)
		return -EIO;
	for (int i = 0; i < 512; i++)
		frames[i] = frames[i] >> 63 ? frames[i] << 9 >> 9 : 0;
	return 0;
}

/* Keep `most` regions that are ours as a whole, high ones: the kernel's own memory lies among the low ones. */
static long keep_regions(int pagemap, uint64_t first, uint64_t pages, uint64_t most)
{
	static unsigned short held[NR_REGIONS];
	uint64_t frames[512];

	memset(held, 0, sizeof(held));
	memset(kept, 0, sizeof(kept));
	for (uint64_t i = 0; i < pages; i++) {
		if (i % 512 == 0 && frames_of(pagemap, first + i, frames))
			return -EIO;
		if (frames[i % 512] >> REGION < NR_REGIONS)
			held[frames[i % 512] >> REGION]++;
	}
	for (uint64_t i = NR_REGIONS - 1; i && most; i--)
		if (held[i] == 1 << REGION)
			kept[i] = 1, most--;
	return 0;
}

/* Give back every page but those whose frame number is a multiple of 2^order, and those of a number of regions. */
static long thin_out(uint64_t first, uint64_t pages, uint64_t order, uint64_t regions)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t frames[512], given = 0;

	if (fd < 0 || keep_regions(fd, first, pages, regions))
		return -EIO;
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t frame;

		if (i % 512 == 0 && frames_of(fd, first + i, frames))
			return -EIO;
		frame = frames[i % 512];
		if (frame % (1ULL << order) && !(frame >> REGION < NR_REGIONS && kept[frame >> REGION])) {
			given++;
			continue;
		}
		if (given && madvise((void *)page(first + i - given), given * PAGE, MADV_DONTNEED_LOCKED))
			return failed();
		given = 0;
	}
	close(fd);
	if (given && madvise((void *)page(first + pages - given), given * PAGE, MADV_DONTNEED_LOCKED))
		return failed();
	return 0;
}

/* Free `count` blocks of 2^order frames of the regions that were kept, no two of which make a larger one: how
 * many there were. */
static long leave_blocks(uint64_t first, uint64_t pages, uint64_t order, uint64_t count)
{
	static unsigned short held[1 << 16];
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t frames[512], found = 0;

	if (fd < 0)
		return failed();
	memset(held, 0, sizeof(held));
	for (int again = 0; again < 2; again++)
		for (uint64_t i = 0; i < pages; i++) {
			uint64_t frame, block;

			if (i % 512 == 0 && frames_of(fd, first + i, frames))
				return -EIO;
			frame = frames[i % 512], block = frame >> order;
			if (frame >> REGION >= NR_REGIONS || !kept[frame >> REGION] || block >> 16)
				continue;
			if (!again)
				held[block]++;
			else if (held[block] == 1 << order && found < count && (order == REGION || !(block & 1)))
				found++, held[block] = 0xffff;
			if (again && held[block] == 0xffff &&
			    madvise((void *)page(first + i), PAGE, MADV_DONTNEED_LOCKED))
				return failed();
		}
	close(fd);
	return found;
}

static long run(const struct words *w)
{
	const char *op = w->word[0];
	uint64_t first = number(w, 1), pages = number(w, 2), third = number(w, 3);
	void *start = (void *)page(first);

	if (!strcmp(op, "base"))
		return base = first, 0;
	if (!strcmp(op, "wr") || !strcmp(op, "rd") || !strcmp(op, "same"))
		return touch(op, first, pages, third);
	if (!strcmp(op, "fill"))
		return fill(first, pages, third);
	if (!strcmp(op, "adv"))
		return or_errno(madvise(start, pages * PAGE, third));
	if (!strcmp(op, "mmap"))
		return map(first, pages, MAP_PRIVATE);
	if (!strcmp(op, "mmap_droppable"))
		return map(first, pages, MAP_DROPPABLE);
	if (!strcmp(op, "heap"))
		return place_heap(first);
	if (!strcmp(op, "brk"))
		return set_brk(first);
	if (!strcmp(op, "munmap"))
		return or_errno(munmap(start, pages * PAGE));
	if (!strcmp(op, "mprotect"))
		return or_errno(mprotect(start, pages * PAGE, third));
	if (!strcmp(op, "mremap"))
		return move(first, pages, third);
	if (!strcmp(op, "mlock2"))
		return or_errno(syscall(SYS_mlock2, start, pages * PAGE, MLOCK_ONFAULT));
	if (!strcmp(op, "mlock"))
		return or_errno(mlock(start, pages * PAGE));
	if (!strcmp(op, "munlock"))
		return or_errno(munlock(start, pages * PAGE));
	if (!strcmp(op, "uffd"))
		return register_uffd(first, pages, third);
	if (!strcmp(op, "uffdwp"))
		return write_protect(first, pages, third);
	if (!strcmp(op, "thin"))
		return thin_out(first, pages, third, number(w, 4));
	if (!strcmp(op, "leave"))
		return leave_blocks(first, pages, third, number(w, 4));
	if (!strcmp(op, "fill_tables"))
		return fill_tables(first, pages);
	if (!strcmp(op, "pin_uring"))
		return pin_uring(first, pages);
	if (!strcmp(op, "pin_vmsplice"))
		return pin_vmsplice(first, pages);
	if (!strcmp(op, "fork"))
		return fork_sleepers(first);
	if (!strcmp(op, "forkkill"))
		return end_sleeper(first);
	if (!strcmp(op, "endfork"))
		return end_sleepers(), 0;
	if (!strcmp(op, "forkto"))
		return fork_subject();
	if (!strcmp(op, "prctl_thp"))
		return or_errno(prctl(PR_SET_THP_DISABLE, first, pages, 0, 0));
	if (!strcmp(op, "node"))
		return bind_to_node(first);
	if (!strcmp(op, "join"))
		return write_own_pid(w->word[1]);
	if (!strcmp(op, "padv"))
		return advise_other(w);
	return -ENOSYS;
}

/* SIGBUS is forced on the process that poisons a page, used or not; ignoring it would not be enough. */
static void do_nothing(int signal)
{
	(void)signal;
}

void subject_loop(int from)
{
	char line[1024];
	ssize_t length;

	signal(SIGBUS, do_nothing);
	/* A child that PID 1 ends is gone at once: nobody here waits for it. */
	signal(SIGCHLD, SIG_IGN);
	sock = from;
	while ((length = recv(sock, line, sizeof(line) - 1, 0)) > 0) {
		struct answer answer = { 0 };
		struct words w;
		long result;

		line[length] = 0;
		w = split(line);
		result = run(&w);
		answer.error = result < 0 ? result : 0;
		answer.value = result < 0 ? 0 : result;
		if (send(sock, &answer, sizeof(answer), 0) != sizeof(answer))
			break;
	}
	_exit(0);
}

int send_fd(int to, int fd, pid_t pid)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { &pid, sizeof(pid) };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	return sendmsg(to, &message, 0) == sizeof(pid) ? 0 : -1;
}

int receive_fd(int from, pid_t *pid)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { pid, sizeof(*pid) };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
	};
	int fd = -1;

	if (recvmsg(from, &message, 0) == sizeof(*pid) && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}
