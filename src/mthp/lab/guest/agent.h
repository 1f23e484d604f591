/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest's side of the lab: PID 1, which does what the host says, one line at a time. */
#ifndef MTHP_AGENT_H
#define MTHP_AGENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096ULL
#define MAX_LINE 65536
#define MAX_WORDS 64

/* What a command answers: 0 or a negative errno, a number, and where it helps a word on what failed. */
struct answer {
	int error;
	uint64_t value;
	char what[120];
};

/* A line taken apart at its blanks. */
struct words {
	int count;
	char *word[MAX_WORDS + 1];
};

struct words split(char *line);
void *buffer(size_t size);
void have_own(void);
void touch_own(void);
uint64_t number(const struct words *w, int index);

/* subject.c: a process under test; serves ops from its socket until that closes. */
void subject_loop(int sock) __attribute__((noreturn));
int send_fd(int sock, int fd, pid_t pid);
int receive_fd(int sock, pid_t *pid);

/* pages.c: what the kernel says of a process's pages, and words of its own memory. All give malloc-free
 * static buffers, which have_buffers() makes. */
void have_buffers(void);
ssize_t read_pages(pid_t pid, uint64_t address, uint64_t pages, void **data);
ssize_t cached_folios(void **data);
ssize_t walk_pages(uint64_t pgd, uint64_t address, uint64_t pages, void **data);
ssize_t kernel_words(const struct words *addresses, void **data);

#endif
