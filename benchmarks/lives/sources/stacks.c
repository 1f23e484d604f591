// SPDX-License-Identifier: GPL-2.0-or-later
// Starts so many threads with stacks of 1 MiB, as a JVM has them; each goes 40 KiB down its stack and waits.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mark.h"

static void *down(void *done)
{
	char used[40 << 10];

	memset(used, 1, sizeof used);
	__atomic_add_fetch((int *)done, used[7], __ATOMIC_SEQ_CST);
	pause();
	return NULL;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 0, done = 0;
	char name[32];
	pthread_attr_t stack;
	pthread_t thread;

	pthread_attr_init(&stack);
	pthread_attr_setstacksize(&stack, 1 << 20);
	for (int i = 0; i < count; i++)
		if (pthread_create(&thread, &stack, down, &done))
			return 1;
	while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < count)
		usleep(1000);
	snprintf(name, sizeof name, "%d threads wait", count);
	mark(name);
}
