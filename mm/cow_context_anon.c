// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: the anon_rmap interface, answered by contexts alone.
 *
 * Theory
 * ======
 *
 * folio->mapping of an anonymous folio names the context that owns it; a walk
 * starts there (mm/cow_context_rmap.c). Nothing is attached to a VMA but its
 * origin. So most of the interface that mm/rmap.c implements with anon_vma is
 * empty here, or takes one lock:
 *
 *	first fault			set the origin; the VMA lock is enough
 *	duplicate, fork, unlink		nothing: the origin is copied and cleared
 *					where the VMA becomes visible and hidden
 *	change ranges, move entries	ctx->rwsem for write
 *	pin				a reference to the owner
 *
 * Who keeps the owner of a folio alive
 * ====================================
 *
 * All mms that map a folio, or hold a migration entry for it, lie below its
 * owner, and each holds a reference to its own context and so to all above it,
 * until its PTEs are zapped. So the owner of a mapped folio is alive, and stays
 * for an RCU grace period once the folio was seen mapped. That is how
 * folio_get_anon_rmap() gets a reference.
 *
 * When the folio is not mapped any more its owner may be freed, unless someone
 * took a reference before: the caller of remove_migration_ptes() did, or holds
 * the mmap_lock of an mm with such an entry. folio_anon_may_map() compares
 * pointers and looks at no owner, since the folio may be in the swap cache only.
 * If memory of the old owner is a new context by then, the answer is right for
 * the new one: an mm that may map the folio has that context above it, so it is
 * alive, and a walk from it finds the VMA.
 *
 * Splitting a folio
 * =================
 *
 * anon_vma's root is locked for write while a folio is split. All that the split
 * needs is the owner to be alive: entries that fork copies meanwhile are found
 * by the walk that restores them, as after migration; khugepaged stays away from
 * a locked folio.
 */

#include <linux/ksm.h>
#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>

#include "cow_context.h"
#include "internal.h"
#include "vma.h"

#include <trace/events/cow_context.h>

static struct anon_rmap *to_anon_rmap(struct cow_context *ctx)
{
	return (struct anon_rmap *)ctx;
}

static struct cow_context *to_cow_context(struct anon_rmap *anon_rmap)
{
	return (struct cow_context *)anon_rmap;
}

/**
 * cow_context_folio_owner() - Which context owns a folio?
 * @folio: The folio.
 *
 * It can have been freed if the folio is not mapped: compare the pointer only.
 *
 * Context: Any.
 * Return: The owner, NULL if the folio is not anonymous, or KSM's.
 */
struct cow_context *cow_context_folio_owner(const struct folio *folio)
{
	return to_cow_context(folio_anon_rmap(folio));
}

/**
 * __vma_anon_prepare() - Make a VMA ready for its first anonymous folio.
 * @vma: The VMA.
 *
 * Context: The caller holds mmap_lock or the VMA lock.
 * Return: 0.
 */
int __vma_anon_prepare(struct vm_area_struct *vma)
{
	cow_context_prepare_vma(vma);
	return 0;
}

/**
 * vma_anon_is_fork_child() - Were the anonymous folios of a VMA inherited?
 * @vma: The VMA.
 *
 * Context: The caller holds mmap_lock.
 * Return: true if it was first faulted in an ancestor of its mm.
 */
bool vma_anon_is_fork_child(const struct vm_area_struct *vma)
{
	const struct cow_context *origin = READ_ONCE(vma->origin);

	return origin && origin != vma->vm_mm->cow_context->owner;
}

/**
 * anon_rmap_begin_adjust() - Keep rmap walks out while VMAs change their range.
 * @vp: The VMAs.
 *
 * Context: mmap_lock and the VMA locks are held for write, and i_mmap_rwsem of
 * a file mapping. May sleep. No memory is allocated until
 * anon_rmap_end_adjust(): reclaim would wait for itself.
 */
void anon_rmap_begin_adjust(struct vma_prepare *vp)
{
	cow_context_lock(vp->vma->vm_mm);
}

/**
 * anon_rmap_end_adjust() - Let rmap walks in again.
 * @vp: As given to anon_rmap_begin_adjust().
 *
 * Context: As anon_rmap_begin_adjust().
 */
void anon_rmap_end_adjust(struct vma_prepare *vp)
{
	cow_context_unlock(vp->vma->vm_mm);
	cow_context_validate_vma(vp->vma);
	if (vp->adj_next)
		cow_context_validate_vma(vp->adj_next);
	if (vp->insert)
		cow_context_validate_vma(vp->insert);
}

/**
 * anon_rmap_begin_move() - Keep rmap walks out while page table entries move.
 * @vma: The VMA whose entries move.
 * @need_locks: Ignored: no order of visits would do instead.
 *
 * Context: mmap_lock is held for write. May sleep. No memory is allocated until
 * anon_rmap_end_move(): reclaim would wait for itself.
 */
void anon_rmap_begin_move(struct vm_area_struct *vma, bool need_locks)
{
	cow_context_lock(vma->vm_mm);
}

/**
 * anon_rmap_end_move() - Let rmap walks in again.
 * @vma: As given to anon_rmap_begin_move().
 * @need_locks: Ignored.
 *
 * Context: As anon_rmap_begin_move().
 */
void anon_rmap_end_move(struct vm_area_struct *vma, bool need_locks)
{
	cow_context_unlock(vma->vm_mm);
}

/**
 * anon_rmap_lock_all() - Keep all rmap walks out of an mm.
 * @mm: The mm to lock.
 *
 * Context: mm_all_locks_mutex, @mm's mmap_lock for write and all its
 * i_mmap_rwsem must be held. May sleep.
 * Return: 0, or -EINTR if a signal is pending. Nothing is locked then.
 */
int anon_rmap_lock_all(struct mm_struct *mm)
{
	if (signal_pending(current))
		return -EINTR;
	cow_context_lock_all(mm);
	return 0;
}

/**
 * anon_rmap_unlock_all() - Undo anon_rmap_lock_all().
 * @mm: The mm to unlock.
 *
 * Context: As anon_rmap_lock_all(), all of whose locks are still held.
 */
void anon_rmap_unlock_all(struct mm_struct *mm)
{
	cow_context_unlock(mm);
}

#ifdef CONFIG_DEBUG_VM_RB
/**
 * anon_rmap_validate_vma() - Check what rmap walks would see of a VMA.
 * @vma: The VMA to check.
 *
 * Context: mmap_lock is held.
 */
void anon_rmap_validate_vma(struct vm_area_struct *vma)
{
	cow_context_validate_vma(vma);
}
#endif

/**
 * folio_get_anon_rmap() - Pin what an anonymous folio names.
 * @folio: The folio.
 *
 * Context: Any. The caller holds the folio lock.
 * Return: what to give to anon_rmap_put(), NULL if the folio is not mapped.
 */
struct anon_rmap *folio_get_anon_rmap(const struct folio *folio)
{
	struct cow_context *owner;

	VM_WARN_ON_FOLIO(!folio_test_locked(folio), folio);

	rcu_read_lock();
	owner = cow_context_folio_owner(folio);
	/* Mapped now means that the owner is not freed before RCU lets it. */
	if (owner && (!folio_mapped(folio) ||
		      !refcount_inc_not_zero(&owner->refs)))
		owner = NULL;
	rcu_read_unlock();
	return to_anon_rmap(owner);
}

/**
 * vma_get_anon_rmap() - Pin what exclusive anonymous folios of a VMA name.
 * @vma: The VMA, faulted.
 *
 * Context: Any. The mmap_lock which @vma was found under is still held.
 * Return: what to give to anon_rmap_put().
 */
struct anon_rmap *vma_get_anon_rmap(const struct vm_area_struct *vma)
{
	struct cow_context *owner = vma->vm_mm->cow_context->owner;

	cow_context_get(owner);
	return to_anon_rmap(owner);
}

/**
 * anon_rmap_put() - Undo folio_get_anon_rmap() or vma_get_anon_rmap().
 * @anon_rmap: What was pinned.
 *
 * Context: Any.
 */
void anon_rmap_put(struct anon_rmap *anon_rmap)
{
	cow_context_put(to_cow_context(anon_rmap));
}

/**
 * folio_anon_split_begin() - Prepare to split an anonymous folio.
 * @folio: The folio to split.
 *
 * Context: The caller holds the folio lock.
 * Return: what to give to folio_anon_split_end(), NULL if the folio is not
 * mapped.
 */
struct anon_rmap *folio_anon_split_begin(const struct folio *folio)
{
	return folio_get_anon_rmap(folio);
}

/**
 * folio_anon_split_end() - Undo folio_anon_split_begin().
 * @anon_rmap: What folio_anon_split_begin() returned.
 *
 * Context: Any.
 */
void folio_anon_split_end(struct anon_rmap *anon_rmap)
{
	anon_rmap_put(anon_rmap);
}

/**
 * folio_anon_may_map() - Can an anonymous folio be mapped by this VMA?
 * @folio: The folio.
 * @vma: The VMA.
 *
 * Its owner lies between the mm's and the VMA's origin, or a walk would not get
 * to @vma. Whether the page offset fits is another question.
 *
 * Context: The caller has a reference on the folio, and mmap_lock, the VMA lock
 * or R for @vma.
 * Return: false if @vma was never faulted or rmap walks of @folio do not get to
 * it, or if @folio is none which it could be asked of: a file or KSM folio.
 */
bool folio_anon_may_map(const struct folio *folio,
			const struct vm_area_struct *vma)
{
	const struct cow_context *owner = cow_context_folio_owner(folio);
	const struct cow_context *origin = READ_ONCE(vma->origin);
	const struct cow_context *ctx;

	if (!origin || !owner)
		return false;
	for (ctx = vma->vm_mm->cow_context->owner; ctx; ctx = ctx->parent) {
		if (ctx == owner)
			return true;
		if (ctx == origin)
			break;
	}
	return false;
}

/**
 * struct anon_walk - what rmap_walk() is to do
 * @walk: What to look for.
 * @folio: The folio, for the callbacks.
 * @rwc: The callbacks.
 * @more: They did not say that it is enough.
 * @item: For KSM: where it found the page.
 */
struct anon_walk {
	struct cow_context_walk walk;
	struct folio *folio;
	struct rmap_walk_control *rwc;
	bool more;
	struct cow_context *item;
};

static bool visit_vma(struct cow_context_walk *walk, struct vm_area_struct *vma)
{
	struct anon_walk *aw = container_of(walk, struct anon_walk, walk);
	struct rmap_walk_control *rwc = aw->rwc;
	const unsigned long address =
		vma_anon_address(vma, walk->first, walk->last - walk->first + 1);

	VM_WARN_ON_ONCE_VMA(address == -EFAULT, vma);

	if (rwc->invalid_vma && rwc->invalid_vma(vma, rwc->arg))
		return true;

	if (!rwc->rmap_one(aw->folio, vma, address, rwc->arg) ||
	    (rwc->done && rwc->done(aw->folio)))
		aw->more = false;
	return aw->more;
}

/**
 * rmap_walk_anon() - Visit all VMAs that may map an anonymous folio.
 * @folio: The folio.
 * @rwc: What to do there.
 * @locked: Ignored: there is no lock that a caller could hold for the walk.
 *
 * Without @rwc->need_mapped all is visited that may hold a migration entry for
 * the folio; the caller keeps its owner alive.
 *
 * Context: The caller holds the folio lock. May sleep.
 */
void rmap_walk_anon(struct folio *folio, struct rmap_walk_control *rwc,
		    bool locked)
{
	struct anon_rmap *pinned = NULL;
	struct anon_walk aw = {
		.walk = {
			.owner = cow_context_folio_owner(folio),
			.first = folio_pgoff(folio),
			.last = folio_pgoff(folio) + folio_nr_pages(folio) - 1,
			.hugetlb = folio_test_hugetlb(folio),
			.try_lock = rwc->try_lock,
			.visit = visit_vma,
		},
		.folio = folio,
		.rwc = rwc,
		.more = true,
	};

	VM_WARN_ON_FOLIO(!folio_test_locked(folio), folio);

	if (rwc->need_mapped) {
		pinned = folio_get_anon_rmap(folio);
		if (!pinned)
			return;
	}
	cow_context_walk(&aw.walk);
	if (aw.walk.contended)
		rwc->contended = true;
	anon_rmap_put(pinned);
}

#ifdef CONFIG_KSM
static bool walk_item(struct cow_context *ctx, void *arg)
{
	struct anon_walk *aw = arg;

	/* The context that the walk began with, or that one is dead. */
	if (ctx == aw->item)
		cow_context_walk_mm(ctx, &aw->walk);
	return false;
}

static bool walk_others(struct cow_context *ctx, void *arg)
{
	struct anon_walk *aw = arg;

	return ctx == aw->item || cow_context_walk_mm(ctx, &aw->walk);
}

/**
 * anon_rmap_walk_addr() - Visit the VMAs which may map a KSM folio.
 * @ara: Where the folio was merged and which mms to look into.
 * @folio: The KSM folio, for @rwc.
 * @rwc: The reverse mapping walk control object.
 *
 * Not only at the address where KSM found it: an mm that is not mergeable keeps
 * what it shares with one that is, and can move it.
 *
 * Context: The caller holds the folio lock. May sleep.
 * Return: false if the whole walk is over: @rwc says so, or a lock was contended
 * and @rwc->try_lock is set.
 */
bool anon_rmap_walk_addr(const struct anon_rmap_addr *ara, struct folio *folio,
			 struct rmap_walk_control *rwc)
{
	struct cow_context *ctx = ara->mm->cow_context;
	struct cow_context *owner = to_cow_context(ara->rmap);
	struct anon_walk aw = {
		.walk = {
			.owner = owner,
			.first = ara->index,
			.last = ara->index,
			.ksm = true,
			.visit = visit_vma,
		},
		.folio = folio,
		.rwc = rwc,
		.more = true,
		.item = ctx,
	};
	bool go_on = true;

	if (ara->others)
		go_on = cow_context_walk_tree(owner, rwc->try_lock, NULL,
					      walk_others, &aw);
	else if (smp_load_acquire(&ctx->mm))	/* else it would be a child's lock */
		go_on = cow_context_walk_tree(ctx, rwc->try_lock, NULL,
					      walk_item, &aw);
	trace_cow_context_walk(owner, ara->index, aw.walk.nr_vmas, !go_on);
	if (!go_on)
		rwc->contended = true;
	return go_on && aw.more;
}
#endif /* CONFIG_KSM */
