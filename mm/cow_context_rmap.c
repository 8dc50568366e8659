// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: the walk.
 *
 * Theory
 * ======
 *
 * Given a folio's owner and its anonymous page offsets, find every VMA that may
 * map it. Two loops:
 *
 * - over the contexts between the owner's enter and leave markers, parent
 *   before child (cow_context_walk_tree()), but for those that cannot have
 *   inherited these offsets (mm/cow_context_filter.c);
 * - in one mm, over the places where the offsets can be: at their own
 *   addresses, and where the context's records say. Each place is looked up in
 *   mm_mt and among the VMAs of the munmap in flight
 *   (cow_context_walk_mm()).
 *
 * A VMA that is found is visited if it belongs to this mm (a half-forked
 * child's mm_mt still holds its parent's), if it has an origin that encloses
 * the owner (a child that unmapped the parent's range and mapped its own there
 * cannot map the parent's folio), if its own offset gives the place that led
 * to it, and if it is a hugetlb VMA exactly for a hugetlb folio. A folio can
 * span several records; a VMA is visited from the one that holds the first
 * offset that both cover, so never twice.
 *
 * For most mms all that comes down to one VMA at one address: is_at_one_place().
 *
 * Why nothing is missed
 * =====================
 *
 * R is held over the whole visit of an mm. Under R no VMA leaves mm_mt or
 * changes its range (I4), a VMA with PTEs is in mm_mt or in ctx->unmapping (I5)
 * and has its record (I6), and no PTE is moved. So each PTE of that mm is at
 * one place, and the walk looks there. For the tree see mm/cow_context.c.
 *
 * The maple tree mm_mt is read under RCU. A VMA found there under R stays,
 * so RCU is dropped before the VMA is visited: the visit may sleep.
 */

#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/rculist.h>

#include "cow_context.h"

#include <trace/events/cow_context.h>

/*
 * How often a lock is tried, before the walk sleeps or gives up: some microseconds,
 * as long as it takes to sleep.
 */
#define LOCK_TRIES	128

/* How many markers a walk passes before it lets others have the CPU. */
#define PASSED_MAX	512

/*
 * So that the address behind it does not wrap. What lies beyond user space is not
 * in mm_mt. TASK_SIZE would be the walker's, which can be a 32-bit task.
 */
#define LAST_PAGE	((ULONG_MAX >> PAGE_SHIFT) - 1)

/* The first VMA of the munmap in flight that ends behind @addr, if below @end. */
static struct vm_area_struct *find_unmapping(const struct cow_context *ctx,
					     unsigned long addr,
					     unsigned long end)
{
	const struct cow_unmapping *unmapping = &ctx->unmapping;
	unsigned long low = 0, high = unmapping->nr;
	struct vm_area_struct *vma, *found = NULL;

	while (low < high) {
		const unsigned long mid = low + (high - low) / 2;
		MA_STATE(mas, unmapping->tree, mid, mid);

		vma = mas_walk(&mas);
		if (vma->vm_end > addr) {
			found = vma;
			high = mid;
		} else {
			low = mid + 1;
		}
	}
	return found && found->vm_start < end ? found : NULL;
}

static struct vm_area_struct *find_attached(const struct cow_context *ctx,
					    unsigned long addr,
					    unsigned long end)
{
	struct maple_tree *mt = &ctx->mm->mm_mt;
	MA_STATE(mas, mt, addr, addr);

	VM_WARN_ON_ONCE(!mt_in_rcu(mt));
	return mas_find(&mas, end - 1);
}

/* Can @vma map what is looked for, @delta pages from its offset? */
static bool is_candidate(const struct cow_context_walk *walk,
			 const struct vm_area_struct *vma, long delta)
{
	const struct cow_context *origin;

	/* A half-forked child's mm_mt holds its parent's VMAs. */
	if (vma->vm_mm != walk->ctx->mm)
		return false;
	/*
	 * Unfaulted, or hidden. mremap(MREMAP_DONTUNMAP) changes the offset of one
	 * that has none: pairs with the release in cow_context_prepare_vma().
	 */
	origin = smp_load_acquire(&vma->origin);
	if (!origin)
		return false;

	return (walk->ksm || origin->depth <= walk->owner->depth) &&
		cow_context_vma_delta(vma) == delta &&
		is_vm_hugetlb_page(vma) == walk->hugetlb;
}

static bool visit(struct cow_context_walk *walk, struct vm_area_struct *vma)
{
	walk->nr_vmas++;
	return !walk->visit || walk->visit(walk, vma);
}

/*
 * Visit the VMAs of @walk->ctx that have the offsets where @remap says, which has
 * one of them: those in mm_mt, or (@unmapping) of the munmap in flight.
 */
static bool walk_place(struct cow_context_walk *walk,
		       const struct cow_remap *remap, bool unmapping)
{
	const struct cow_context *ctx = walk->ctx;
	const pgoff_t first = max(walk->first, remap->first) + remap->delta;
	const pgoff_t last = min(walk->last, remap->last) + remap->delta;
	const unsigned long end = (min(last, LAST_PAGE) + 1) << PAGE_SHIFT;
	unsigned long addr;

	/* An offset can lie beyond the address space, if its VMA was moved. */
	if (first > LAST_PAGE)
		return true;
	for (addr = first << PAGE_SHIFT; addr < end; ) {
		struct vm_area_struct *vma;
		bool wanted = false;
		pgoff_t pgoff;

		/* There can be more places than VMAs. */
		cond_resched();
		rcu_read_lock();
		vma = unmapping ? find_unmapping(ctx, addr, end) :
				  find_attached(ctx, addr, end);
		if (vma && is_candidate(walk, vma, remap->delta)) {
			/* Once: from the record of the first offset both have. */
			pgoff = max(walk->first, vma_start_anon_pgoff(vma));
			wanted = pgoff >= remap->first && pgoff <= remap->last;
		}
		/* mm_mt may give a VMA of the parent: read it here. */
		addr = vma ? vma->vm_end : end;
		rcu_read_unlock();
		if (wanted && !visit(walk, vma))
			return false;
	}
	return true;
}

static bool walk_remap(const struct cow_remap *remap, void *arg)
{
	struct cow_context_walk *walk = arg;

	return walk_place(walk, remap, false) &&
		(!walk->ctx->unmapping.nr || walk_place(walk, remap, true));
}

/*
 * Is there but one address of this mm to look at? So it is unless the offsets
 * are several, were moved, or a munmap is in flight.
 */
static bool is_at_one_place(const struct cow_context_walk *walk)
{
	const struct cow_context *ctx = walk->ctx;
	const struct cow_remap *remap = &ctx->remap;

	return !ctx->unmapping.nr && mtree_empty(&ctx->remaps) &&
		walk->first == walk->last &&
		(!remap->delta || walk->first < remap->first ||
		 walk->first > remap->last);
}

/*
 * What walk_remap() would find there, and nothing after it. Walks come for one page
 * after the other of a VMA, so the last one found is asked first: no VMA of this mm
 * leaves mm_mt or changes its range without cow_context_lock(), which forgets it.
 * VMAs of the parent, in a half-forked child's mm_mt, do; they are no candidates.
 */
static struct vm_area_struct *find_at_one_place(const struct cow_context_walk *walk)
{
	struct cow_context *ctx = walk->ctx;
	const unsigned long addr = walk->first << PAGE_SHIFT;
	struct maple_tree *mt = &ctx->mm->mm_mt;
	struct vm_area_struct *vma;

	VM_WARN_ON_ONCE(!mt_in_rcu(mt));
	if (walk->first > LAST_PAGE)
		return NULL;
	/* Pairs with the release below: it may be in mm_mt since just now. */
	vma = smp_load_acquire(&ctx->unmapping.last_found);
	if (vma && addr >= vma->vm_start && addr < vma->vm_end) {
		VM_WARN_ON_ONCE(mtree_load(mt, addr) != vma);
		return is_candidate(walk, vma, 0) ? vma : NULL;
	}

	rcu_read_lock();
	vma = mtree_load(mt, addr);
	if (vma && !is_candidate(walk, vma, 0))
		vma = NULL;
	rcu_read_unlock();
	if (vma)
		/* Another walker has the pointer from here, not from mm_mt. */
		smp_store_release(&ctx->unmapping.last_found, vma);
	return vma;
}

/* Most W sections change a few VMAs: that is sooner over than a sleep. */
static bool lock_soon(struct cow_context *ctx)
{
	unsigned int tries = LOCK_TRIES;

	while (!down_read_trylock(&ctx->rwsem)) {
		if (!--tries)
			return false;
		cpu_relax();
	}
	return true;
}

/**
 * cow_context_walk_tree - visit the contexts below one, parent before child
 * @top: Where to start; it is visited first. The caller keeps it from being
 *	unlinked, by a reference or by something in an mm below it.
 * @try_lock: End the walk at the first lock that stays contended.
 * @filter: Pass by contexts that have another owner than @top, and inherited
 *	none of this. NULL: visit all.
 * @fn: Called under R for each context that still has an mm. May sleep. false
 *	ends the walk.
 * @arg: For @fn.
 *
 * Each context that is linked from before the walk to its end is visited once.
 * One that is linked meanwhile is visited if its parent had not been.
 *
 * Context: May sleep, with @try_lock not for a lock. No ctx->rwsem held.
 * Return: false if it ended because of a contended lock.
 */
bool cow_context_walk_tree(struct cow_context *top, bool try_lock,
			   const struct cow_filter *filter,
			   cow_context_tree_fn fn, void *arg)
{
	struct cow_marker *pos, *next;
	unsigned int passed = 0;
	bool go_on = true;

	cow_context_count(COW_STAT_TREE_WALKS, 1);
	rcu_read_lock();
	for (pos = &top->enter; pos != &top->leave; pos = next) {
		struct cow_context *ctx = pos->ctx, *pinned = NULL;

		if (!ctx)
			goto next;
		if (filter && !cow_filter_meets(ctx, top, filter))
			goto next;
		/* Pairs with the release in __cow_context_detach(). */
		if (!smp_load_acquire(&ctx->mm))
			goto next;

		if (lock_soon(ctx)) {
			/* Detached meanwhile: only RCU keeps it. */
			if (!ctx->mm) {
				up_read(&ctx->rwsem);
				goto next;
			}
			rcu_read_unlock();
		} else {
			if (try_lock) {
				rcu_read_unlock();
				return false;
			}
			/* No reference left: no PTE left either. */
			if (!refcount_inc_not_zero(&ctx->refs)) {
				/* What it forked is behind the next pointer. */
				smp_rmb();
				goto next;
			}
			rcu_read_unlock();
			pinned = ctx;
			down_read(&ctx->rwsem);
		}

		if (ctx->mm) {
			cow_context_count(COW_STAT_TREE_CONTEXTS, 1);
			go_on = fn(ctx, arg);
		}

		/*
		 * RCU before the lock is dropped, and the next pointer before
		 * the pin is: until then the context is linked.
		 */
		rcu_read_lock();
		up_read(&ctx->rwsem);
		/*
		 * An entry can be gone without W, and be seen gone without the
		 * PTL. The copy that fork made before is behind the next
		 * pointer: not to be read before. Pairs with the PTL, which
		 * fork dropped and who took the entry away had afterwards.
		 */
		smp_rmb();
next:
		/* A wide family, in which hardly anyone has the folio. */
		if (++passed > PASSED_MAX && ctx && !pinned &&
		    refcount_inc_not_zero(&ctx->refs)) {
			passed = 0;
			pinned = ctx;
			rcu_read_unlock();
			cond_resched();
			rcu_read_lock();
		}
		next = list_entry_rcu(pos->list.next, struct cow_marker, list);
		if (pinned)
			cow_context_put(pinned);
		if (!go_on)
			break;
	}
	rcu_read_unlock();
	return true;
}

/**
 * cow_context_walk_mm - visit the VMAs of one mm that may map a folio
 * @ctx: The context of the mm.
 * @arg: The walk, a struct cow_context_walk.
 *
 * Context: R of @ctx, which has an mm. May sleep.
 * Return: false if the walk is over.
 */
bool cow_context_walk_mm(struct cow_context *ctx, void *arg)
{
	static const struct cow_remap in_place = { .last = ULONG_MAX };
	struct cow_context_walk *walk = arg;
	const unsigned long nr = walk->nr_vmas;
	struct vm_area_struct *vma;
	bool go_on;

	walk->ctx = ctx;
	if (is_at_one_place(walk)) {
		vma = find_at_one_place(walk);
		if (!vma)
			return true;
		cond_resched();
		return visit(walk, vma);
	}

	go_on = walk_remap(&in_place, walk) &&
		cow_context_visit_remaps(ctx, walk->first, walk->last,
					 walk_remap, walk);
	if (walk->nr_vmas > nr + 1)
		walk->nr_overlap += walk->nr_vmas - nr - 1;
	return go_on;
}

/**
 * cow_context_walk - visit every VMA that may map a folio
 * @walk: What to look for, and what to do.
 *
 * Context: The caller holds the folio lock, so that owner and offset do not
 * change, and keeps the owner alive: by a reference, or because the folio is
 * mapped. May sleep, with try_lock not for a lock.
 */
void cow_context_walk(struct cow_context_walk *walk)
{
	struct cow_context *owner = walk->owner;
	struct cow_filter filter;
	/*
	 * KSM asks for no origin. Below a leaf there is nobody to pass by; who is
	 * forked meanwhile is visited.
	 */
	const bool unfiltered = walk->ksm ||
		READ_ONCE(owner->enter.list.next) == &owner->leave.list;

	if (!unfiltered)
		cow_filter_folio(&filter, walk->first, walk->last);
	if (!cow_context_walk_tree(owner, walk->try_lock,
				   unfiltered ? NULL : &filter,
				   cow_context_walk_mm, walk))
		walk->contended = true;
	trace_cow_context_walk(owner, walk->first, walk->nr_vmas,
			       walk->contended);
}
