// SPDX-License-Identifier: GPL-2.0-or-later
// Fills memory with small objects, frees two thirds in runs, waits, purges, and fills it again. It is linked
// with jemalloc or with tcmalloc, whose way to purge is called where it is there.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mark.h"

#define COUNT 48000
#define RUN 64

int mallctl(const char *, void *, size_t *, void *, size_t) __attribute__((weak));
void MallocExtension_ReleaseFreeMemory(void) __attribute__((weak));
const char *malloc_conf = "dirty_decay_ms:1000,muzzy_decay_ms:1000";

static void *objects[COUNT];
static unsigned seed = 1;

static void fill(int at)
{
	size_t size = 16 + (seed = seed * 1103515245 + 12345) / 65536 % 1600;

	objects[at] = malloc(size);
	memset(objects[at], 1, size);
}

int main(void)
{
	for (int i = 0; i < COUNT; i++)
		fill(i);
	mark("filled");
	for (int i = 0; i < COUNT; i++)
		if (i / RUN % 3) {
			free(objects[i]);
			objects[i] = NULL;
		}
	mark("two thirds freed");
	// The allocators count allocations, and look at the clock at some of them.
	for (int i = 0; i < 30; i++) {
		usleep(100000);
		for (int n = 0; n < 3000; n++)
			free(malloc(100));
	}
	mark("idle");
	if (MallocExtension_ReleaseFreeMemory)
		MallocExtension_ReleaseFreeMemory();
	else if (mallctl)
		mallctl("arena.4096.purge", NULL, NULL, NULL, 0);
	mark("purged");
	for (int i = 0; i < COUNT / 2; i++)
		if (!objects[i])
			fill(i);
	mark("half filled again");
}
