// SPDX-License-Identifier: GPL-2.0-or-later
// Reads nothing, makes lines, sorts them, and frees a third.
#include <stdlib.h>
#include <string.h>

#include "mark.h"

static int less(const void *a, const void *b)
{
	return strcmp(*(char **)a, *(char **)b);
}

int main(void)
{
	unsigned seed = 1;
	size_t used = 0, room = 16;
	char **lines = malloc(room * sizeof *lines), text[200];

	for (; used < 200000; used++) {
		if (used == room)
			lines = realloc(lines, (room *= 2) * sizeof *lines);
		size_t length = 1 + (seed = seed * 1103515245 + 12345) % 150;
		memset(text, 'a' + seed % 26, length);
		text[length] = 0;
		lines[used] = strdup(text);
	}
	mark("read");
	qsort(lines, used, sizeof *lines, less);
	mark("sorted");
	for (size_t i = 0; i < used; i += 3)
		free(lines[i]);
	mark("done");
}
