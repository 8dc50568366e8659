/* SPDX-License-Identifier: GPL-2.0 */
/*
 * CoW contexts: types and invariants.
 *
 * Private to mm/cow_context*.c, their tests, and the few lines of mm/rmap.c
 * that set a folio's owner. Everyone else includes <linux/cow_context.h>.
 */
#ifndef __MM_COW_CONTEXT_H
#define __MM_COW_CONTEXT_H

#include <linux/bitmap.h>
#include <linux/cow_context.h>
#include <linux/list.h>
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/seqlock.h>

struct seq_file;

/**
 * DOC: invariants
 *
 * Notation: *owner(mm)* is ``mm->cow_context->owner``; R and W are
 * ``ctx->rwsem`` held for read and for write; *encloses* is
 * ancestor-or-self in the fork tree.
 *
 * I1. The origin of a VMA of mm X is owner(X) or an owner that encloses it. It
 * changes from NULL to owner(X) at the first anonymous fault and to NULL when
 * the VMA is hidden but stays in mm_mt; fork, split, merge and mremap copy it.
 *
 * I2. A folio that is mapped through VMA V of mm X has an owner that encloses
 * X and that V's origin encloses: it lies in [owner(X) .. V's origin].
 *
 * I3. But for slots that KSM has shared (ksm_might_need_to_copy()), all sharers of
 * a swap entry have VMAs with the same origin and lie below it.
 *
 * I4. No VMA of the mm leaves mm_mt, and none that is attached changes its range,
 * but under W. What a child's mm_mt still has of its parent's is not of the mm.
 *
 * I5. A VMA is in mm_mt or in ctx->unmapping from before its first anonymous
 * PTE until its PTEs are zapped. Before its page tables or the VMA itself
 * are freed its origin, ctx->unmapping or ctx->mm is cleared, under W; or the VMA
 * that it was merged into has taken its place in mm_mt.
 *
 * I6. A VMA with an origin whose anonymous page offset is not its address
 * (delta != 0) has a record of that delta for each of its offsets.
 *
 * I7. The anonymous page offset of an entry for a folio whose owner is not
 * owner(X) is in the filter of X from before the entry is made.
 *
 * I8. A context is linked behind the context it was forked from, before the
 * first PTE is copied, and stays linked while it is referenced: by its mm, by a
 * context whose parent it is, by a pin.
 */

/*
 * So many owners may enclose an owner. A context forked deeper shares its
 * parent's owner: that bounds the contexts that outlive their mm.
 */
#define COW_OWNERS_MAX	64

/**
 * struct cow_marker - one end of a context in its family's list
 * @list: RCU list, circular; changed under cow_context_tree_lock.
 * @ctx: The context for an enter marker, NULL for a leave marker. Immutable.
 */
struct cow_marker {
	struct list_head list;
	struct cow_context *ctx;
};

/**
 * struct cow_remap - anonymous page offsets that are not at their own address
 * @first: First anonymous page offset.
 * @last: Last one, inclusive.
 * @delta: Pages from the offset to the page number of the address; never 0 in
 *	a record. 0 says that the inline record of a context is not in use.
 */
struct cow_remap {
	pgoff_t first;
	pgoff_t last;
	long delta;
};

/**
 * struct cow_unmapping - the munmap in flight of an mm
 * @tree: The side tree of mm/vma.c: VMAs at 0 .. @nr - 1 in address order,
 *	read-only from registration until they are hidden.
 * @last_found: Instead, if @nr is 0: the VMA of mm_mt that a walk has found last,
 *	or NULL. Written under R as well; cow_context_lock() forgets it.
 * @nr: Number of VMAs; 0 if no munmap is in flight.
 */
struct cow_unmapping {
	union {
		struct maple_tree *tree;
		struct vm_area_struct *last_found;
	};
	unsigned long nr;
};

/* Bits of a filter: what fits into the context, see mm/cow_context_filter.c. */
#define COW_FILTER_SMALL	128
#define COW_FILTER_LARGE	32

/**
 * struct cow_filter - a superset of some anonymous page offsets
 * @small: A bit for each hash of a piece of a small VMA.
 * @large: A bit for each hash of a piece of a large VMA.
 * @seq: Of the filter of a context: odd while it is made anew.
 */
struct cow_filter {
	DECLARE_BITMAP(small, COW_FILTER_SMALL);
	u32 large;
	seqcount_t seq;
};

/**
 * struct cow_context - copy-on-write identity of an mm_struct
 * @rwsem: R: a walker is inside this mm. W: VMA geometry, page table moves,
 *	hiding VMAs. Ranks where anon_vma->rwsem does (mm/rmap.c). Nothing is
 *	allocated under it with a mask that may enter direct reclaim.
 * @mm: NULL once the address space is torn down.
 *	Written under W with release; a walker tests it with acquire and
 *	relies on it under R.
 * @owner: This context, or @parent's owner beyond COW_OWNERS_MAX. What a folio
 *	that is exclusive to @mm names. Immutable once linked.
 * @parent: The innermost owner around the mm it was forked from; referenced;
 *	NULL for the context of an exec'd mm. Immutable once linked.
 * @depth: Number of owners above this context. Immutable once linked.
 * @nr_unmapped: VMAs unmapped since @inherited was made anew, saturating.
 *	Written with @inherited.
 * @refs: @mm (until mmdrop), contexts whose @parent this is, pins. A context
 *	with a reference stays linked.
 * @enter: Where the context begins in its family's list.
 * @leave: Where it ends; everything between was forked below it.
 * @remap: The first remap. Written under W and mmap_lock (write, or read by
 *	the munmap in flight), read under either.
 * @remaps: Further remaps, see mm/cow_context_remap.c. Written under W and
 *	mmap_lock (likewise), read under either, or RCU.
 * @inherited: Offsets of VMAs whose origin is not @owner. Written under
 *	mmap_lock (likewise), read by walks without a lock.
 * @unmapping: The munmap in flight. Written under W, read under R; its
 *	@last_found is written under R too.
 * @rcu: Frees the context after a grace period.
 */
struct cow_context {
	/* All that a walk reads of a context it passes by. */
	struct cow_marker enter;
	struct cow_context *owner;
	struct cow_filter inherited;
	struct mm_struct *mm;

	struct rw_semaphore rwsem;
	struct cow_context *parent;
	u16 depth;
	u16 nr_unmapped;
	refcount_t refs;
	struct cow_marker leave;
	struct cow_remap remap;
	struct maple_tree remaps;
	union {
		struct cow_unmapping unmapping;
		struct rcu_head rcu;
	};
};

/* Counters: /sys/kernel/debug/cow_context/stats. */
enum cow_context_stat {
	COW_STAT_CONTEXTS,		/* contexts in memory */
	COW_STAT_DEAD,			/* of them: their mm is torn down */
	COW_STAT_FORKS,
	COW_STAT_REMAPS_ADDED,
	COW_STAT_REMAPS_REMOVED,
	COW_STAT_REMAPS_KEPT,		/* no memory to remove one: harmless */
	COW_STAT_TREE_WALKS,		/* walks of the fork tree */
	COW_STAT_TREE_CONTEXTS,		/* contexts they visited */
	COW_STAT_UNFINDABLE,		/* DEBUG_VM: a PTE no walk would find */
	NR_COW_STATS_PURE,		/* from here on: the comparison */
	COW_STAT_WALKS = NR_COW_STATS_PURE, /* walks that were compared */
	COW_STAT_WALKS_KSM,		/* of them: KSM */
	COW_STAT_CONTENDED,		/* VMAs not judged: trylock failed */
	COW_STAT_UNJUDGED,		/* walks not judged: no owner */
	COW_STAT_DEVICE,		/* walks not judged: a device's folio */
	COW_STAT_KSM_FOREIGN,		/* KSM: VMAs another item answers for */
	COW_STAT_FOUND,			/* mapped, and would be visited */
	COW_STAT_MISSED,		/* mapped, and would not be visited */
	COW_STAT_BENIGN,		/* neither mapped nor visited */
	COW_STAT_EXTRA,			/* visited here, not by anon_vma */
	COW_STAT_EXTRA_OVERLAP,		/* of them: remaps overlap in an mm */
	COW_STAT_EXTRA_KSM,		/* of them: in walks of KSM folios */
	NR_COW_STATS
};

DECLARE_PER_CPU(long[NR_COW_STATS], cow_context_stats);

/**
 * cow_context_count() - Add to a counter.
 * @stat: Which one.
 * @nr: How much; may be negative.
 *
 * Context: Any.
 */
static inline void cow_context_count(enum cow_context_stat stat, long nr)
{
	this_cpu_add(cow_context_stats[stat], nr);
}

long cow_context_stat_sum(enum cow_context_stat stat);

/* mm/cow_context.c */
void cow_context_put(struct cow_context *ctx);

/**
 * cow_context_get() - Take a reference.
 * @ctx: The context. It has a reference already that cannot go meanwhile; given back
 *	by cow_context_put().
 *
 * Context: Any.
 */
static inline void cow_context_get(struct cow_context *ctx)
{
	refcount_inc(&ctx->refs);
}

/**
 * cow_context_is_linked() - Is a context reachable from its family's root?
 * @ctx: The context.
 *
 * Context: RCU, R or a reference.
 * Return: false if the last reference to @ctx is gone.
 */
static inline bool cow_context_is_linked(const struct cow_context *ctx)
{
	const struct list_head *prev = READ_ONCE(ctx->enter.list.prev);

	/* A root is its own family; any other lies within its parent. */
	return !ctx->parent ||
		(prev != &ctx->leave.list && prev != LIST_POISON2);
}

/**
 * cow_context_vma_delta() - How far is a VMA from its anonymous page offset?
 * @vma: The VMA.
 *
 * Context: What keeps the range of @vma as it is: mmap_lock, the VMA lock, or R.
 * Return: Pages from the anonymous page offset of @vma to its address.
 */
static inline long cow_context_vma_delta(const struct vm_area_struct *vma)
{
	return (vma->vm_start >> PAGE_SHIFT) - vma_start_anon_pgoff(vma);
}

/* mm/cow_context_remap.c */

typedef bool (*cow_remap_fn)(const struct cow_remap *remap, void *arg);

void cow_context_init_remaps(struct cow_context *ctx);
int cow_context_add_remap(struct cow_context *ctx, pgoff_t first, pgoff_t last,
			  long delta);
void cow_context_del_remap(struct cow_context *ctx, pgoff_t first, pgoff_t last,
			   long delta);
int cow_context_dup_remaps(struct cow_context *ctx, struct cow_context *from);
void cow_context_free_remaps(struct cow_context *ctx);
bool cow_context_has_remaps(struct cow_context *ctx, pgoff_t first,
			    pgoff_t last, long delta);
bool cow_context_visit_remaps(struct cow_context *ctx, pgoff_t first,
			      pgoff_t last, cow_remap_fn fn, void *arg);
unsigned long cow_context_nr_remaps(struct cow_context *ctx);

/* mm/cow_context_filter.c */
void cow_filter_folio(struct cow_filter *filter, pgoff_t first, pgoff_t last);
void cow_filter_add_range(const struct vm_area_struct *vma, pgoff_t first,
			  pgoff_t last);
void cow_filter_add_vma(const struct vm_area_struct *vma);
void cow_filter_unmapped(struct cow_context *ctx, unsigned long nr);

/**
 * cow_filter_meets() - Can an mm map a folio, as far as its filter tells?
 * @ctx: The context of the mm.
 * @owner: The owner of the folio. What is the mm's own is not in its filter.
 * @folio: The folio's offsets, from cow_filter_folio().
 *
 * Context: RCU or R.
 * Return: false if it cannot. true otherwise, and while the filter is made anew.
 */
static inline bool cow_filter_meets(const struct cow_context *ctx,
				    const struct cow_context *owner,
				    const struct cow_filter *folio)
{
	const struct cow_filter *filter = &ctx->inherited;
	unsigned int i, seq;

	if (ctx->owner == owner)
		return true;
	if (!raw_seqcount_try_begin(&filter->seq, seq) ||
	    READ_ONCE(filter->large) & folio->large)
		return true;
	for (i = 0; i < ARRAY_SIZE(folio->small); i++)
		if (READ_ONCE(filter->small[i]) & folio->small[i])
			return true;
	return read_seqcount_retry(&filter->seq, seq);
}

/* mm/cow_context_rmap.c */

/**
 * struct cow_context_walk - one walk of a fork tree
 * @owner: Where it starts: the folio's owner; for KSM the owner of the mm.
 * @first: First anonymous page offset of the folio.
 * @last: Last one, inclusive.
 * @ksm: Find VMAs without looking at their origin.
 * @hugetlb: The folio is a hugetlb folio.
 * @try_lock: End the walk at the first lock that stays contended.
 * @contended: Set if the walk ended because of that.
 * @visit: Called for each VMA under R; false ends the walk. May sleep.
 * @nr_vmas: VMAs visited so far.
 * @nr_overlap: Visits beyond the first in one mm.
 * @ctx: Where it is; set by the walk.
 */
struct cow_context_walk {
	struct cow_context *owner;
	pgoff_t first;
	pgoff_t last;
	bool ksm;
	bool hugetlb;
	bool try_lock;
	bool contended;
	bool (*visit)(struct cow_context_walk *walk,
		      struct vm_area_struct *vma);
	unsigned long nr_vmas;
	unsigned long nr_overlap;
	struct cow_context *ctx;
};

typedef bool (*cow_context_tree_fn)(struct cow_context *ctx, void *arg);

bool cow_context_walk_tree(struct cow_context *top, bool try_lock,
			   const struct cow_filter *filter,
			   cow_context_tree_fn fn, void *arg);
void cow_context_walk(struct cow_context_walk *walk);
bool cow_context_walk_mm(struct cow_context *ctx, void *arg);

/* mm/cow_context_validate.c */
const char *cow_context_check_chain(const struct cow_context *ctx,
				    const struct cow_context *owner,
				    const struct cow_context *stop);
const char *cow_context_check_vma(const struct vm_area_struct *vma);
void cow_context_validate(struct seq_file *m);

/* mm/cow_context_anon.c, or in compare mode mm/cow_context_compare.c */
struct cow_context *cow_context_folio_owner(const struct folio *folio);

#ifdef CONFIG_COW_CONTEXT_ANON_RMAP

/**
 * vma_anon_owner() - What does an anonymous folio of a VMA name?
 * @vma: The VMA; it has an origin.
 * @exclusive: The folio is exclusive to the mm of @vma.
 *
 * Context: mmap_lock or the VMA lock, which keep the origin.
 * Return: The owner, a struct cow_context; not referenced.
 */
static inline void *vma_anon_owner(const struct vm_area_struct *vma,
				   bool exclusive)
{
	return exclusive ? vma->vm_mm->cow_context->owner :
			   READ_ONCE(vma->origin);
}

#endif

#endif /* __MM_COW_CONTEXT_H */
