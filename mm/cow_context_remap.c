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
 * tree, keyed by offset:
 *
 *	one delta	a value entry, zigzag-encoded: most deltas are negative
 *	several		a struct cow_remap_set, sorted, immutable, replaced as a
 *			whole; counted by the tree ranges that point to it, in
 *			any context: fork shares it
 *
 * A value entry is one bit short. Offsets keep growing in memory that is grown,
 * moved, and cut at the front again and again, whatever the size of the address
 * space: a delta that does not fit is a set of one.
 *
 * An offset has a given delta in the inline record or in the tree; if in both,
 * the inline record counts and the walk ignores the tree's.
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
#include <linux/xarray.h>

#include "cow_context.h"

#include <trace/events/cow_context.h>

/**
 * struct cow_remap_set - several deltas of one range of offsets
 * @refs: Tree ranges that point here.
 * @nr: Number of deltas; 1 if it does not fit into a value entry.
 * @rcu: Frees the set after a grace period.
 * @delta: The deltas, ascending.
 */
struct cow_remap_set {
	refcount_t refs;
	unsigned int nr;
	struct rcu_head rcu;
	long delta[] __counted_by(nr);
};

/*
 * Does the zigzag code of @delta fit into a value entry? A bit less than that: the
 * largest value entries are error pointers.
 */
static bool delta_fits(long delta)
{
	return (long)((unsigned long)delta << 2) >> 2 == delta;
}

static void *delta_to_entry(long delta)
{
	return xa_mk_value(((unsigned long)delta << 1) ^
			   (delta >> (BITS_PER_LONG - 1)));
}

static long entry_to_delta(const void *entry)
{
	const unsigned long value = xa_to_value(entry);

	return (long)(value >> 1) ^ -(long)(value & 1);
}

static unsigned int entry_nr(const void *entry)
{
	if (!entry)
		return 0;
	return xa_is_value(entry) ? 1 : ((struct cow_remap_set *)entry)->nr;
}

static long entry_delta(const void *entry, unsigned int i)
{
	if (xa_is_value(entry))
		return entry_to_delta(entry);
	return ((struct cow_remap_set *)entry)->delta[i];
}

static bool entry_has(const void *entry, long delta)
{
	unsigned int i;

	for (i = 0; i < entry_nr(entry); i++)
		if (entry_delta(entry, i) == delta)
			return true;
	return false;
}

static struct cow_remap_set *entry_set(void *entry)
{
	return entry && !xa_is_value(entry) ? entry : NULL;
}

static void set_put(struct cow_remap_set *set)
{
	if (set && refcount_dec_and_test(&set->refs))
		kvfree_rcu(set, rcu);
}

/* @entry and also @delta. Returns an ERR_PTR if there is no memory. */
static void *entry_with(const void *entry, long delta)
{
	const unsigned int nr = entry_nr(entry);
	struct cow_remap_set *set;
	unsigned int i, j = 0;

	if (!nr && delta_fits(delta))
		return delta_to_entry(delta);

	set = kvmalloc(struct_size(set, delta, nr + 1), GFP_KERNEL_ACCOUNT);
	if (!set)
		return ERR_PTR(-ENOMEM);
	refcount_set(&set->refs, 1);
	set->nr = nr + 1;
	for (i = 0; i < nr && entry_delta(entry, i) < delta; i++)
		set->delta[j++] = entry_delta(entry, i);
	set->delta[j++] = delta;
	for (; i < nr; i++)
		set->delta[j++] = entry_delta(entry, i);
	return set;
}

/* @entry, which has @delta, without it. */
static void *entry_without(const void *entry, long delta)
{
	const unsigned int nr = entry_nr(entry);
	struct cow_remap_set *set;
	unsigned int i, j = 0;

	if (nr == 1)
		return NULL;
	if (nr == 2) {
		const long other = entry_delta(entry, entry_delta(entry, 0) == delta);

		if (delta_fits(other))
			return delta_to_entry(other);
	}

	set = kvmalloc(struct_size(set, delta, nr - 1), GFP_KERNEL_ACCOUNT);
	if (!set)
		return ERR_PTR(-ENOMEM);
	refcount_set(&set->refs, 1);
	set->nr = nr - 1;
	for (i = 0; i < nr; i++)
		if (entry_delta(entry, i) != delta)
			set->delta[j++] = entry_delta(entry, i);
	return set;
}

/*
 * Store @new over [@first, @last], a part of the range at @mas, which holds
 * @old. What is left of that range, up to two pieces, still points to @old.
 */
static int entry_replace(struct cow_context *ctx, struct ma_state *mas,
			 pgoff_t first, pgoff_t last, void *old, void *new)
{
	struct cow_remap_set *old_set = entry_set(old);
	const int rest = (mas->index < first) + (mas->last > last);
	int err;

	mas_set_range(mas, first, last);
	err = mas_preallocate(mas, new, GFP_KERNEL_ACCOUNT);
	if (err) {
		set_put(entry_set(new));
		return err;
	}

	down_write(&ctx->rwsem);
	if (old_set && rest == 2)
		refcount_inc(&old_set->refs);
	mas_store_prealloc(mas, new);
	up_write(&ctx->rwsem);

	if (old_set && rest == 0)
		set_put(old_set);
	return 0;
}

/* Add (@add) or remove @delta over [@first, @last] of the tree. */
static int tree_change(struct cow_context *ctx, pgoff_t first, pgoff_t last,
		       long delta, bool add)
{
	MA_STATE(mas, &ctx->remaps, first, first);
	pgoff_t index = first;

	for (;;) {
		pgoff_t from, to;
		void *old, *new;
		int err;

		mas_set(&mas, index);
		rcu_read_lock();
		/* Also sets the range of a gap. */
		old = mas_walk(&mas);
		rcu_read_unlock();

		from = max(first, mas.index);
		to = min(last, mas.last);
		if (entry_has(old, delta) != add) {
			new = add ? entry_with(old, delta) :
				    entry_without(old, delta);
			if (IS_ERR(new))
				return PTR_ERR(new);
			err = entry_replace(ctx, &mas, from, to, old, new);
			if (err)
				return err;
		}
		if (to >= last)
			return 0;
		index = to + 1;
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
 * Return: 0, or -ENOMEM. Then there is no record of it, unless there was no memory
 * to take back a part of one either.
 */
int cow_context_add_remap(struct cow_context *ctx, pgoff_t first, pgoff_t last,
			  long delta)
{
	struct cow_remap *remap = &ctx->remap;
	int err;

	VM_WARN_ON_ONCE(!delta || first > last);

	trace_cow_context_remap_add(ctx, first, last, delta);
	cow_context_count(COW_STAT_REMAPS_ADDED, 1);

	if (!remap->delta) {
		down_write(&ctx->rwsem);
		WRITE_ONCE(remap->first, first);
		WRITE_ONCE(remap->last, last);
		WRITE_ONCE(remap->delta, delta);
		up_write(&ctx->rwsem);
		return 0;
	}
	if (remap->delta == delta &&
	    first <= remap->last + 1 && remap->first <= last + 1) {
		down_write(&ctx->rwsem);
		WRITE_ONCE(remap->first, min(remap->first, first));
		WRITE_ONCE(remap->last, max(remap->last, last));
		up_write(&ctx->rwsem);
		return 0;
	}

	err = tree_change(ctx, first, last, delta, /* add = */ true);
	if (err)
		cow_context_del_remap(ctx, first, last, delta);
	return err;
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

	if (!mtree_empty(&ctx->remaps) &&
	    tree_change(ctx, first, last, delta, /* add = */ false))
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
	void *entry;
	int err;

	if (!mtree_empty(&from->remaps)) {
		err = __mt_dup(&from->remaps, &ctx->remaps, GFP_KERNEL_ACCOUNT);
		if (err)
			return err;
		rcu_read_lock();
		mas_for_each(&mas, entry, ULONG_MAX) {
			if (entry_set(entry))
				refcount_inc(&entry_set(entry)->refs);
		}
		rcu_read_unlock();
	}
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
	void *entry;

	ctx->remap.delta = 0;
	if (mtree_empty(&ctx->remaps))
		return;

	rcu_read_lock();
	mas_for_each(&mas, entry, ULONG_MAX)
		set_put(entry_set(entry));
	rcu_read_unlock();
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
			has = entry_has(mas_walk(&mas), delta);
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
 * cow_context_next_remap - find the records for a range of offsets, one by one
 * @ctx: The context.
 * @iter: Zeroed but for the range asked for.
 *
 * Each (range of offsets, delta) is returned once: the inline record first,
 * then the tree's by offset and delta. The caller may sleep in between: no
 * record changes under R, so a range and a position in it say where to go on.
 *
 * Context: R. Does not sleep.
 * Return: true if there is one more, in @iter->remap.
 */
bool cow_context_next_remap(struct cow_context *ctx,
			    struct cow_remap_iter *iter)
{
	struct cow_remap *remap = &iter->remap;
	void *entry;

	if (!iter->started) {
		iter->started = true;
		iter->index = iter->first;
		if (ctx->remap.delta && ctx->remap.first <= iter->last &&
		    ctx->remap.last >= iter->first) {
			*remap = ctx->remap;
			iter->in_tree = false;
			return true;
		}
	}
	if (mtree_empty(&ctx->remaps))
		return false;

	MA_STATE(mas, &ctx->remaps, iter->index, iter->index);

	iter->in_tree = true;
	rcu_read_lock();
	mas_for_each(&mas, entry, iter->last) {
		/* The range that was being read is exhausted. */
		if (mas.index > iter->index) {
			iter->index = mas.index;
			iter->pos = 0;
		}
		if (iter->pos < entry_nr(entry)) {
			remap->first = mas.index;
			remap->last = mas.last;
			remap->delta = entry_delta(entry, iter->pos++);
			break;
		}
	}
	rcu_read_unlock();
	return entry;
}

/**
 * cow_context_nr_remaps - count the records
 * @ctx: The context.
 *
 * Context: RCU, or a context that does not change. For people and tests.
 * Return: Number of (range, delta) pairs recorded.
 */
unsigned long cow_context_nr_remaps(struct cow_context *ctx)
{
	MA_STATE(mas, &ctx->remaps, 0, 0);
	unsigned long nr = READ_ONCE(ctx->remap.delta) != 0;
	void *entry;

	if (mtree_empty(&ctx->remaps))
		return nr;
	rcu_read_lock();
	mas_for_each(&mas, entry, ULONG_MAX)
		nr += entry_nr(entry);
	rcu_read_unlock();
	return nr;
}
