/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * collapse_huge_page() of the profile 7.3 against CPUs that store and then load: for SPIN, the worlds
 * `pmd` and (-DWINDOW) `window` of `mthp check --rivals fault` (a store to the window's empty PTE), and
 * (-DTWO) of `--rivals store+fault` (another CPU stores to the page that is there).
 *
 * Written from our own reading of the protocol, step for step as our tasks take them: a statement in
 * a d_step or atomic is one access to one shared word with what follows from it locally. Words that
 * nobody changes here (mm_users, mm->flags, mm_mt, folio orders, page flags) are read all the same.
 *
 * Compile with -DOBSERVE to print every final state, with one of the MUTANT_ names to take a rule away.
 */

#ifdef WINDOW
#define NPTE 4
#else
#define NPTE 2
#endif

/* Frames: 1 the source, 2 the neighbour, 3 and 4 the new folio, from 5 on what faults allocate. */
#define SOURCE 1
#define NEIGHBOUR 2
#define NEW 3
#define FIRST_FAULTED 5
#define TABLES 4
#define MOST_FAULTS 4
#define GARBAGE 666

#ifdef TWO
#define USERS 2
#else
#define USERS 1
#endif
#define FRAMES (FIRST_FAULTED + USERS * MOST_FAULTS)

#define LOCKED 1
#define LRU 2
#define ACTIVE 4
#define REFERENCED 8
#define DIRTY_FOLIO 16
#define SWAPBACKED 32
#define UNEVICTABLE 64
#define MLOCKED 128
#define UPTODATE 256
#define SWAPCACHE 512
#define ANON 1024
#define ISOLATED 2048
#define PARTIALLY_MAPPED 4096
#define YOUNG_FOLIO 8192

/* A PTE: the frame in the upper four bits; writable, young, dirty, soft-dirty below. */
#define WRITABLE 1
#define YOUNG 2
#define DIRTY 4
#define USED 15
#define FRAME(pte) ((pte) >> 4)
#define MK_PTE(frame) ((frame) << 4 | USED)
#define PTE(table, i) pte[(table) * NPTE + (i)]

/* A PMD: 0 is none, a small number a table, HUGE the new folio. */
#define HUGE 10
#define IS_TABLE(pmd) ((pmd) && (pmd) != HUGE)

short mmap_lock, vm_lock;		/* -1: a writer; else how many readers */
bit anon_vma, pmd_lock;
bit ptl[TABLES];
bit instruction[USERS], irqs_off[USERS];	/* in one, and walking with interrupts off */

byte mm_users = 1, mm_flags, mm_mt;
byte pmd = 1;
byte pte[TABLES * NPTE];
byte nr_tables = 1;
byte deposited;				/* a table, or 0 */

short flags[FRAMES];
byte refcount[FRAMES], mapcount[FRAMES], order[FRAMES], page_flags[FRAMES];
byte large_mapcount, entire_mapcount;	/* of the new folio */
short content[FRAMES];

byte tlb_small[USERS];			/* each CPU's entry of the page it uses: a PTE */
bit tlb_huge[USERS];
byte link[USERS];			/* its walk cache: a table */

/* Ghosts: what the laws remember. */
bit copied[FRAMES];			/* the collapse has read it */
byte detached;				/* the table it took out of its PMD */
byte flushed[USERS];			/* the table of which the CPU can have no link left */
bit succeeded, warned, stored[USERS];
short loaded[USERS];
byte ended;

byte in_batches[FRAMES];		/* filled in when a CPU's task ends */

#define HEAD(frame) ((frame) == NEW + 1 -> NEW : (frame))
#define LAW(number, holds) assert(holds)

/* --- what must hold at every step ------------------------------------------------------------- */

#define LAW_1_IN_USE(frame) LAW(1, refcount[HEAD(frame)] > 0)
#define LAW_2_TLB LAW(2, !(tlb_small[me] && tlb_huge[me]))
#define LAW_9_PTE(table) LAW(9, ptl[table])

#ifdef OBSERVE
#define OBSERVED c_code { observe(); }
c_code {
	static void observe(void)
	{
		int f;

		printf("final pmd=%d deposited=%d tables=%d pte=", now.pmd, now.deposited, now.nr_tables);
		for (f = NPTE; f < (now.nr_tables + 1) * NPTE; f++)
			printf("%d,", now.pte[f]);
		printf(" folios=");
		for (f = 1; f < FRAMES; f++)
			printf("%d/%d/%d/%d/%d,", now.flags[f], now.refcount[f], now.mapcount[f],
			       now.in_batches[f], now.content[f]);
		printf(" new=%d/%d succeeded=%d cpus=", now.large_mapcount, now.entire_mapcount,
		       now.succeeded);
		for (f = 0; f < USERS; f++)
			printf("%d/%d/%d/%d,", now.tlb_small[f], now.tlb_huge[f], now.link[f],
			       now.loaded[f]);
		printf("\n");
	}
};
#else
#define OBSERVED skip
#endif

/* --- what must hold at rest ---------------------------------------------------------------------- */

#define MAPS(table, frame) (FRAME(PTE(table, 0)) == (frame)) + (FRAME(PTE(table, 1)) == (frame))
#ifdef WINDOW
#define MAPPED(frame) ((IS_TABLE(pmd)) -> MAPS(pmd, frame) \
	+ (FRAME(PTE(pmd, 2)) == (frame)) + (FRAME(PTE(pmd, 3)) == (frame)) : 0)
#else
#define MAPPED(frame) ((IS_TABLE(pmd)) -> MAPS(pmd, frame) : 0)
#endif
#define READS(i) (pmd == HUGE -> content[NEW + (i)] : \
	(pmd == 0 -> 0 : (PTE(pmd, i) == 0 -> 0 : content[FRAME(PTE(pmd, i))])))
#define IN_BATCHES(f) in_batches[f]
#define PAGE_OF(c) (USERS == 2 && (c) == 0 -> 0 : 1)

inline small_at_rest(f)
{
	if
	:: refcount[f] == 0 -> LAW(1, MAPPED(f) == 0 && IN_BATCHES(f) == 0)
	:: else ->
		LAW(4, mapcount[f] == MAPPED(f));
		LAW(5, refcount[f] == mapcount[f] + IN_BATCHES(f));
		LAW(5, !(flags[f] & ISOLATED));
		LAW(9, !(flags[f] & LOCKED));
		LAW(5, mapcount[f] == 0 || flags[f] & LRU || IN_BATCHES(f) > 0);
		LAW(3, mapcount[f] == 0 || flags[f] & UPTODATE);
		LAW(7, mapcount[f] <= 1)
	fi
}

inline cpu_at_rest(c)
{
	LAW(2, !tlb_huge[c] || pmd == HUGE);
	LAW(2, !tlb_small[c] || (pmd == HUGE && FRAME(tlb_small[c]) == NEW + PAGE_OF(c))
		|| (IS_TABLE(pmd) && FRAME(PTE(pmd, PAGE_OF(c))) == FRAME(tlb_small[c])))
}

inline at_rest()
{
	LAW(9, mmap_lock == 0 && vm_lock == 0 && !anon_vma && !pmd_lock && !ptl[1] && !ptl[2] && !ptl[3]);
	LAW(7, !warned);
	small_at_rest(SOURCE);
	small_at_rest(NEIGHBOUR);
	at = FIRST_FAULTED;
	do
	:: at < FRAMES -> small_at_rest(at); at++
	:: else -> break
	od;
	at = 0;
	do
	:: at < USERS -> cpu_at_rest(at); at++
	:: else -> break
	od;
	at = 0;
	if
	:: refcount[NEW] == 0 -> LAW(1, pmd != HUGE && MAPPED(NEW) + MAPPED(NEW + 1) == 0)
	:: else ->
		LAW(4, mapcount[NEW] == MAPPED(NEW) && mapcount[NEW + 1] == MAPPED(NEW + 1));
		LAW(4, entire_mapcount == (pmd == HUGE));
		LAW(4, large_mapcount == mapcount[NEW] + mapcount[NEW + 1] + entire_mapcount);
		LAW(5, refcount[NEW] == large_mapcount + IN_BATCHES(NEW));
		LAW(9, !(flags[NEW] & LOCKED));
		LAW(5, large_mapcount == 0 || flags[NEW] & LRU || IN_BATCHES(NEW) > 0);
		LAW(3, large_mapcount == 0 || flags[NEW] & UPTODATE)
	fi;
	LAW(6, (pmd == 1) + (deposited == 1) == 1);
	LAW(6, nr_tables < 2 || (pmd == 2) + (deposited == 2) == 1);
	LAW(6, nr_tables < 3 || (pmd == 3) + (deposited == 3) == 1);
	LAW(6, deposited == 0 || (PTE(deposited, 0) == 0 && PTE(deposited, 1) == 0));
#ifdef TWO
	LAW(3, READS(0) == (stored[0] -> 200 : 100));
#else
	LAW(3, READS(0) == 100);
#endif
	LAW(3, READS(1) == (stored[USERS - 1] -> 201 : 0))
}

/* The last to end looks at the laws at rest; it is no step of the protocol. */
#define FINISH(batch, nr) \
	atomic { \
		do \
		:: nr > 0 -> nr--; in_batches[batch[nr]]++; batch[nr] = 0 \
		:: else -> break \
		od; \
		ended++; \
		if \
		:: ended == 1 + USERS -> at_rest(); OBSERVED \
		:: else \
		fi \
	}

#ifdef MUTANT_NO_COUNT_CHECK
#define COUNTED >= 0 *
#else
#define COUNTED ==
#endif

/* --- folios ------------------------------------------------------------------------------------ */

inline folio_get(f)
{
	atomic { LAW(5, refcount[f] > 0); refcount[f]++ }
}

inline free_unmapped(f)
{
	atomic { flags[f] = flags[f] & ~PARTIALLY_MAPPED }
	atomic { flags[f] = 0 }
	atomic { content[f] = content[f] }
}

inline free_small(f)
{
	atomic { LAW(5, !(flags[f] & LOCKED)); LAW(5, mapcount[f] == 0) }	/* reads mapcount */
	free_unmapped(f)
}

inline folio_put(f)
{
	if
	:: atomic { refcount[f] == 1 -> refcount[f] = 0 } ; free_small(f)
	:: atomic { refcount[f] != 1 -> LAW(5, refcount[f] > 1); refcount[f]-- }
	fi
}

inline folio_unlock(f)
{
	atomic { LAW(5, flags[f] & LOCKED); flags[f] = flags[f] & ~(LOCKED | ISOLATED) }
}

/* --- khugepaged --------------------------------------------------------------------------------- */

inline revalidate()
{
	(mm_users > 0);
	(mm_flags == 0);
	(mm_flags == 0);
	(mm_flags == 0)
}

inline add_lru0(f)
{
	folio_get(f);
	(nr0 < 4);						/* reads the batch */
	atomic { batch0[nr0] = f; nr0++ }
}

#ifdef MUTANT_FLUSH_SPARES_LINKS
#define DROP_LINK(c) skip
#else
#define DROP_LINK(c) link[c] = 0
#endif

inline flush(c)
{
#ifdef MUTANT_NO_FLUSH
	skip
#else
	atomic { !instruction[c] -> tlb_small[c] = 0; tlb_huge[c] = 0; DROP_LINK(c); flushed[c] = orig }
#endif
}

proctype khugepaged()
{
	byte at;
	byte batch0[4], nr0;
	byte i, pteval, orig, folio, batch[4], nr;
	bit dead[4];
	short data;
	bit refused;

	/* The new folio was allocated before the first step. */
	atomic { mmap_lock >= 0 -> mmap_lock++ }
	revalidate();
	if
	:: atomic { IS_TABLE(pmd) -> skip }
	:: atomic { !IS_TABLE(pmd) -> refused = 1 }
	fi;
	atomic {
		mmap_lock--;
		if
		:: refused -> goto give_up
		:: else
		fi
	}

	atomic { mmap_lock == 0 -> mmap_lock = -1 }
	revalidate();
#ifndef MUTANT_NO_VMA_START_WRITE
	atomic { vm_lock <= 0 -> vm_lock = -1 }
#endif
#ifndef MUTANT_NO_CHECK_PMD
	if
	:: atomic { IS_TABLE(pmd) -> skip }
	:: atomic { !IS_TABLE(pmd) -> goto unlock_mm }
	fi;
#endif
	atomic { !anon_vma -> anon_vma = 1 }
	atomic { !pmd_lock -> pmd_lock = 1 }
	atomic {						/* pmdp_collapse_flush() */
		LAW(7, pmd != HUGE);
		orig = pmd;
		pmd = 0;
		detached = orig
	}
	flush(0);
#ifdef TWO
	flush(1);
#endif
	atomic { pmd_lock = 0 }
	(!irqs_off[0]);						/* tlb_remove_table_sync_one() */
#ifdef TWO
	(!irqs_off[1]);
#endif
	LAW(1, orig != 0);
	atomic { !ptl[orig] -> ptl[orig] = 1; i = 0 }

isolate:							/* __collapse_huge_page_isolate() */
	atomic {
		if
		:: i == 2 -> ptl[orig] = 0; i = 0; goto copy
		:: else -> pteval = PTE(orig, i)
		fi;
		if
		:: pteval == 0 -> i++; goto isolate
		:: else -> folio = FRAME(pteval); pteval = 0
		fi
	}
	atomic { LAW(1, refcount[folio] > 0); flags[folio] >= 0 }	/* lazyfree? */
	(mapcount[folio] <= 1);					/* shared? nobody shares here */
#ifdef WINDOW
	(order[folio] == 0);					/* smaller than the window */
#endif
	if							/* folio_trylock() */
	:: atomic { !(flags[folio] & LOCKED) -> flags[folio] = flags[folio] | LOCKED }
	:: atomic { flags[folio] & LOCKED -> goto undo }
	fi;
	atomic { LAW(1, refcount[folio] > 0); !(flags[folio] & SWAPCACHE) }
	atomic { data = mapcount[folio] }
	if
	:: atomic { refcount[folio] COUNTED data -> data = 0 }
	:: atomic { !(refcount[folio] COUNTED data) -> data = 0; goto unlock_and_undo }
	fi;
	if							/* folio_isolate_lru() */
	:: atomic { flags[folio] & LRU -> flags[folio] = flags[folio] & ~LRU }
	:: atomic { !(flags[folio] & LRU) -> goto unlock_and_undo }
	fi;
	atomic {
		LAW(5, refcount[folio] > 0);
		refcount[folio]++;
		flags[folio] = flags[folio] | ISOLATED
	}
	atomic { LAW(1, refcount[folio] > 0); flags[folio] >= 0; i++; goto isolate }	/* referenced? */

unlock_and_undo:
	atomic { flags[folio] = flags[folio] & ~LOCKED; goto undo }
undo:								/* release_pte_pages() */
	atomic {
		if
		:: i == 0 -> ptl[orig] = 0; folio = 0; goto undone
		:: else -> i--; pteval = PTE(orig, i)
		fi;
		if
		:: pteval == 0 -> goto undo
		:: else -> folio = FRAME(pteval); pteval = 0
		fi
	}
	folio_unlock(folio);
	add_lru0(folio);
	folio_put(folio);
	goto undo;
undone:
	atomic { !pmd_lock -> pmd_lock = 1 }			/* restore_pmd() */
	atomic { warned = warned || pmd != 0 }
	atomic { LAW(7, pmd == 0 || pmd == orig); pmd = orig; detached = 0 }
	atomic { pmd_lock = 0 }
	atomic { anon_vma = 0 }
	goto unlock_mm;

copy:
#ifndef WINDOW
	atomic { anon_vma = 0 }
#else
#ifdef MUTANT_ANON_VMA_EARLY
	atomic { anon_vma = 0 }
#endif
#endif
copy_page:							/* __collapse_huge_page_copy() */
	atomic {
		pteval = PTE(orig, i);
		if
		:: pteval == 0 -> goto copy_none
		:: else -> folio = FRAME(pteval); pteval = 0
		fi
	}
	(page_flags[folio] == 0);				/* poisoned? */
	atomic { LAW_1_IN_USE(folio); copied[folio] = 1; data = content[folio]; folio = 0 }
copy_none:
	atomic {
		LAW_1_IN_USE(NEW + i);
		content[NEW + i] = data;
		data = 0;
		i++;
		if
		:: i < 2 -> goto copy_page
		:: else -> i = 0
		fi
	}

let_go:								/* ..._copy_succeeded(), then the barrier */
	atomic {
		if
		:: i == 2 -> flags[NEW] = flags[NEW] | UPTODATE; i = 0; folio = 0; goto publish
		:: else -> pteval = PTE(orig, i); i++
		fi;
		if
		:: pteval == 0 -> goto let_go
		:: else -> folio = FRAME(pteval); pteval = 0
		fi
	}
	folio_unlock(folio);
	add_lru0(folio);
	folio_put(folio);
	atomic { !ptl[orig] -> ptl[orig] = 1 }
	atomic { LAW_9_PTE(orig); PTE(orig, i - 1) = 0 }
	atomic { mapcount[folio]-- }
	atomic { ptl[orig] = 0 }
	atomic { LAW(1, refcount[folio] > 0); !(flags[folio] & SWAPCACHE) }
	folio_put(folio);
	goto let_go;

publish:
	atomic { !pmd_lock -> pmd_lock = 1 }
	atomic { warned = warned || pmd != 0 }			/* the guard */
#ifdef WINDOW
	atomic { !ptl[orig] -> ptl[orig] = 1 }
	atomic { LAW(7, pmd == 0 || pmd == orig); pmd = orig; detached = 0 }
	atomic { refcount[NEW]++ }
	(order[NEW] == 1);
	atomic { flags[NEW] = flags[NEW] | ANON | SWAPBACKED }
	atomic { mapcount[NEW] = 1 }
	atomic { mapcount[NEW + 1] = 1 }
	atomic { large_mapcount = 2 }
#else
	atomic { deposited = orig; (order[NEW] == 1) }
	atomic { flags[NEW] = flags[NEW] | ANON | SWAPBACKED }
	atomic { entire_mapcount = 1 }
	atomic { large_mapcount = 1 }
#endif
	add_lru0(NEW);						/* large: the batch is moved at once */
	atomic {
		nr = nr0;
		i = 0;
		do
		:: i < nr -> batch[i] = batch0[i]; i++
		:: else -> break
		od;
		i = 0
	}
	atomic {
		nr0 = 0;
		do
		:: i < nr -> batch0[i] = 0; i++
		:: else -> break
		od;
		i = 0
	}
move:								/* folio_batch_move_lru() */
	if
	:: atomic { i < nr && refcount[batch[i]] == 1 -> refcount[batch[i]] = 0 };
	   atomic { flags[batch[i]] = flags[batch[i]] & ~(ACTIVE | UNEVICTABLE); dead[i] = 1; i++ }
	:: atomic { i < nr && refcount[batch[i]] != 1 -> skip };
	   !(flags[batch[i]] & MLOCKED);
	   atomic { flags[batch[i]] = flags[batch[i]] & ~UNEVICTABLE };
	   atomic { flags[batch[i]] = flags[batch[i]] | LRU; i++ }
	:: atomic { i == nr -> i = 0; goto free_dead }
	fi;
	goto move;
free_dead:
	atomic {
		do
		:: i < nr && !dead[i] -> i++
		:: else -> break
		od;
		if
		:: i == nr -> i = 0; folio = 0; goto put_alive
		:: else -> folio = batch[i]; i++
		fi;
		LAW(5, !(flags[folio] & LOCKED));
		LAW(5, mapcount[folio] == 0)
	}
	free_unmapped(folio);
	goto free_dead;
put_alive:
	atomic {
		do
		:: i < nr && dead[i] -> i++
		:: else -> break
		od;
		if
		:: i == nr
		:: else -> LAW(5, refcount[batch[i]] > 1); refcount[batch[i]]--; i++; goto put_alive
		fi;
		do
		:: nr > 0 -> nr--; batch[nr] = 0; dead[nr] = 0
		:: else -> break
		od;
		i = 0
	}
#ifdef WINDOW
	atomic { LAW_9_PTE(orig); PTE(orig, 0) = MK_PTE(NEW) }
	atomic { LAW_9_PTE(orig); PTE(orig, 1) = MK_PTE(NEW + 1) }
	atomic { ptl[orig] = 0 }
	atomic { pmd_lock = 0; succeeded = 1 }
#ifndef MUTANT_ANON_VMA_EARLY
	atomic { anon_vma = 0 }
#endif
#else
	atomic { LAW(7, pmd == 0); pmd = HUGE }			/* map_anon_folio_pmd_nopf() */
	atomic { pmd_lock = 0; succeeded = 1 }
#endif

unlock_mm:
#ifndef MUTANT_NO_VMA_START_WRITE
	atomic { vm_lock = 0 }
#endif
	atomic {
		mmap_lock = 0;
		if
		:: succeeded -> goto end
		:: else
		fi
	}
give_up:							/* the new folio is put */
	atomic { refcount[NEW] = 0 }
	(large_mapcount == 0);
	atomic { flags[NEW] = flags[NEW] & ~PARTIALLY_MAPPED }
	atomic { flags[NEW] = 0 }
	atomic { content[NEW] = content[NEW] }
	atomic { content[NEW + 1] = content[NEW + 1] }
end:
	FINISH(batch0, nr0)
}

/* --- a CPU: a store to a page, then a load from it ------------------------------------------------ */

inline add_lru1(f)
{
	folio_get(f);
	(nr1 < MOST_FAULTS);
	atomic { batch1[nr1] = f; nr1++ }
}

proctype user(byte me; byte page; short value)
{
	byte at;
	byte batch1[MOST_FAULTS], nr1;
	byte pmdval, pteval, table, frame, folio, faults;
	bit loading, under_mmap_lock;

access:
	atomic {						/* an instruction begins */
		instruction[me] = 1;
		if
		:: tlb_small[me] -> frame = FRAME(tlb_small[me]); goto translated
		:: !tlb_small[me] && tlb_huge[me] -> frame = NEW + page; goto translated
		:: !tlb_small[me] && !tlb_huge[me] && link[me] -> table = link[me]; goto walk_table
		:: else
		fi
	}
	atomic {						/* the walk reads the PMD */
		if
		:: pmd == 0 -> goto missed
		:: pmd == HUGE -> tlb_huge[me] = 1; frame = NEW + page; LAW_2_TLB; goto translated
		:: else -> table = pmd; link[me] = pmd
		fi;
		if
		:: flushed[me] == table -> flushed[me] = 0
		:: else
		fi
	}
walk_table:
	atomic {
		LAW(6, flushed[me] != table);
		pteval = PTE(table, page);
		if
		:: pteval == 0 -> goto missed
		:: else -> LAW(9, (pteval & USED) == USED);	/* so the walk need not set young and dirty */
			tlb_small[me] = pteval; frame = FRAME(pteval); pteval = 0; LAW_2_TLB
		fi;
		table = 0
	}
translated:
	atomic {
		LAW_1_IN_USE(frame);
		if
		:: loading -> loaded[me] = content[frame];
			LAW(3, loaded[me] == value || loaded[me] == (page == 0 -> 100 : 0))
		:: else -> LAW(2, !copied[frame]);
			content[frame] = value; stored[me] = 1
		fi;
		frame = 0
	}
	atomic {
		instruction[me] = 0;
		faults = 0;
		if
		:: loading -> goto end
		:: else -> loading = 1; goto access
		fi
	}

missed:
	atomic { instruction[me] = 0; table = 0; pteval = 0; faults++ }
	(mm_mt == 0);						/* lock_vma_under_rcu() */
	if
	:: atomic { vm_lock >= 0 -> vm_lock++ }; goto handle
	:: atomic { vm_lock < 0 -> skip }
	fi;
	atomic { mmap_lock >= 0 -> mmap_lock++; under_mmap_lock = 1 }
	atomic {						/* a swap entry? */
		if
		:: IS_TABLE(pmd) -> table = pmd
		:: else -> goto handle
		fi
	}
	atomic { pteval = PTE(table, page); pteval = 0; table = 0 }

handle:								/* handle_pte_fault() */
	atomic {
		if
		:: pmd == HUGE -> goto accessed
		:: pmd == 0 -> goto allocate_table
		:: else -> table = pmd
		fi
	}
	atomic {
		if
		:: PTE(table, page) != 0 -> table = 0; goto handled
		:: else -> table = 0
		fi
	}
	goto allocate_table;
accessed:							/* huge_pmd_set_accessed() */
	atomic { !pmd_lock -> pmd_lock = 1 }
	atomic { pmd = pmd }					/* it is young and dirty already */
	atomic { pmd_lock = 0; goto handled }
allocate_table:							/* __pte_alloc() */
	atomic {
		if
		:: pmd != 0 -> goto allocate_page
		:: else -> nr_tables++; table = nr_tables; assert(table < TABLES)
		fi
	}
	atomic { !pmd_lock -> pmd_lock = 1 }
	atomic {
		if
		:: pmd != 0 -> nr_tables--; table = 0; goto unlock_pmd
		:: else
		fi
	}
	atomic { pmd = table; table = 0 }
unlock_pmd:
	atomic { pmd_lock = 0 }

allocate_page:							/* do_anonymous_page() */
	atomic {
		folio = FIRST_FAULTED + me * MOST_FAULTS + faults - 1;
		refcount[folio] = 1;
		content[folio] = 0
	}
	atomic { flags[folio] = flags[folio] | UPTODATE | SWAPBACKED }
map_table:							/* pte_offset_map_lock() */
	atomic {
		if
		:: !IS_TABLE(pmd) -> goto give_page_back
		:: else -> pmdval = pmd
		fi
	}
	atomic { !ptl[pmdval] -> ptl[pmdval] = 1 }
	if
	:: atomic { pmd == pmdval -> skip }
	:: atomic { pmd != pmdval -> skip }; atomic { ptl[pmdval] = 0; pmdval = 0; goto map_table }
	fi;
	atomic {
		if
		:: PTE(pmdval, page) != 0 -> goto somebody_was_first
		:: else
		fi
	}
	atomic { refcount[folio] = refcount[folio] + 0 }	/* map_anon_folio_pte_nopf() */
	(order[folio] == 0);
	atomic { flags[folio] = flags[folio] | ANON | SWAPBACKED }
	atomic { mapcount[folio] = 1 }
	add_lru1(folio);
	atomic { LAW_9_PTE(pmdval); LAW(6, detached != pmdval); PTE(pmdval, page) = MK_PTE(folio) }
	atomic { ptl[pmdval] = 0; pmdval = 0; folio = 0; goto handled }
somebody_was_first:
	atomic { ptl[pmdval] = 0; pmdval = 0 }
give_page_back:
	folio_put(folio);

handled:
	atomic {
		folio = 0;
		if
		:: under_mmap_lock -> mmap_lock--; under_mmap_lock = 0
		:: else -> vm_lock--
		fi;
		if
		:: faults < MOST_FAULTS -> goto access
		:: else -> goto end				/* given up */
		fi
	}
end:
	FINISH(batch1, nr1)
}

init
{
	byte at;

	d_step {
		pte[NPTE] = MK_PTE(SOURCE);
		flags[SOURCE] = UPTODATE | LRU | ANON | SWAPBACKED | DIRTY_FOLIO;
		refcount[SOURCE] = 1;
		mapcount[SOURCE] = 1;
		content[SOURCE] = 100;
#ifdef WINDOW
		pte[NPTE + 2] = MK_PTE(NEIGHBOUR);
		flags[NEIGHBOUR] = flags[SOURCE];
		refcount[NEIGHBOUR] = 1;
		mapcount[NEIGHBOUR] = 1;
		content[NEIGHBOUR] = 102;
#endif
		refcount[NEW] = 1;
		order[NEW] = 1;
		content[NEW] = GARBAGE;
		content[NEW + 1] = GARBAGE;
		at = FIRST_FAULTED;
		do
		:: at < FRAMES -> content[at] = GARBAGE; at++
		:: else -> break
		od;
		at = 0;
		do
		:: at < USERS -> loaded[at] = -1; at++
		:: else -> break
		od;
		at = 0
	}
#ifdef TWO
	atomic { run khugepaged(); run user(0, 0, 200); run user(1, 1, 201) }
#else
	atomic { run khugepaged(); run user(0, 1, 201) }
#endif
}
