// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: records of anonymous memory that is not at its own address.
 *
 * Theory
 * ======
 *
 * Anonymous page offset P is at page number P of the address space, unless
 * mremap() or exec moved it. A record says that offsets [first, last] are at
 * page numbers P + delta. Nothing prevents several places for one offset: map
 * X, fault, move X to Y, map X again, fault, move X to Z.
 *
 * The first record is kept in the context itself: every exec'd mm has exactly
 * one, of its stack, and most never get another. Further ones are in a maple
 * tree, keyed by offset. An entry is a set of deltas, immutable and replaced as a
 * whole. It is counted by the tree ranges that point to it, in any context: fork
 * shares it.
 *
 * An offset has a given delta in the inline record or in the tree, not in both.
 *
 * What a record must be
 * =====================
 *
 * A walker takes the address from the VMA, never from the record. So a record
 * that is stale or too wide costs a lookup and cannot be wrong. A missing one
 * is a bug. Hence:
 *
 * - It is added before the first PTE is moved, and adding may fail.
 * - It is removed after the VMA is hidden, in the mmap_lock section that
 *   unmapped the VMA. Until that ends nothing else is mapped there, and
 *   (offset, delta) says the address, so the record is no other VMA's. If there
 *   is no memory to remove it, it stays. A later attempt could hit the record
 *   of a new VMA, so there is none.
 *
 * Locking
 * =======
 *
 * Writers are serialised by mmap_lock: held for write, or for read by the one
 * munmap in flight, during which nobody else writes. They allocate first, and
 * then change the inline record or the tree under W. So a walker, which holds
 * R, sees records that do not change. The tree has no lock of its own
 * (MT_FLAGS_LOCK_EXTERN), and none that lockdep could check.
 *
 * RCU is for cow_context_has_remaps() under a page table lock: of a record that
 * covers a PTE, what is read does not change in a way that matters, because the
 * record can only grow, or be trimmed beside what is still mapped.
 *
 *	walker				mremap
 *	------				------
 *	R, sees no record		add record
 *	looks at the old place		wait for W
 *	unlock				W: move PTEs
 *
 * A walker that entered before the record does its work before the PTEs move;
 * one that enters after they moved sees the record.
 */

#include <linux/mm.h>
#include <linux/refcount.h>
#include <linux/slab.h>

#include "cow_context.h"

#include <trace/events/cow_context.h>

/**
 * struct cow_remap_set - the deltas of one range of offsets
 * @refs: Tree ranges that point here.
 * @nr: Number of deltas, at least 1.
 * @rcu: Frees the set after a grace period.
 * @delta: The deltas, in no order.
 */
struct cow_remap_set {
	refcount_t refs;
	unsigned int nr;
	struct rcu_head rcu;
	long delta[] __counted_by(nr);
};

static bool set_has(const struct cow_remap_set *set, long delta)
{
	unsigned int i;

	for (i = 0; set && i < set->nr; i++)
		if (set->delta[i] == delta)
			return true;
	return false;
}

static void set_put(struct cow_remap_set *set)
{
	if (set && refcount_dec_and_test(&set->refs))
		kvfree_rcu(set, rcu);
}

/*
 * @old, or nothing, and also @delta (@add); or what @old has but @delta, NULL if
 * that is nothing. An ERR_PTR if there is no memory.
 */
static struct cow_remap_set *set_change(const struct cow_remap_set *old,
					long delta, bool add)
{
	const unsigned int nr_old = old ? old->nr : 0;
	const unsigned int nr = add ? nr_old + 1 : nr_old - 1;
	struct cow_remap_set *set;
	unsigned int i, j = 0;

	if (!nr)
		return NULL;
	set = kvmalloc(struct_size(set, delta, nr), GFP_KERNEL_ACCOUNT);
	if (!set)
		return ERR_PTR(-ENOMEM);
	refcount_set(&set->refs, 1);
	set->nr = nr;
	for (i = 0; i < nr_old; i++)
		if (old->delta[i] != delta)
			set->delta[j++] = old->delta[i];
	if (add)
		set->delta[j] = delta;
	return set;
}

/*
 * Add (@add) or remove @delta over [@first, @last] of the tree. What is left of
 * a range that is changed in part, up to two pieces, still points to its old set.
 */
static int tree_change(struct cow_context *ctx, pgoff_t first, pgoff_t last,
		       long delta, bool add)
{
	MA_STATE(mas, &ctx->remaps, first, first);

	for (;;) {
		/* Also sets the range of a gap. */
		struct cow_remap_set *old = mas_walk(&mas);
		struct cow_remap_set *new;
		const pgoff_t to = min(last, mas.last);

		if (set_has(old, delta) != add) {
			const pgoff_t from = max(first, mas.index);
			const int rest = (mas.index < from) + (mas.last > to);

			new = set_change(old, delta, add);
			if (IS_ERR(new))
				return PTR_ERR(new);
			mas_set_range(&mas, from, to);
			if (mas_preallocate(&mas, new, GFP_KERNEL_ACCOUNT)) {
				set_put(new);
				return -ENOMEM;
			}

			down_write(&ctx->rwsem);
			if (old && rest == 2)
				refcount_inc(&old->refs);
			mas_store_prealloc(&mas, new);
			up_write(&ctx->rwsem);
			if (!rest)
				set_put(old);
		}
		if (to == last)
			return 0;
		mas_set(&mas, to + 1);
	}
}

/**
 * cow_context_init_remaps - no remap yet
 * @ctx: A new context, zeroed.
 *
 * Context: Any.
 */
void cow_context_init_remaps(struct cow_context *ctx)
{
	mt_init_flags(&ctx->remaps, MT_FLAGS_LOCK_EXTERN | MT_FLAGS_USE_RCU);
	mt_on_stack(ctx->remaps);
}

/**
 * cow_context_add_remap - record where a range of offsets will be
 * @ctx: The context.
 * @first: First anonymous page offset.
 * @last: Last one, inclusive.
 * @delta: Pages from offset to page number of the address; not 0.
 *
 * Nothing may be mapped yet where the record points, see above.
 *
 * Context: mmap_lock held for write, W not held. May sleep.
 * Return: 0, or -ENOMEM. Then there is no record of it but a stale one, or a part for
 * which there was no memory to take it back either.
 */
int cow_context_add_remap(struct cow_context *ctx, pgoff_t first, pgoff_t last,
			  long delta)
{
	struct cow_remap *remap = &ctx->remap;
	bool is_new;
	int err;

	VM_WARN_ON_ONCE(!delta || first > last);

	trace_cow_context_remap_add(ctx, first, last, delta);
	cow_context_count(COW_STAT_REMAPS_ADDED, 1);

	is_new = !remap->delta;
	if (!is_new && (remap->delta != delta || first > remap->last + 1 ||
			remap->first > last + 1)) {
		err = tree_change(ctx, first, last, delta, /* add = */ true);
		if (err)
			cow_context_del_remap(ctx, first, last, delta);
		return err;
	}

	/* What is stale there is not to be in both. */
	err = tree_change(ctx, first, last, delta, /* add = */ false);
	if (err)
		return err;
	down_write(&ctx->rwsem);
	WRITE_ONCE(remap->first, is_new ? first : min(remap->first, first));
	WRITE_ONCE(remap->last, is_new ? last : max(remap->last, last));
	WRITE_ONCE(remap->delta, delta);
	up_write(&ctx->rwsem);
	return 0;
}

/**
 * cow_context_del_remap - remove a record
 * @ctx: The context.
 * @first: First anonymous page offset.
 * @last: Last one, inclusive.
 * @delta: As recorded.
 *
 * What is not recorded is ignored. If there is no memory, or a hole would have
 * to be made in the inline record, the record stays wider than needed.
 *
 * Context: mmap_lock held for write, or read by the munmap in flight; W not
 * held. May sleep.
 */
void cow_context_del_remap(struct cow_context *ctx, pgoff_t first, pgoff_t last,
			   long delta)
{
	struct cow_remap *remap = &ctx->remap;

	trace_cow_context_remap_del(ctx, first, last, delta);
	cow_context_count(COW_STAT_REMAPS_REMOVED, 1);

	if (remap->delta == delta &&
	    first <= remap->last && remap->first <= last) {
		down_write(&ctx->rwsem);
		if (first <= remap->first && last >= remap->last)
			WRITE_ONCE(remap->delta, 0);
		else if (first <= remap->first)
			WRITE_ONCE(remap->first, last + 1);
		else if (last >= remap->last)
			WRITE_ONCE(remap->last, first - 1);
		up_write(&ctx->rwsem);
	}

	if (tree_change(ctx, first, last, delta, /* add = */ false))
		cow_context_count(COW_STAT_REMAPS_KEPT, 1);
}

/**
 * cow_context_dup_remaps - inherit the records at fork
 * @ctx: The child's context, without records.
 * @from: The parent's.
 *
 * Those of VMAs that the child does not get too: dup_mmap() has them forgotten
 * one by one.
 *
 * Context: The parent's mmap_lock held for write, @ctx not visible. May sleep.
 * Return: 0, or -ENOMEM with nothing changed.
 */
int cow_context_dup_remaps(struct cow_context *ctx, struct cow_context *from)
{
	MA_STATE(mas, &ctx->remaps, 0, 0);
	struct cow_remap_set *set;
	int err;

	err = __mt_dup(&from->remaps, &ctx->remaps, GFP_KERNEL_ACCOUNT);
	if (err)
		return err;
	mas_for_each(&mas, set, ULONG_MAX)
		refcount_inc(&set->refs);
	ctx->remap = from->remap;
	return 0;
}

/**
 * cow_context_free_remaps - forget all records
 * @ctx: A context whose mm is torn down.
 *
 * Context: No walker uses the records any more. Does not sleep.
 */
void cow_context_free_remaps(struct cow_context *ctx)
{
	MA_STATE(mas, &ctx->remaps, 0, 0);
	struct cow_remap_set *set;

	ctx->remap.delta = 0;
	mas_for_each(&mas, set, ULONG_MAX)
		set_put(set);
	__mt_destroy(&ctx->remaps);
}

/**
 * cow_context_has_remaps - is a place of each of a range of offsets recorded?
 * @ctx: The context.
 * @first: First anonymous page offset.
 * @last: Last one, inclusive.
 * @delta: Pages from offset to page number of the address; not 0.
 *
 * Context: mmap_lock, R, or the PTLs of PTEs that the records cover.
 * Return: true if all are.
 */
bool cow_context_has_remaps(struct cow_context *ctx, pgoff_t first,
			    pgoff_t last, long delta)
{
	const struct cow_remap *remap = &ctx->remap;
	MA_STATE(mas, &ctx->remaps, first, first);
	pgoff_t index = first;

	for (;;) {
		pgoff_t end = READ_ONCE(remap->last);

		if (READ_ONCE(remap->delta) != delta ||
		    index < READ_ONCE(remap->first) || index > end) {
			bool has;

			mas_set(&mas, index);
			rcu_read_lock();
			has = set_has(mas_walk(&mas), delta);
			rcu_read_unlock();
			if (!has)
				return false;
			end = mas.last;
		}
		if (end >= last)
			return true;
		index = end + 1;
	}
}

/**
 * cow_context_visit_remaps - look at the records for a range of offsets
 * @ctx: The context.
 * @first: First anonymous page offset.
 * @last: Last one, inclusive.
 * @fn: Called once for each (range of offsets, delta) that has one of them. May
 *	sleep: no record changes under R. false ends it.
 * @arg: For @fn.
 *
 * Context: R, or a context that does not change.
 * Return: false if @fn ended it.
 */
bool cow_context_visit_remaps(struct cow_context *ctx, pgoff_t first,
			      pgoff_t last, cow_remap_fn fn, void *arg)
{
	MA_STATE(mas, &ctx->remaps, first, first);
	const struct cow_remap *remap = &ctx->remap;
	const struct cow_remap_set *set;
	unsigned int i;

	if (remap->delta && remap->first <= last && remap->last >= first &&
	    !fn(remap, arg))
		return false;
	mas_for_each(&mas, set, last) {
		for (i = 0; i < set->nr; i++) {
			const struct cow_remap found = {
				mas.index, mas.last, set->delta[i],
			};

			if (!fn(&found, arg))
				return false;
		}
	}
	return true;
}

/**
 * cow_context_nr_remaps - count the records
 * @ctx: The context.
 *
 * Context: R, or a context that does not change. For people and tests.
 * Return: Number of (range, delta) pairs recorded.
 */
unsigned long cow_context_nr_remaps(struct cow_context *ctx)
{
	MA_STATE(mas, &ctx->remaps, 0, 0);
	unsigned long nr = ctx->remap.delta != 0;
	const struct cow_remap_set *set;

	mas_for_each(&mas, set, ULONG_MAX)
		nr += set->nr;
	return nr;
}
