/* SPDX-License-Identifier: GPL-2.0-or-later */
/* PID 1 of the lab's guest. It mounts what a Linux system has, finds the host's virtio-serial port
 * and serves its commands, a line each; every one is answered by "+N" and N bytes, or by
 * "-ERRNO word". It knows nothing about what the commands are for. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define MAX_SUBJECTS 16
#define MAX_FILE (32 << 20)
#define MAX_IN_MEMORY (1 << 20)
#define READ_SIZE (1 << 16)
#define MAX_KEPT 256
#define MAX_OWN 32
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct subject {
	char name[32];
	pid_t pid;
	int sock;
};

static struct subject subjects[MAX_SUBJECTS];
static int port;
static char input[1 << 16];
static size_t input_start, input_end;
static char output[1 << 16];
static size_t output_end;
static char *file_buffer;
static int kept[MAX_KEPT], nr_kept;

/* Memory that no process under test inherits and no huge page is ever made of. */
void *buffer(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	madvise(at, size, MADV_DONTFORK);
	madvise(at, size, MADV_NOHUGEPAGE);
	madvise(at, size, MADV_POPULATE_WRITE);
	return at;
}

/* --- words ---------------------------------------------------------------------------------- */

struct words split(char *line)
{
	struct words w = { 0 };
	char *rest = line, *word;

	while (w.count < MAX_WORDS && (word = strsep(&rest, " ")))
		if (*word)
			w.word[w.count++] = word;
	return w;
}

uint64_t number(const struct words *w, int index)
{
	return index < w->count ? strtoull(w->word[index], NULL, 0) : 0;
}

/* --- the line to the host ------------------------------------------------------------------- */

static void die(const char *what)
{
	fprintf(stderr, "mthp agent: %s: %s\n", what, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void write_out(const void *data, size_t size)
{
	const char *at = data;

	while (size) {
		ssize_t sent = write(port, at, size);

		if (sent < 0 && errno != EINTR)
			die("write to the host");
		if (sent > 0)
			at += sent, size -= sent;
	}
}

static void flush(void)
{
	write_out(output, output_end);
	output_end = 0;
}

/* Answers go out when the next command has to be waited for: a message is dear. */
static void send_all(const void *data, size_t size)
{
	if (output_end + size > sizeof(output))
		flush();
	if (size > sizeof(output))
		return write_out(data, size);
	memcpy(output + output_end, data, size);
	output_end += size;
}

static void fill_input(void)
{
	ssize_t got;

	flush();
	input_start = input_end = 0;
	while ((got = read(port, input, sizeof(input))) <= 0) {
		struct timespec pause = { 0, 1000000 };

		/* 0: the host has not opened its end yet, or has gone. */
		if (got < 0 && errno != EINTR && errno != EAGAIN)
			die("read from the host");
		nanosleep(&pause, NULL);
	}
	input_end = got;
}

static void read_bytes(char *to, size_t size)
{
	while (size) {
		size_t have = input_end - input_start;

		if (!have) {
			fill_input();
			continue;
		}
		have = have < size ? have : size;
		memcpy(to, input + input_start, have);
		input_start += have, to += have, size -= have;
	}
}

static void read_line(char *line, size_t size)
{
	size_t length = 0;
	char c;

	for (;;) {
		read_bytes(&c, 1);
		if (c == '\n')
			break;
		if (length + 1 < size)
			line[length++] = c;
	}
	line[length] = 0;
}

static void succeed(const void *data, size_t size)
{
	char head[32];
	int length = snprintf(head, sizeof(head), "+%zu\n", size);

	send_all(head, length);
	send_all(data, size);
}

static void succeed_number(uint64_t value)
{
	char text[32];

	succeed(text, snprintf(text, sizeof(text), "%llu", (unsigned long long)value));
}

static void fail(int error, const char *what)
{
	char line[256];

	send_all(line, snprintf(line, sizeof(line), "-%d %s\n", error < 0 ? -error : error, what));
}

static void answer_result(long result, const char *what)
{
	if (result < 0)
		fail(result, what);
	else
		succeed("", 0);
}

/* --- files ---------------------------------------------------------------------------------- */

static long write_file(const char *path, int flags, off_t offset, const char *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0755);
	long result = 0;

	if (fd < 0)
		return -errno;
	if (offset && lseek(fd, offset, SEEK_SET) < 0)
		result = -errno;
	while (!result && size) {
		ssize_t wrote = write(fd, data, size);

		if (wrote < 0)
			result = -errno;
		else
			data += wrote, size -= wrote;
	}
	if (close(fd) && !result)
		result = -errno;
	return result;
}

/* The whole of a file, as far as the buffer goes; what grows meanwhile is read once. */
static ssize_t read_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t size = 0;
	ssize_t got = 0;

	if (fd < 0)
		return -errno;
	while (size < MAX_FILE - READ_SIZE && (got = read(fd, file_buffer + size, READ_SIZE)) > 0)
		size += got;
	if (got < 0)
		got = -errno;
	close(fd);
	return got < 0 ? got : (ssize_t)size;
}

static void send_file(const char *path)
{
	ssize_t size = read_file(path);

	if (size < 0)
		fail(size, path);
	else
		succeed(file_buffer, size);
	/* As little of it as may be lies among the guest's memory. */
	if (size > MAX_IN_MEMORY)
		madvise(file_buffer + MAX_IN_MEMORY, MAX_FILE - MAX_IN_MEMORY, MADV_DONTNEED);
}

/* keep PATH…: files that `look` shows, all at once, as they are then. They stay open. */
static void keep(const struct words *w)
{
	for (int i = 1; i < w->count; i++) {
		int fd = nr_kept < MAX_KEPT ? open(w->word[i], O_RDONLY | O_CLOEXEC) : -1;

		if (fd < 0)
			return fail(nr_kept < MAX_KEPT ? errno : ENOSPC, w->word[i]);
		kept[nr_kept++] = fd;
	}
	succeed("", 0);
}

/* look: what is in the kept files, each ended by a byte of zero. */
static void look(void)
{
	size_t size = 0;

	for (int i = 0; i < nr_kept; i++) {
		off_t place = 0;
		ssize_t got = 0;

		while (size < MAX_FILE - READ_SIZE &&
		       (got = pread(kept[i], file_buffer + size, READ_SIZE, place)) > 0)
			size += got, place += got;
		if (got < 0)
			return fail(errno, "look");
		file_buffer[size++] = 0;
	}
	succeed(file_buffer, size);
}

/* put PATH OFFSET SIZE, and that many bytes behind the line. */
static void put(const struct words *w)
{
	uint64_t offset = number(w, 2), left = number(w, 3);
	long result = 0;

	if (!offset)
		result = write_file(w->word[1], O_CREAT, 0, "", 0);
	while (left) {
		size_t part = left < MAX_FILE ? left : MAX_FILE;

		read_bytes(file_buffer, part);
		if (!result)
			result = write_file(w->word[1], 0, offset, file_buffer, part);
		offset += part, left -= part;
	}
	answer_result(result, w->word[1]);
}

static void nap(void)
{
	struct timespec pause = { 0, 500000 };

	nanosleep(&pause, NULL);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ULL + t.tv_nsec / 1000000;
}

/* wait PATH INDEX WORD MS: until the file's word of that index is WORD, or as a number at least it. */
static void wait_word(const struct words *w)
{
	uint64_t end = now_ms() + number(w, 4);

	do {
		ssize_t size = read_file(w->word[1]);
		char *rest = file_buffer, *word = NULL;

		if (size < 0)
			return fail(size, w->word[1]);
		file_buffer[size < MAX_FILE ? size : MAX_FILE - 1] = 0;
		for (uint64_t i = 0; i <= number(w, 2); i++)
			while ((word = strsep(&rest, " \n")) && !*word)
				;
		if (word && *w->word[3] >= '0' && *w->word[3] <= '9' ?
			    strtoull(word, NULL, 10) >= number(w, 3) : word && !strcmp(word, w->word[3]))
			return succeed("", 0);
		nap();
	} while (now_ms() < end);
	fail(ETIMEDOUT, w->word[1]);
}

/* How often a task gave up the processor by itself, or all ones while it is not asleep. */
static uint64_t sleeps(const char *path)
{
	ssize_t size = read_file(path);
	const char *at;

	if (size <= 0 || size >= MAX_FILE)
		return 0;
	file_buffer[size] = 0;
	if (!strstr(file_buffer, "State:\tS"))
		return ~0ULL;
	at = strstr(file_buffer, "\nvoluntary_ctxt_switches:");
	return at ? strtoull(at + sizeof("\nvoluntary_ctxt_switches:"), NULL, 10) : 0;
}

/* idle PID MS LIMIT: until the task has been asleep for MS without waking. */
static void wait_idle(const struct words *w)
{
	uint64_t end = now_ms() + number(w, 3), since = now_ms(), last = ~0ULL, now;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%s/status", w->word[1]);
	while (now_ms() < end) {
		now = sleeps(path);
		if (now != last || now == ~0ULL)
			since = now_ms();
		else if (now_ms() - since >= number(w, 2))
			return succeed("", 0);
		last = now;
		nap();
	}
	fail(ETIMEDOUT, path);
}

/* --- processes ------------------------------------------------------------------------------ */

static struct subject *find_subject(const char *name)
{
	for (int i = 0; i < MAX_SUBJECTS; i++)
		if (subjects[i].pid && !strcmp(subjects[i].name, name))
			return &subjects[i];
	return NULL;
}

static struct subject *add_subject(const char *name, pid_t pid, int sock)
{
	for (int i = 0; i < MAX_SUBJECTS; i++) {
		struct subject *s = &subjects[i];

		if (s->pid)
			continue;
		snprintf(s->name, sizeof(s->name), "%s", name);
		s->pid = pid;
		s->sock = sock;
		return s;
	}
	return NULL;
}

static void reap(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* Gone, its memory too, when this returns. */
static void end_subject(struct subject *s)
{
	kill(s->pid, SIGKILL);
	close(s->sock);
	while (waitpid(s->pid, NULL, 0) < 0 && errno == ECHILD && !kill(s->pid, 0))
		nap();
	s->pid = 0;
	reap();
}

static struct {
	void *start;
	size_t size;
} own[MAX_OWN];
static int nr_own;

/* Have every page of the process's own memory at hand and shared with nobody, in small pages whatever is
 * enabled: what it does later takes none. So after every fork, on both sides. */
void have_own(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (int i = 0; i < nr_own; i++)
		madvise(own[i].start, own[i].size, MADV_POPULATE_WRITE);
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
}

/* The same for the first time: what is mapped now is the process's own memory. */
void touch_own(void)
{
	volatile char room[1 << 16];
	FILE *maps;
	char line[256];

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (size_t at = 0; at < sizeof(room); at += PAGE)
		room[at] = 0;
	maps = fopen("/proc/self/maps", "re");
	nr_own = 0;
	while (maps && nr_own < MAX_OWN && fgets(line, sizeof(line), maps)) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx rw-p", &start, &end) == 2 && strstr(line, " rw-p "))
			own[nr_own].start = (void *)start, own[nr_own++].size = end - start;
	}
	if (maps)
		fclose(maps);
	have_own();
}

/* A process that serves ops: by subject_loop(), or the program of argv on its descriptor 3. */
static void new_subject(const char *name, char **argv)
{
	struct subject *old = find_subject(name);
	int ends[2];
	pid_t pid;

	if (old)
		end_subject(old);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
		return fail(errno, "socketpair");
	pid = fork();
	if (pid < 0)
		return fail(errno, "fork");
	if (!pid) {
		close(port);
		close(ends[0]);
		for (int i = 0; i < MAX_SUBJECTS; i++)
			if (subjects[i].pid)
				close(subjects[i].sock);
		prctl(PR_SET_NAME, name);
		if (!argv) {
			touch_own();
			subject_loop(ends[1]);
		}
		dup2(ends[1], 3);
		/* What is to be counted of free memory stays. */
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
		execv(*argv, argv);
		_exit(127);
	}
	close(ends[1]);
	have_own();
	if (!add_subject(name, pid, ends[0]))
		return fail(ENOSPC, "subjects");
	succeed_number(pid);
}

static void ask_subject(struct subject *s, const char *line)
{
	struct answer answer;
	const char *op = line + strlen(s->name) + 1;

	if (send(s->sock, op, strlen(op), MSG_NOSIGNAL) < 0)
		return fail(errno, s->name);
	if (!strncmp(op, "forkto ", 7)) {
		pid_t pid = 0;
		int sock = receive_fd(s->sock, &pid);

		if (sock >= 0 && !add_subject(op + 7, pid, sock))
			return fail(ENOSPC, "subjects");
	}
	if (recv(s->sock, &answer, sizeof(answer), 0) != sizeof(answer)) {
		int status = 0;

		waitpid(s->pid, &status, 0);
		s->pid = 0;
		close(s->sock);
		snprintf(answer.what, sizeof(answer.what), "died of signal %d", WTERMSIG(status));
		return fail(ESRCH, answer.what);
	}
	if (answer.error)
		fail(answer.error, *answer.what ? answer.what : op);
	else
		succeed_number(answer.value);
}

/* start NAME OUTPUT program argument…: in the background; its output goes to a file. */
static pid_t start(const struct words *w, const char *output, int first)
{
	/* Here and not in the child, so that the file is there once this has answered. */
	int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	pid_t pid = fork();

	if (!pid) {
		setsid();
		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(fd, 1);
		dup2(fd, 2);
		close(port);
		execvp(w->word[first], w->word + first);
		dprintf(2, "%s: %s\n", w->word[first], strerror(errno));
		_exit(127);
	}
	close(fd);
	return pid;
}

/* exec MS program argument…: its exit status and its output. Killed when the time is over. */
static void execute(struct words *w)
{
	uint64_t end = now_ms() + number(w, 1);
	const char *output = "/tmp/exec.out";
	char head[32];
	int status = 0;
	pid_t pid;

	w->word[w->count] = NULL;
	pid = start(w, output, 2);
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (now_ms() > end) {
			kill(-pid, SIGKILL);
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return fail(ETIMEDOUT, w->word[2]);
		}
		nap();
	}
	ssize_t size = read_file(output);
	int length = snprintf(head, sizeof(head), "+%zd\n", (size < 0 ? 0 : size) + 8);

	send_all(head, length);
	snprintf(head, sizeof(head), "%7d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
	send_all(head, 8);
	send_all(file_buffer, size < 0 ? 0 : size);
}

static int is_called(const char *pid, const char *name)
{
	size_t length = strlen(name);
	char path[300];

	snprintf(path, sizeof(path), "/proc/%s/comm", pid);
	return read_file(path) == (ssize_t)length + 1 && !memcmp(file_buffer, name, length);
}

/* pidof NAME: the first process of that name, kernel threads too. The last answer may still hold. */
static void find_process(const char *name)
{
	static char last[32];
	struct dirent *entry;
	DIR *dir;

	if (*last && is_called(last, name))
		return succeed(last, strlen(last));
	dir = opendir("/proc");
	while (dir && (entry = readdir(dir))) {
		if (*entry->d_name < '0' || *entry->d_name > '9' || !is_called(entry->d_name, name))
			continue;
		snprintf(last, sizeof(last), "%.31s", entry->d_name);
		succeed(last, strlen(last));
		closedir(dir);
		return;
	}
	if (dir)
		closedir(dir);
	fail(ESRCH, name);
}

static void load_module(const struct words *w)
{
	int fd = open(w->word[1], O_RDONLY | O_CLOEXEC);
	long result = fd < 0 ? -1 : syscall(SYS_finit_module, fd, w->count > 2 ? w->word[2] : "", 0);

	answer_result(result < 0 && errno != EEXIST ? -errno : 0, w->word[1]);
	if (fd >= 0)
		close(fd);
}

/* --- commands ------------------------------------------------------------------------------- */

/* size: of the data, or a negative errno. */
static void send_data(ssize_t size, void *const *data, const char *what)
{
	if (size < 0)
		fail(size, what);
	else
		succeed(*data, size);
}

static void run_about(struct words *w, struct subject *s)
{
	const char *op = w->word[0];
	void *data = NULL;

	if (!strcmp(op, "pid"))
		return succeed_number(s->pid);
	if (!strcmp(op, "end"))
		return end_subject(s), succeed("", 0);
	if (!strcmp(op, "pages"))
		return send_data(read_pages(s->pid, number(w, 2), number(w, 3), &data), &data, op);
	fail(ENOSYS, op);
}

static int needs(const struct words *w, int count)
{
	if (w->count >= count)
		return 1;
	fail(EINVAL, w->word[0]);
	return 0;
}

static void run(char *line)
{
	static char copy[MAX_LINE];
	struct words w;
	void *data = NULL;

	strcpy(copy, line);
	w = split(copy);
	if (!w.count)
		return fail(EINVAL, "an empty line");
	const char *op = w.word[0];
	struct subject *s = find_subject(op);

	if (s)
		return ask_subject(s, line);
	if (!strcmp(op, "w") && needs(&w, 2)) {
		const char *value = strstr(line + 2, " ");

		value = value ? value + 1 : "";
		return answer_result(write_file(w.word[1], O_TRUNC, 0, value, strlen(value)), w.word[1]);
	}
	if (!strcmp(op, "a") && needs(&w, 3)) {
		const char *value = strstr(line + 2, " ") + 1;

		return answer_result(write_file(w.word[1], O_APPEND, 0, value, strlen(value)), w.word[1]);
	}
	if (!strcmp(op, "r") && needs(&w, 2))
		return send_file(w.word[1]);
	if (!strcmp(op, "keep"))
		return keep(&w);
	if (!strcmp(op, "look"))
		return look();
	if (!strcmp(op, "put") && needs(&w, 4))
		return put(&w);
	if (!strcmp(op, "wait") && needs(&w, 5))
		return wait_word(&w);
	if (!strcmp(op, "idle") && needs(&w, 4))
		return wait_idle(&w);
	if (!strcmp(op, "new"))
		return new_subject(w.count > 1 ? w.word[1] : "s", NULL);
	if (!strcmp(op, "serve") && needs(&w, 3)) {
		w.word[w.count] = NULL;
		return new_subject(w.word[1], w.word + 2);
	}
	if (!strcmp(op, "walk") && needs(&w, 4))
		return send_data(walk_pages(number(&w, 1), number(&w, 2), number(&w, 3), &data), &data, op);
	if (!strcmp(op, "cached"))
		return send_data(cached_folios(&data), &data, op);
	if (!strcmp(op, "words"))
		return send_data(kernel_words(&w, &data), &data, op);
	if (!strcmp(op, "insmod") && needs(&w, 2))
		return load_module(&w);
	if (!strcmp(op, "mkdir") && needs(&w, 2))
		return answer_result(mkdir(w.word[1], 0755) ? -errno : 0, w.word[1]);
	if (!strcmp(op, "rmdir") && needs(&w, 2))
		return answer_result(rmdir(w.word[1]) ? -errno : 0, w.word[1]);
	if (!strcmp(op, "mount") && needs(&w, 4))
		return answer_result(mount(w.word[1], w.word[2], w.word[3], 0, w.count > 4 ? w.word[4] : "") ?
					     -errno : 0, w.word[2]);
	if (!strcmp(op, "swapoff") && needs(&w, 2))
		return answer_result(swapoff(w.word[1]), op);
	if (!strcmp(op, "swapon") && needs(&w, 2))
		return answer_result(swapon(w.word[1], 0) ? -errno : 0, w.word[1]);
	if (!strcmp(op, "exec") && needs(&w, 3))
		return execute(&w);
	if (!strcmp(op, "start") && needs(&w, 3)) {
		w.word[w.count] = NULL;
		return succeed_number(start(&w, w.word[1], 2));
	}
	if (!strcmp(op, "pidof") && needs(&w, 2))
		return find_process(w.word[1]);
	if (!strcmp(op, "pin") && needs(&w, 3)) {
		unsigned long cpus = 1UL << number(&w, 2);

		return answer_result(syscall(SYS_sched_setaffinity, (pid_t)number(&w, 1), sizeof(cpus), &cpus) < 0 ?
					     -errno : 0, w.word[1]);
	}
	if (!strcmp(op, "kill") && needs(&w, 3))
		return answer_result(kill(number(&w, 1), number(&w, 2)) ? -errno : 0, w.word[1]);
	if (!strcmp(op, "poweroff")) {
		succeed("", 0);
		flush();
		reboot(RB_POWER_OFF);
	}
	if (w.count > 1 && (s = find_subject(w.word[1])))
		return run_about(&w, s);
	if (!strcmp(op, "pages") || !strcmp(op, "pid") || !strcmp(op, "end"))
		return fail(ESRCH, w.count > 1 ? w.word[1] : op);
	fail(ENOSYS, op);
}

/* --- the start ------------------------------------------------------------------------------ */

static void mount_all(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	/* Programs write to the root, which may be filled no more than by half otherwise. */
	mount("", "/", "", MS_REMOUNT, "size=90%");
	mkdir("/tmp", 0);
	chmod("/tmp", 01777);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("devtmpfs", "/dev", "devtmpfs", 0, "");
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "");
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "");
	mkdir("/dev/shm", 0777);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, "");
}

/* Modules that the port needs, where the kernel does not have them built in: those in /early, by
 * name. */
static void load_early(void)
{
	struct dirent **entries;
	int count = scandir("/early", &entries, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char path[300];
		int fd;

		snprintf(path, sizeof(path), "/early/%s", entries[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0 && syscall(SYS_finit_module, fd, "", 0) && errno != EISDIR && *entries[i]->d_name != '.')
			fprintf(stderr, "mthp agent: %s: %s\n", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

/* The port is the first one virtio-serial shows; its device node may come a moment later. */
static int open_port(void)
{
	for (int tries = 0; tries < 20000; tries++) {
		DIR *dir = opendir("/sys/class/virtio-ports");
		struct dirent *entry;
		int fd;

		while (dir && (entry = readdir(dir))) {
			char path[300];

			if (*entry->d_name == '.')
				continue;
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
			if (fd >= 0) {
				closedir(dir);
				return fd;
			}
		}
		if (dir)
			closedir(dir);
		nap();
	}
	errno = ENODEV;
	return -1;
}

int main(void)
{
	static char line[MAX_LINE];

	signal(SIGPIPE, SIG_IGN);
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	file_buffer = buffer(MAX_FILE);
	have_buffers();
	mount_all();
	touch_own();
	load_early();
	port = open_port();
	if (port < 0)
		die("no port to the host");
	succeed("ready", 5);
	for (;;) {
		read_line(line, sizeof(line));
		run(line);
	}
}
