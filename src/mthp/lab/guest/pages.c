/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the kernel says of a process's pages: pagemap, kpageflags and kpagecount; and the page
 * table itself, read through /proc/kcore from its physical address down. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define MAX_PAGES 65536ULL
#define PFN(entry) ((entry) & ((1ULL << 55) - 1))
#define PRESENT_IN_PAGEMAP (1ULL << 63)

#define ANON (1ULL << 12)
#define CACHED (1ULL << 13)
#define HEAD (1ULL << 15)
#define TAIL (1ULL << 16)
#define MAX_ORDER 9

/* folio: the head's frame number times 256, plus the order; 0 for what is not present. */
struct page_words {
	uint64_t pagemap, flags, count, folio;
};

/* Flags of the frames from `pfn` on, as many as are mapped in a row. */
struct frames {
	uint64_t pfn, count;
	uint64_t *flags;
};

static struct page_words *page_words;
static uint64_t *column;
static int flags_fd = -1, count_fd = -1;

static int open_once(int *fd, const char *path)
{
	if (*fd < 0)
		*fd = open(path, O_RDONLY | O_CLOEXEC);
	return *fd;
}

/* One of the two files indexed by frame number, for a run of frames that follow each other. */
static int read_frames(int fd, uint64_t pfn, uint64_t frames, uint64_t *to)
{
	ssize_t want = frames * 8;

	return pread(fd, to, want, pfn * 8) == want ? 0 : -EIO;
}

static uint64_t flags_of(const struct frames *known, uint64_t pfn)
{
	uint64_t flags = 0;

	if (pfn >= known->pfn && pfn < known->pfn + known->count)
		return known->flags[pfn - known->pfn];
	read_frames(flags_fd, pfn, 1, &flags);
	return flags;
}

/* A folio starts on a multiple of its size, and its frames but the first are tails. */
static uint64_t folio_of(const struct frames *known, uint64_t pfn)
{
	uint64_t head = pfn, order = 0;

	if (!(flags_of(known, pfn) & (HEAD | TAIL)))
		return pfn << 8;
	for (int k = 0; k <= MAX_ORDER && !(flags_of(known, head) & HEAD); k++)
		head = pfn & ~((1ULL << k) - 1);
	while (order < MAX_ORDER && flags_of(known, head + (1ULL << order)) & TAIL)
		order++;
	return head << 8 | order;
}

/* Flags, counts and folios of one run of pages that stand in frames that follow each other. */
static int read_run(struct page_words *run, uint64_t pages)
{
	struct frames known = { PFN(run->pagemap), pages, column };
	uint64_t folio = 0, end = 0;

	if (read_frames(count_fd, known.pfn, pages, column))
		return -EIO;
	for (uint64_t i = 0; i < pages; i++)
		run[i].count = column[i];
	if (read_frames(flags_fd, known.pfn, pages, column))
		return -EIO;
	for (uint64_t i = 0; i < pages; i++) {
		if (known.pfn + i >= end) {
			folio = folio_of(&known, known.pfn + i);
			end = (folio >> 8) + (1ULL << (folio & 0xff));
		}
		run[i].flags = column[i];
		run[i].folio = folio;
	}
	return 0;
}

ssize_t read_pages(pid_t pid, uint64_t address, uint64_t pages, void **data)
{
	char path[64];
	uint64_t done, run, i;
	int fd;

	if (pages > MAX_PAGES)
		return -E2BIG;
	if (open_once(&flags_fd, "/proc/kpageflags") < 0 || open_once(&count_fd, "/proc/kpagecount") < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (pread(fd, column, pages * 8, address / PAGE * 8) != (ssize_t)(pages * 8)) {
		close(fd);
		return -EIO;
	}
	close(fd);
	for (i = 0; i < pages; i++)
		page_words[i] = (struct page_words){ .pagemap = column[i] };
	for (done = 0; done < pages; done += run) {
		uint64_t entry = page_words[done].pagemap, pfn = PFN(entry);

		run = 1;
		if (!(entry & PRESENT_IN_PAGEMAP))
			continue;
		while (done + run < pages && (page_words[done + run].pagemap & PRESENT_IN_PAGEMAP) &&
		       PFN(page_words[done + run].pagemap) == pfn + run)
			run++;
		if (read_run(page_words + done, run))
			return -EIO;
	}
	*data = page_words;
	return pages * sizeof(page_words[0]);
}

/* --- the page table ------------------------------------------------------------------------- */

#define ENTRIES 512
#define FRAME(entry) ((entry) & 0x000ffffffffff000ULL)
#define IS_PRESENT(entry) ((entry) & 1)
#define IS_HUGE(entry) ((entry) & 0x80)
#define PMD_SHIFT 21
#define MAX_SEGMENTS 128

enum level { LEVEL_PTE, LEVEL_PMD, LEVEL_NONE };

struct entry {
	uint64_t value;
	uint64_t level;
};

static struct entry *entries;
static Elf64_Phdr segments[MAX_SEGMENTS];
static int segment_count, kcore_fd = -1;

static int open_kcore(void)
{
	Elf64_Ehdr header;

	if (kcore_fd >= 0)
		return 0;
	kcore_fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	if (kcore_fd < 0)
		return -errno;
	if (pread(kcore_fd, &header, sizeof(header), 0) != sizeof(header) || header.e_phnum > MAX_SEGMENTS)
		return -EIO;
	segment_count = header.e_phnum;
	if (pread(kcore_fd, segments, segment_count * sizeof(segments[0]), header.e_phoff) < 0)
		return -errno;
	return 0;
}

/* Memory at a physical address; a kernel address (its top bit is set) is looked up as such. */
static int read_core(uint64_t address, void *to, size_t size)
{
	int virtual = address >> 63;

	for (int i = 0; i < segment_count; i++) {
		const Elf64_Phdr *s = &segments[i];
		uint64_t from = virtual ? s->p_vaddr : s->p_paddr;

		if (s->p_type != PT_LOAD || from == ~0ULL || address < from || address - from >= s->p_memsz)
			continue;
		return pread(kcore_fd, to, size, s->p_offset + (address - from)) == (ssize_t)size ? 0 : -EIO;
	}
	return -EFAULT;
}

/* The table that `address` has at each level, four of them; the last one read is kept. */
static int find_pmd(uint64_t pgd, uint64_t address, uint64_t *pmd)
{
	uint64_t table[ENTRIES], at = pgd;

	for (int shift = 39; shift >= PMD_SHIFT; shift -= 9) {
		int error = read_core(at, table, sizeof(table));

		if (error)
			return error;
		*pmd = table[(address >> shift) % ENTRIES];
		if (!IS_PRESENT(*pmd) || IS_HUGE(*pmd))
			return 0;
		at = FRAME(*pmd);
	}
	return 0;
}

/* Every folio in the swap cache: folio as above, and its flags. */
ssize_t cached_folios(void **data)
{
	struct frames known = { 0, 0, NULL };
	uint64_t found = 0, flags[512], *out = (uint64_t *)page_words;
	ssize_t got;

	if (open_once(&flags_fd, "/proc/kpageflags") < 0)
		return -errno;
	for (uint64_t pfn = 0; (got = pread(flags_fd, flags, sizeof(flags), pfn * 8)) > 0; pfn += got / 8)
		for (uint64_t i = 0; i < (uint64_t)got / 8; i++) {
			if ((flags[i] & (CACHED | ANON)) != (CACHED | ANON) || flags[i] & TAIL)
				continue;
			if (found == MAX_PAGES)
				return -E2BIG;
			out[2 * found] = folio_of(&known, pfn + i);
			out[2 * found++ + 1] = flags[i];
		}
	*data = page_words;
	return found * 16;
}

ssize_t walk_pages(uint64_t pgd, uint64_t address, uint64_t pages, void **data)
{
	uint64_t table[ENTRIES], pmd = 0, i;
	int error;

	if (pages > MAX_PAGES)
		return -E2BIG;
	error = open_kcore();
	for (i = 0; i < pages && !error; i++, address += PAGE) {
		int first = i == 0 || address % (1ULL << PMD_SHIFT) == 0;

		if (first)
			error = find_pmd(pgd, address, &pmd);
		if (!error && first && IS_PRESENT(pmd) && !IS_HUGE(pmd))
			error = read_core(FRAME(pmd), table, sizeof(table));
		if (!IS_PRESENT(pmd))
			entries[i] = (struct entry){ pmd, pmd ? LEVEL_PMD : LEVEL_NONE };
		else if (IS_HUGE(pmd))
			entries[i] = (struct entry){ pmd, LEVEL_PMD };
		else
			entries[i] = (struct entry){ table[(address / PAGE) % ENTRIES], LEVEL_PTE };
	}
	*data = entries;
	return error ? error : (ssize_t)(pages * sizeof(entries[0]));
}

ssize_t kernel_words(const struct words *addresses, void **data)
{
	static uint64_t found[MAX_WORDS];
	int count = addresses->count - 1, error = open_kcore();

	for (int i = 0; i < count && !error; i++)
		error = read_core(number(addresses, i + 1), &found[i], sizeof(found[i]));
	*data = found;
	return error ? error : (ssize_t)(count * sizeof(found[0]));
}

void have_buffers(void)
{
	page_words = buffer(MAX_PAGES * sizeof(page_words[0]));
	column = buffer(MAX_PAGES * sizeof(column[0]));
	entries = buffer(MAX_PAGES * sizeof(entries[0]));
}
