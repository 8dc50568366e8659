/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The walk of CoW contexts against everything that changes an address space.
 *
 * Theory
 * ======
 *
 * remove_migration_ptes() has to find every migration entry of a folio. The
 * folio is locked until it returns; an entry that it misses outlives the lock
 * and is corruption. Meanwhile other CPUs copy entries (fork), move them
 * (mremap), zap them (munmap, MAP_FIXED, exit) and change the VMAs under which
 * they are found (split, merge). Nothing but the context's rwsem, RCU, the page
 * table locks and the order of the steps keeps the two apart. That order is
 * what is written down here, one Promela step per step that another CPU can
 * see, and what the checker tries in every interleaving.
 *
 * Checked
 * =======
 *
 *	- when the walk ends no mm holds a migration entry of the folio
 *	- no context, mm_mt, VMA or page table is used after it was freed
 *	- each context is visited once at most, so the walk ends
 *	- nothing deadlocks: everything ends, in every interleaving
 *	- when everything has ended every context is freed
 *
 * What is modelled
 * ================
 *
 * One folio with one page, one walker, up to NC mms: mm 0 is the root of the
 * family, the others are forked, by any mm that exists. Each mm is one process
 * of the model, since mmap_lock makes its operations one sequence: a choice of
 * operations, in any order, at most OPS of them, then exit. Addresses of an
 * mm: HOME, where the folio's offset says; AWAY, where a remap record says;
 * LOW, the page below HOME, for a VMA that can be split. Everything that can be
 * freed has a bit that says whether it is there.
 *
 * VMAs come from a slab that is SLAB_TYPESAFE_BY_RCU: one that is freed keeps
 * what is in it, and is the next to be allocated, by any mm. The walker can get
 * hold of one although it has R: the mm_mt of a half-forked child holds the
 * parent's. So vm_area_dup() leaves the origin NULL, and it is published when
 * the VMA is in mm_mt (or in the W section that puts it there). What the walker
 * visits must be in mm_mt or in ctx->unmapping of the mm it holds. It finds a
 * page table in one step and uses it in the next: not to be freed between.
 *
 * An allocation that may enter direct reclaim waits until the task's own
 * contexts can be read: that is what a walk in reclaim would do.
 *
 * RCU: a context that is freed while the walker is in an RCU section is gone
 * when that section ends, otherwise at once.
 *
 * What is left out
 * ================
 *
 * Memory order: steps are sequentially consistent; the release and acquire of
 * ctx->mm and the barriers of RCU are taken for granted. Second walkers: they
 * share R; their pins are as if a put at exit came later, which is among the
 * interleavings. try_lock walks (they may miss). Folios of several pages,
 * several records, KSM, hugetlb, the origin's depth, and where an owner is set.
 * The search inside of mm_mt and of the side tree: a lookup is one step.
 *
 * Variants
 * ========
 *
 * What runs is chosen with -D, see harness/model/check:
 *
 *	NC, OPS		mms in all, operations of one mm
 *	FORK, MUNMAP, FIXED, MREMAP, SPLIT
 *			operations that are tried
 *	FAIL		fork, split and mremap may fail half-way
 *	AWAY_FIRST	the folio starts at AWAY
 *	TOP		the owner: 0 the root, 1 its first child
 *	STAY		no mm exits before the walk has ended
 *	CAP		depth from which on a context is a position only
 *	RECHECK		the walker looks a VMA up again before it visits it;
 *			then vm_area_dup() may copy the origin
 *	BREAK_x		one step is wrong; the checker must say so
 *	ALT_x		one step is different and must make no difference
 */

#ifndef NC
#define NC	3
#endif
#ifndef OPS
#define OPS	1
#endif
#ifndef NR_VMAS
#define NR_VMAS	6		/* the slab, 0 is none */
#endif
#ifndef TOP
#define TOP	0
#endif
#ifndef CAP
#define CAP	64		/* COW_OWNERS_MAX */
#endif

#define NONE	255

/* Markers of a context: struct cow_marker */
#define ENTER(c)	(2 * (c))
#define LEAVE(c)	(2 * (c) + 1)
#define CTX(m)		((m) / 2)
#define IS_ENTER(m)	(!((m) & 1))

/* Addresses */
#define LOW	0
#define HOME	1
#define AWAY	2
#define NA	3
#define AT(c, a)	((c) * NA + (a))

/* What a PTE holds for the folio */
#define EMPTY	0
#define ENTRY	1		/* a migration entry */
#define MAPPED	2

/* struct cow_context */
byte nxt[2 * NC];		/* enter.list.next, leave.list.next */
byte refs[NC];
byte parent[NC];
byte level[NC];
bit mm[NC];			/* ctx->mm is set */
byte readers[NC];		/* ctx->rwsem */
bit writer[NC];
bit record[NC];			/* a remap record leads to AWAY */
byte unmapping[NC];		/* the VMA of the munmap in flight */
bit there[NC];			/* allocated and not freed */

bit tree_lock;			/* cow_context_tree_lock */
bit in_rcu;			/* the walker is in an RCU section */
bit rcu_pending[NC];		/* to be freed when it leaves it */

/* struct mm_struct */
bit mt_there[NC];		/* mm_mt may be read under RCU */
byte mt[NC * NA];		/* mm_mt: the VMA at an address */
bit pt_there[NC * NA];		/* the page table */
byte pte[NC * NA];

/* struct vm_area_struct */
bit v_there[NR_VMAS];		/* allocated */
byte v_mm[NR_VMAS];
bit v_origin[NR_VMAS];		/* not NULL */
bit v_away[NR_VMAS];		/* offset says AWAY: delta != 0 */
byte v_start[NR_VMAS];
byte v_end[NR_VMAS];

byte nr_mms;
byte running;
bit walked;

/*
 * Locks
 */

inline down_write(cx)
{
	atomic {
		!writer[cx] && !readers[cx];
		assert(there[cx]);
		writer[cx] = 1
	}
}

inline up_write(cx)
{
	writer[cx] = 0
}

/* GFP_KERNEL in the task of mm c: reclaim may walk into it. */
inline alloc(cx)
{
	!writer[cx]
}

/* Not a step: part of one. */
#define rcu_read_lock()	in_rcu = 1

inline rcu_read_unlock()
{
	d_step {
		in_rcu = 0;
		for (r : 0 .. NC - 1) {
			if
			:: rcu_pending[r] ->
				rcu_pending[r] = 0;
				there[r] = 0
			:: else
			fi
		}
		r = 0
	}
}

/*
 * mm/cow_context.c
 */

/* list_del_rcu(): other markers see it as one store. */
inline unlink(m)
{
	d_step {
		q = ENTER(0);
		do
		:: nxt[q] == m -> break
		:: else -> q = nxt[q]
		od;
		nxt[q] = nxt[m];
		q = 0
	}
}

/* cow_context_put(); x is the caller's to be used up */
inline put(ref)
{
	do
	:: ref == NONE -> break
	:: else ->
		/* refcount_dec_and_test() */
		atomic {
			assert(there[ref] && refs[ref]);
			refs[ref]--;
			if
			:: refs[ref] -> ref = NONE
			:: else -> assert(!mm[ref])
			fi
		}
		if
		:: ref == NONE
		:: ref != NONE && parent[ref] == NONE
		:: ref != NONE && parent[ref] != NONE ->
			atomic { !tree_lock; tree_lock = 1; unlink(ENTER(ref)) }
			atomic { unlink(LEAVE(ref)); tree_lock = 0 }
		fi;
		/* kfree_rcu() */
		atomic {
			if
			:: ref == NONE
			:: ref != NONE ->
				if
				:: in_rcu -> rcu_pending[ref] = 1
				:: else -> there[ref] = 0
				fi;
				ref = parent[ref]
			fi
		}
	od
}

/* cow_context_mm_alloc(), cow_context_dup_remaps() */
inline new_context(cx, px)
{
	d_step {
		there[cx] = 1;
		mm[cx] = 1;
		refs[cx] = 1;
		record[cx] = record[px];
		nxt[ENTER(cx)] = LEAVE(cx);
		nxt[LEAVE(cx)] = ENTER(cx);
		mt_there[cx] = 1;
		assert(there[px] && mm[px]);
		if
		:: level[px] < CAP -> parent[cx] = px
		:: else -> parent[cx] = parent[px]
		fi;
		refs[parent[cx]] = refs[parent[cx]] + 1;
		level[cx] = level[parent[cx]] + 1
	}
}

/* The marker behind which a child of p goes. */
inline link_behind(px)
{
#if defined(BREAK_LINK_LEAVE)
	b = LEAVE(px)
#elif defined(ALT_LINK_TAIL)
	d_step {
		b = ENTER(px);
		do
		:: nxt[b] == LEAVE(px) -> break
		:: else -> b = nxt[b]
		od
	}
#else
	b = ENTER(px)
#endif
}

/* cow_context_fork(), second half: two list_add_rcu() */
inline link_context(cx, px)
{
#ifdef ALT_ENTER_FIRST
	atomic {
		!tree_lock;
		tree_lock = 1;
		link_behind(px);
		nxt[ENTER(cx)] = nxt[b];
		nxt[b] = ENTER(cx);
		b = 0
	}
	atomic {
		nxt[LEAVE(cx)] = nxt[ENTER(cx)];
		nxt[ENTER(cx)] = LEAVE(cx);
		tree_lock = 0
	}
#else
	atomic {
		!tree_lock;
		tree_lock = 1;
		link_behind(px);
		nxt[LEAVE(cx)] = nxt[b];
		nxt[b] = LEAVE(cx)
	}
	atomic {
		nxt[ENTER(cx)] = nxt[b];
		nxt[b] = ENTER(cx);
		b = 0;
		tree_lock = 0
	}
#endif
}

/* cow_context_detach() */
inline detach(cx)
{
#ifdef BREAK_KEEP_MM
	skip
#elif defined(BREAK_DETACH_NO_W)
	mm[cx] = 0
#else
	down_write(cx);
	mm[cx] = 0;
	up_write(cx)
#endif
}

/* cow_context_add_remap(), cow_context_del_remap() */
inline set_record(cx, value)
{
	down_write(cx);
	record[cx] = value;
	up_write(cx)
}

/*
 * What the writers are made of
 */

/* vm_area_dup(): n is the new VMA, the first that is free */
inline vma_dup(vx)
{
	d_step {
		n = 1;
		do
		:: n < NR_VMAS && v_there[n] -> n++
		:: else -> break
		od;
		assert(n < NR_VMAS);
		v_there[n] = 1;
		v_mm[n] = v_mm[vx];
#ifdef BREAK_DUP_ORIGIN
		v_origin[n] = v_origin[vx];
#else
		v_origin[n] = 0;
#endif
		v_away[n] = v_away[vx];
		v_start[n] = v_start[vx];
		v_end[n] = v_end[vx]
	}
}

/* vm_area_free() of a copy that did not get into mm_mt */
inline vma_undo()
{
	d_step {
		v_there[n] = 0;
		n = 0
	}
}

/* Stores vx, or 0, over the range of VMA wx: one store for a reader. */
inline mt_store(cx, wx, vx)
{
	d_step {
		for (q : v_start[wx] .. v_end[wx] - 1) {
			mt[AT(cx, q)] = vx
		}
		q = 0
	}
}

/* unmap_vmas(): zap under the PTL, page after page */
inline zap(cx, vx)
{
	a = v_start[vx];
	do
	:: a < v_end[vx] ->
		atomic {
			assert(pt_there[AT(cx, a)]);
			pte[AT(cx, a)] = EMPTY;
			a++
		}
	:: else -> break
	od;
	a = 0
}

/* free_pgtables() */
inline free_pgtables(cx, vx)
{
	d_step {
		for (q : v_start[vx] .. v_end[vx] - 1) {
			assert(pte[AT(cx, q)] == EMPTY);
			pt_there[AT(cx, q)] = 0
		}
		q = 0
	}
}

/* cow_context_forget_vma(), remove_vma(), vm_area_free() */
inline remove_vma(cx, vx)
{
	if
	:: v_away[vx] -> set_record(cx, 0)
	:: else
	fi;
	v_there[vx] = 0
}

/*
 * The operations
 */

/* do_vmi_align_munmap() */
inline munmap(cx, vx)
{
	/* vms_gather_munmap_vmas(), vma_iter_prealloc() */
	alloc(cx);
#ifdef BREAK_UNMAP_ORDER
	down_write(cx);
	mt_store(cx, vx, 0);			/* vma_iter_clear() */
	up_write(cx);
	down_write(cx);
	unmapping[cx] = vx;			/* begin_unmap() */
	up_write(cx);
#else
	down_write(cx);				/* cow_context_lock() */
	unmapping[cx] = vx;			/* begin_unmap() */
#ifdef BREAK_ALLOC_UNDER_W
	alloc(cx);				/* vma_iter_clear_gfp() */
#endif
	mt_store(cx, vx, 0);			/* vma_iter_clear() */
	up_write(cx);				/* cow_context_unlock() */
#endif
	/* vms_complete_munmap_vmas(), unmap_region() */
#ifdef BREAK_HIDE_EARLY
	down_write(cx);
	unmapping[cx] = 0;
	up_write(cx);
	zap(cx, vx);
#else
	zap(cx, vx);				/* unmap_vmas() */
#if defined(BREAK_HIDE_NO_W)
	unmapping[cx] = 0;
#elif !defined(BREAK_HIDE_LATE)
	down_write(cx);				/* cow_context_hide() */
	unmapping[cx] = 0;
	up_write(cx);
#endif
#endif
	free_pgtables(cx, vx);
	remove_vma(cx, vx);
#ifdef BREAK_HIDE_LATE
	down_write(cx);
	unmapping[cx] = 0;
	up_write(cx)
#endif
}

/* __mmap_region() over a VMA */
inline map_fixed(cx, vx)
{
	/* __mmap_setup(): vms_gather_munmap_vmas(), vms_clean_up_area() */
	alloc(cx);
#if defined(BREAK_FIXED_HIDE_EARLY)
	down_write(cx);
	v_origin[vx] = 0;
	up_write(cx);
	zap(cx, vx);
#else
	zap(cx, vx);				/* unmap_vmas() */
#ifndef BREAK_FIXED_ORIGIN
	down_write(cx);				/* cow_context_hide() */
	v_origin[vx] = 0;
	up_write(cx);
#endif
#endif
	free_pgtables(cx, vx);
	if
	:: vma_dup(vx);				/* __mmap_new_vma() */
		d_step {
			v_origin[n] = 0;
			v_away[n] = 0
		}
		alloc(cx);			/* vma_iter_prealloc() */
#ifdef ALT_FIXED_STORE
		mt_store(cx, vx, n);
#else
		down_write(cx);
		mt_store(cx, vx, n);		/* vma_iter_store_new() */
		up_write(cx);
#endif
		n = 0
	:: alloc(cx);				/* vms_abort_munmap_vmas() */
#ifdef ALT_FIXED_STORE
		mt_store(cx, vx, 0)
#else
		down_write(cx);
		mt_store(cx, vx, 0);		/* mas_store_prealloc() */
		up_write(cx)
#endif
	fi;
	remove_vma(cx, vx)			/* __mmap_complete() */
}

/* The part of mremap() that cannot fail: VMA v at s, VMA n for t */
inline move_entry(cx, s, t)
{
	mt_store(cx, n, n);			/* vma_link() */
	v_origin[n] = v_origin[v];		/* cow_context_publish_vma() */
	alloc(cx);
	pt_there[AT(cx, t)] = 1;		/* alloc_new_pmd() */
#ifdef BREAK_MOVE_NO_W
	atomic {
		pte[AT(cx, t)] = pte[AT(cx, s)];
		pte[AT(cx, s)] = EMPTY
	}
#else
	down_write(cx);				/* anon_rmap_begin_move() */
	atomic {				/* move_ptes(), both PTLs */
		pte[AT(cx, t)] = pte[AT(cx, s)];
		pte[AT(cx, s)] = EMPTY
	}
	up_write(cx);				/* anon_rmap_end_move() */
#endif
#ifdef BREAK_RECORD_LATE
	if
	:: t == AWAY -> set_record(cx, 1)
	:: else
	fi
#endif
}

/* move_vma(): the VMA at address s, one page, to address t */
inline mremap(cx, s, t)
{
	v = mt[AT(cx, s)];
	/* copy_vma(): cow_context_move_vma() */
#ifndef BREAK_RECORD_LATE
	alloc(cx);
	if
	:: t == AWAY -> set_record(cx, 1)
	:: else
	fi;
#endif
	vma_dup(v);
	d_step {				/* vma_set_range() */
		v_start[n] = t;
		v_end[n] = t + 1;
		v_away[n] = (t == AWAY)
	}
	alloc(cx);
	if
	:: move_entry(cx, s, t);
		n = 0;
		/* move_vma() */
		if
		:: munmap(cx, v)		/* unmap_source_vma() */
		:: down_write(cx);		/* dontunmap_complete() */
			v_origin[v] = 0;	/* cow_context_reset_vma() */
			up_write(cx);
			if
			:: v_away[v] ->		/* cow_context_forget_vma() */
				set_record(cx, 0);
				v_away[v] = 0
			:: else
			fi
		fi
#ifdef FAIL
	:: vma_undo();				/* vma_link() failed */
		if
		:: t == AWAY -> set_record(cx, 0)
		:: else
		fi
#endif
	fi;
	v = 0
}

/* Ranges change in W, from vma_prepare() to vma_complete(). */
inline begin_adjust(cx)
{
#ifndef BREAK_ADJUST_NO_W
	down_write(cx)				/* anon_rmap_begin_adjust() */
#else
	skip
#endif
}

inline end_adjust(cx)
{
#ifndef BREAK_ADJUST_NO_W
	up_write(cx)				/* anon_rmap_end_adjust() */
#else
	skip
#endif
}

/* __split_vma() at HOME */
inline split(cx)
{
	v = mt[AT(cx, HOME)];
	alloc(cx);
	vma_dup(v);
	if
	:: v_start[n] = HOME			/* new above */
	:: v_end[n] = HOME			/* new below */
	fi;
	alloc(cx);
	if
	:: begin_adjust(cx);			/* vma_prepare() */
		if
		:: v_start[n] == HOME -> v_end[v] = HOME
		:: else -> v_start[v] = HOME
		fi;
		v_origin[n] = v_origin[v];	/* cow_context_publish_vma() */
		mt_store(cx, n, n);		/* vma_complete() */
		end_adjust(cx);
		atomic { v = 0; n = 0 }
#ifdef FAIL
	:: vma_undo();				/* vma_iter_prealloc() failed */
		v = 0
#endif
	fi
}

/* commit_merge(): the VMA at LOW takes over the one at HOME */
inline merge(cx)
{
	v = mt[AT(cx, LOW)];
	n = mt[AT(cx, HOME)];
	alloc(cx);				/* vma_iter_prealloc() */
	begin_adjust(cx);			/* vma_prepare() */
	v_end[v] = HOME + 1;			/* vma_set_range() */
	/* cow_context_publish_vma() */
	v_origin[v] = v_origin[v] | v_origin[n];
	mt_store(cx, v, v);			/* vma_iter_store_overwrite() */
	end_adjust(cx);				/* vma_complete() */
	v_there[n] = 0;				/* vm_area_free() */
	atomic { v = 0; n = 0 }
}

#define OWN_VMA(c, a)	(mt[AT(c, a)] && v_mm[mt[AT(c, a)]] == c)

/* cow_context_hide() of an mm that is still in one piece */
inline hide_all(cx)
{
	down_write(cx);
	d_step {
		for (q : 0 .. NA - 1) {
			if
			:: OWN_VMA(cx, q) ->
				v_origin[mt[AT(cx, q)]] = 0
			:: else
			fi
		}
		q = 0
	}
	up_write(cx)
}

inline zap_all(cx)
{
	do
	:: atomic {
		a < NA ->
		do
		:: a < NA && !OWN_VMA(cx, a) -> a++
		:: else -> break
		od;
		if
		:: a < NA -> pte[AT(cx, a)] = EMPTY; a++
		:: else
		fi
	   }
	:: a == NA -> break
	od;
	a = 0
}

inline free_all_pgtables(cx)
{
	d_step {
		for (q : 0 .. NA - 1) {
			assert(pte[AT(cx, q)] == EMPTY);
			pt_there[AT(cx, q)] = 0
		}
		q = 0
	}
}

/* tear_down_vmas() */
inline free_all_vmas(cx)
{
	d_step {
		for (q : 0 .. NA - 1) {
			if
			:: OWN_VMA(cx, q) ->
				v_there[mt[AT(cx, q)]] = 0
			:: else
			fi
		}
		q = 0
	}
}

/* dup_mmap(); ch is the new mm */
inline fork(px)
{
	new_context(ch, px);
#ifdef BREAK_LINK_LATE
	late = 1;
#else
	link_context(ch, px);			/* cow_context_fork() */
#endif
	d_step {				/* __mt_dup() */
		for (q : 0 .. NA - 1) {
			mt[AT(ch, q)] = mt[AT(px, q)]
		}
		q = 0
#ifdef BREAK_FORK_NO_RCU
		;
		mt_there[ch] = 0		/* mt_clear_in_rcu() */
#endif
	}
	/* for_each_vma() */
	failed = 0;
	do
	:: a < NA && !failed ->
		atomic {
			do
			:: a < NA && !mt[AT(px, a)] -> a++
			:: else -> break
			od;
			if
			:: a < NA -> v = mt[AT(px, a)]
			:: else -> v = 0
			fi
		}
		if
		:: !v
		:: else ->
			vma_dup(v);
			d_step {
				v_mm[n] = ch;
				v_origin[n] = v_origin[v]
			}
			mt_store(ch, n, n);	/* vma_iter_bulk_store() */
#ifdef BREAK_FORK_W
			down_write(ch);
#endif
			/* copy_page_range() */
			do
			:: a < v_end[v] && v_origin[v] ->
				atomic {
					!writer[px] && !writer[ch];
					pt_there[AT(ch, a)] = 1
				}
				/* copy_nonpresent_pte(), both PTLs */
				atomic {
					pte[AT(ch, a)] = pte[AT(px, a)];
					a++
				}
#ifdef BREAK_LINK_LATE
				if
				:: late -> link_context(ch, px); late = 0
				:: else
				fi
#endif
			:: else -> a = v_end[v]; break
			od;
#ifdef BREAK_FORK_W
			up_write(ch);
#endif
#ifdef FAIL
			if
			:: failed = 1
			:: skip
			fi
#endif
		fi
	:: else -> break
	od;
#ifdef BREAK_LINK_LATE
	if
	:: late -> link_context(ch, px); late = 0
	:: else
	fi;
#endif
#ifdef BREAK_FORK_NO_RCU
	mt_there[ch] = 1;			/* mt_set_in_rcu() */
#endif
	if
	:: !failed ->
		atomic {
			running++;
			run task(ch)
		}
	:: else ->
		/* unmap_region() */
		a = 0;
		zap_all(ch);			/* unmap_vmas() */
		hide_all(ch);			/* cow_context_hide() */
		free_all_pgtables(ch);
#ifndef BREAK_FAIL_DETACH
		detach(ch);			/* cow_context_detach() */
#endif
		free_all_vmas(ch);		/* tear_down_vmas() */
		mt_there[ch] = 0;		/* __mt_destroy() */
#ifdef BREAK_FAIL_DETACH
		detach(ch);
#endif
		x = ch;
		put(x)				/* cow_context_mm_free() */
	fi;
	atomic {
		failed = 0;
		ch = 0;
		x = 0;
		v = 0;
		n = 0;
		a = 0
	}
}

/* exit_mmap(), mmdrop() */
inline exit_mm(cx)
{
#ifdef BREAK_DETACH_EARLY
	detach(cx);
	zap_all(cx);
#else
	zap_all(cx);				/* unmap_vmas() */
#ifndef BREAK_DETACH_LATE
	detach(cx);				/* cow_context_detach() */
#endif
#endif
	atomic {
		mt_there[cx] = 0;		/* mt_clear_in_rcu() */
		free_all_pgtables(cx);		/* free_pgtables() */
		free_all_vmas(cx)		/* tear_down_vmas() */
	}
#ifdef BREAK_DETACH_LATE
	detach(cx);
#endif
#ifdef BREAK_KEEP_MM
	mm[cx] = 0;				/* cow_context_mm_free() */
#endif
	x = cx;
	put(x)					/* cow_context_mm_free() */
}

#define HAS(c, a)	(mt[AT(c, a)] && v_origin[mt[AT(c, a)]])
#define ONE_PAGE(c, a)	(v_end[mt[AT(c, a)]] == v_start[mt[AT(c, a)]] + 1)

/* The life of mm c */
proctype task(byte c)
{
	byte ops, a, v, n, ch, x, q, b;
	bit failed;
#ifdef BREAK_LINK_LATE
	bit late;
#endif

	do
#ifdef FORK
	:: atomic {
		ops < OPS && nr_mms < NC ->
		ops++;
		ch = nr_mms;
		nr_mms++
	   }
	   fork(c)
#endif
#ifdef MUNMAP
	:: ops < OPS && HAS(c, HOME) ->
		atomic { ops++; v = mt[AT(c, HOME)] }
		munmap(c, v);
		v = 0
	:: ops < OPS && HAS(c, AWAY) ->
		atomic { ops++; v = mt[AT(c, AWAY)] }
		munmap(c, v);
		v = 0
#endif
#ifdef FIXED
	:: ops < OPS && HAS(c, HOME) ->
		atomic { ops++; v = mt[AT(c, HOME)] }
		map_fixed(c, v);
		v = 0
#endif
#ifdef MREMAP
	:: ops < OPS && HAS(c, HOME) && ONE_PAGE(c, HOME) &&
	   !mt[AT(c, AWAY)] ->
		ops++; mremap(c, HOME, AWAY)
	:: ops < OPS && HAS(c, AWAY) && !mt[AT(c, HOME)] ->
		ops++; mremap(c, AWAY, HOME)
#endif
#ifdef SPLIT
	:: ops < OPS && HAS(c, HOME) && !ONE_PAGE(c, HOME) ->
		ops++; split(c)
	:: ops < OPS && HAS(c, LOW) && HAS(c, HOME) &&
	   mt[AT(c, LOW)] != mt[AT(c, HOME)] ->
		ops++; merge(c)
#endif
	:: ops = OPS; break
	od;
#ifdef STAY
	walked;
#endif
	exit_mm(c);
	running--
}

/*
 * mm/cow_context_rmap.c
 */

/* VMA v is one of mm c that is not going to be freed under R. */
#define IS_IN(c, v)	(v_there[v] && v_mm[v] == c &&		\
	(mt[AT(c, LOW)] == v || mt[AT(c, HOME)] == v ||	\
	 mt[AT(c, AWAY)] == v || unmapping[c] == v))

/* walk_place() and the visit there, then in the other tree */
inline visit_vma(cx, at, away)
{
	atomic {
		if
		:: v ->				/* is_candidate() */
			if
			:: v_mm[v] == cx && v_origin[v] && v_away[v] == away
			:: else -> v = 0
			fi
		:: else
		fi
	}
#ifdef RECHECK
	atomic {
		assert(there[cx] && mt_there[cx]);
		if
		:: mt[AT(cx, at)] == v || unmapping[cx] == v
		:: else -> v = 0
		fi
	}
#endif
	if
	:: v ->
		/* page_vma_mapped_walk(): is there a page table? */
		atomic {
			assert(IS_IN(cx, v));
			/* vma_anon_address() */
			if
			:: at < v_start[v] || at >= v_end[v] -> v = 0
			:: else ->
				if
				:: pt_there[AT(cx, at)]
				:: else -> v = 0
				fi
			fi
		}
	:: else
	fi;
	if
	:: v ->
		/* remove_migration_pte(), under the PTL */
		atomic {
			assert(IS_IN(cx, v) && pt_there[AT(cx, at)]);
			if
			:: pte[AT(cx, at)] == ENTRY ->
				pte[AT(cx, at)] = MAPPED
			:: else
			fi;
			v = 0
		}
	:: else
	fi
}

inline visit_place(cx, at, away)
{
	atomic {
		assert(there[cx] && mt_there[cx]);
		v = mt[AT(cx, at)]		/* find_attached(), RCU */
	}
	visit_vma(cx, at, away);
	atomic {
		assert(there[cx]);
		v = unmapping[cx];		/* find_unmapping() */
		if
		:: v ->
			assert(v_there[v]);
			if
			:: at < v_start[v] || at >= v_end[v] -> v = 0
			:: else
			fi
		:: else
		fi
	}
	visit_vma(cx, at, away)
}

/* cow_context_walk_mm() */
inline visit_mm(cx)
{
	visit_place(cx, HOME, 0);
#ifdef BREAK_DROP_R
	readers[cx]--;
	atomic { !writer[cx]; readers[cx]++ }
#endif
	/* cow_context_visit_remaps() */
	if
	:: record[cx] -> visit_place(cx, AWAY, 1)
	:: else
	fi
}

/* remove_migration_ptes(): cow_context_walk_tree() over the owner's contexts */
proctype walker()
{
	byte pos = ENTER(TOP), c, v, x, q, r;
	byte next = NONE, pinned = NONE;
	bit go, seen[NC];

	rcu_read_lock();
	do
	:: pos == LEAVE(TOP) -> break
	:: else ->
		c = CTX(pos);
		/* smp_load_acquire(&ctx->mm) */
		atomic {
			assert(there[c]);
			go = IS_ENTER(pos) && mm[c]
		}
#ifdef BREAK_NEXT_EARLY
		atomic { assert(there[c]); next = nxt[pos] }
#endif
		if
		:: go ->
			assert(!seen[c]);
			seen[c] = 1;
			/* down_read_trylock(), refcount_inc_not_zero() */
			atomic {
				assert(there[c]);
				if
				:: !writer[c] -> readers[c]++
				:: writer[c] && refs[c] ->
#ifndef BREAK_NO_PIN
					refs[c]++;
#endif
					pinned = c
				:: writer[c] && !refs[c] -> go = 0
				fi
			}
			if
			:: !go
			:: go && pinned == NONE ->
				atomic {
					assert(there[c]);
					if
					:: mm[c] -> rcu_read_unlock()
					:: else -> readers[c]--; go = 0
					fi
				}
			:: go && pinned != NONE ->
				rcu_read_unlock();
				atomic {	/* down_read() */
					!writer[c];
					assert(there[c]);
					readers[c]++
				}
			fi
		:: else
		fi;
		if
		:: go ->
			if
			:: mm[c] -> visit_mm(c)
			:: else
			fi;
#if defined(BREAK_RCU_LATE)
			atomic { assert(there[c]); readers[c]-- }
			rcu_read_lock()
#elif defined(BREAK_PUT_FIRST)
			atomic { assert(there[c]); readers[c]-- }
			x = pinned;
			pinned = NONE;
			put(x);
			rcu_read_lock()
#else
			rcu_read_lock();
			atomic { assert(there[c]); readers[c]-- }
#endif
		:: else
		fi;
#ifdef BREAK_NO_PIN
		pinned = NONE;
#endif
#ifdef ALT_PUT_FIRST
		atomic { x = pinned; pinned = NONE }
		put(x);
#endif
		atomic {
			assert(there[c]);
#ifndef BREAK_NEXT_EARLY
			next = nxt[pos];
#endif
			x = pinned;
			pinned = NONE
		}
		put(x);				/* cow_context_put() */
		atomic { pos = next; next = NONE; c = 0; go = 0 }
	od;
	rcu_read_unlock();

	/* The folio is unlocked. */
	d_step {
		for (q : 0 .. NC * NA - 1) {
			assert(pte[q] != ENTRY)
		}
		q = 0;
		walked = 1
	}
#ifndef BREAK_TOP_PIN
	x = TOP;
	put(x);					/* anon_rmap_put() */
#endif
	running--
}

init
{
	byte q;

	/* The folio is locked, its owner pinned, its entries are installed. */
	d_step {
		there[0] = 1;
		mm[0] = 1;
		refs[0] = 1;
		parent[0] = NONE;
		nxt[ENTER(0)] = LEAVE(0);
		nxt[LEAVE(0)] = ENTER(0);
		mt_there[0] = 1;
		nr_mms = 1;
#if TOP == 1
		there[1] = 1;
		mm[1] = 1;
		refs[1] = 1;
		refs[0] = 2;
		parent[1] = 0;
		level[1] = 1;
		nxt[ENTER(0)] = ENTER(1);
		nxt[ENTER(1)] = LEAVE(1);
		nxt[LEAVE(1)] = LEAVE(0);
		mt_there[1] = 1;
		nr_mms = 2;
#endif
		v_there[1] = 1;
		v_mm[1] = TOP;
		v_origin[1] = 1;
#ifdef AWAY_FIRST
		record[TOP] = 1;
		v_away[1] = 1;
		v_start[1] = AWAY;
		v_end[1] = AWAY + 1;
		pte[AT(TOP, AWAY)] = ENTRY;
#else
#ifdef SPLIT
		v_start[1] = LOW;
#else
		v_start[1] = HOME;
#endif
		v_end[1] = HOME + 1;
		pte[AT(TOP, HOME)] = ENTRY;
#endif
		for (q : v_start[1] .. v_end[1] - 1) {
			mt[AT(TOP, q)] = 1;
			pt_there[AT(TOP, q)] = 1
		}
		q = 0;
#ifndef BREAK_TOP_PIN
		refs[TOP] = refs[TOP] + 1;
#endif
	}
	atomic {
		running = nr_mms + 1;
		run walker();
		run task(0);
#if TOP == 1
		run task(1)
#endif
	}

	/* All has ended: nothing is leaked. */
	!running;
	d_step {
		for (q : 0 .. NC - 1) {
			assert(!there[q])
		}
	}
}
