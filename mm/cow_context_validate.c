// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: assertions.
 *
 * Theory
 * ======
 *
 * A mapping that no walk would find is not noticed until a walk is needed, if at
 * all. But whether it would be found can be told where the page table entry is
 * at hand, with its VMA and its address, under the page table lock: the VMA has
 * an origin, its offset fits, a moved VMA has a record (I6), and the folio's
 * owner lies between the mm's context and the origin (I2). So with
 * CONFIG_DEBUG_VM that is asserted of each entry for anonymous memory when it is
 * installed, copied, moved or zapped: local, without a walk, in the comparison
 * and in pure mode.
 *
 * A VMA is looked at when it was split, merged or has changed its range. With
 * CONFIG_DEBUG_VM_RB and CONFIG_DEBUG_VM_MAPLE_TREE all of an mm are.
 * Reading /sys/kernel/debug/cow_context/validate does the same for all page
 * tables of all processes at once.
 *
 * Lock order: mmap_lock, then page table locks.
 */

#include <linux/hugetlb.h>
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/pagewalk.h>
#include <linux/pid_namespace.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>

#include "cow_context.h"
#include "internal.h"

/**
 * cow_context_check_chain - does an owner enclose a context?
 * @ctx: The context of an mm.
 * @owner: The owner. Compared only, so that a stale one does no harm.
 * @stop: Climb no further than to this one, or NULL.
 *
 * Context: Something keeps @ctx: R, a reference, or a PTL in its mm.
 * Return: NULL if @owner is found and all up to it are linked, else what is
 * wrong, for people.
 */
const char *cow_context_check_chain(const struct cow_context *ctx,
				    const struct cow_context *owner,
				    const struct cow_context *stop)
{
	for (; ctx; ctx = ctx->parent) {
		if (!cow_context_is_linked(ctx))
			return "a context is not linked";
		if (ctx == owner)
			return NULL;
		if (ctx == stop)
			return "the origin does not enclose the owner";
	}
	return "the owner does not enclose the mm";
}

static const char *check_findable(const struct folio *folio,
				  const struct page *page, unsigned long nr_pages,
				  const struct vm_area_struct *vma,
				  unsigned long addr)
{
	const pgoff_t index = page_pgoff(folio, page);
	const pgoff_t last = index + nr_pages - 1;
	const long delta = cow_context_vma_delta(vma);
	struct cow_context *ctx = vma->vm_mm->cow_context;
	const struct cow_context *owner = cow_context_folio_owner(folio);
	struct cow_filter filter;

	if (!READ_ONCE(vma->origin))
		return "the VMA has no origin";
	if ((addr && index != linear_anon_page_index(vma, addr)) ||
	    index < vma_start_anon_pgoff(vma) ||
	    last - vma_start_anon_pgoff(vma) >= vma_pages(vma))
		return "the index does not fit";
	if (delta && !cow_context_has_remaps(ctx, index, last, delta))
		return "the remap is not recorded";
	/* A device's, in compare mode. */
	if (IS_ERR_OR_NULL(owner))
		return NULL;
	/* In between are bits that the same VMA has set. */
	cow_filter_folio(&filter, index, index);
	if (!cow_filter_meets(ctx, owner, &filter))
		return "the filter has not got the index";
	cow_filter_folio(&filter, last, last);
	if (!cow_filter_meets(ctx, owner, &filter))
		return "the filter has not got the last index";
	return cow_context_check_chain(ctx, owner, vma->origin);
}

/* The page that a PTE maps, or that a migration entry stands for. */
static struct page *mapped_page(struct vm_area_struct *vma, unsigned long addr,
				pte_t pte)
{
	softleaf_t entry;

	if (pte_present(pte))
		return vm_normal_page(vma, addr, pte);
	entry = softleaf_from_pte(pte);
	return softleaf_is_migration(entry) ? softleaf_to_page(entry) : NULL;
}

#ifdef CONFIG_DEBUG_VM
/**
 * cow_context_assert_findable - would a walk find these page table entries?
 * @folio: The folio that is mapped, or that a migration entry stands for.
 * @page: Its first page in question.
 * @nr_pages: How many of its pages, one after the other in one VMA.
 * @vma: The VMA.
 * @addr: The user address of @page, or 0 if the caller does not know.
 *
 * The temporary stack of exec is not asserted: its VMA gives new addresses
 * while the entries are still at the old ones, and migration skips it.
 *
 * Context: Page table lock. Does not sleep. Empty without CONFIG_DEBUG_VM.
 */
void cow_context_assert_findable(const struct folio *folio,
				 const struct page *page, unsigned long nr_pages,
				 const struct vm_area_struct *vma,
				 unsigned long addr)
{
	const char *why;

	if (!folio_test_anon(folio) || folio_test_ksm(folio) ||
	    vma_is_temporary_stack(vma))
		return;

	why = check_findable(folio, page, nr_pages, vma, addr);
	if (likely(!why))
		return;
	cow_context_count(COW_STAT_UNFINDABLE, 1);
	WARN_ONCE(1, "cow_context: unfindable: %s: folio pfn %lx index %lx owner %p, vma %p %lx-%lx anon pgoff %lx origin %p, address %lx\n",
		  why, folio_pfn(folio), folio->index, cow_context_folio_owner(folio), vma,
		  vma->vm_start, vma->vm_end, vma_start_anon_pgoff(vma),
		  vma->origin, addr);
}

/**
 * cow_context_assert_pte - cow_context_assert_findable() for a PTE
 * @vma: The VMA.
 * @addr: The user address.
 * @pte: What is or will be there: anything; present pages and migration entries
 *	of anonymous folios are looked at.
 *
 * Context: Page table lock. Does not sleep. Empty without CONFIG_DEBUG_VM.
 */
void cow_context_assert_pte(struct vm_area_struct *vma, unsigned long addr,
			    pte_t pte)
{
	struct page *page = mapped_page(vma, addr, pte);

	if (page)
		cow_context_assert_findable(page_folio(page), page, 1, vma, addr);
}

/**
 * cow_context_assert_locked - walks must be kept out of an mm
 * @mm: The mm, in which entries are in no page table now.
 *
 * Context: Any. Does not sleep. Empty without CONFIG_DEBUG_VM.
 */
void cow_context_assert_locked(const struct mm_struct *mm)
{
	rwsem_assert_held_write(&mm->cow_context->rwsem);
}

/**
 * cow_context_assert_moved - cow_context_assert_pte() for a PTE on the move
 * @vma: The VMA it is moved to.
 * @addr: The user address there.
 * @pte: What will be there.
 *
 * Also, that walks are kept out: it is in no page table now.
 *
 * Context: Page table locks of both places. Does not sleep. Empty without
 * CONFIG_DEBUG_VM.
 */
void cow_context_assert_moved(struct vm_area_struct *vma, unsigned long addr,
			      pte_t pte)
{
	cow_context_assert_locked(vma->vm_mm);
	cow_context_assert_pte(vma, addr, pte);
}

/**
 * cow_context_assert_pmd - cow_context_assert_findable() for a PMD
 * @vma: The VMA.
 * @addr: The user address.
 * @pmd: A migration entry, or anything else, which is ignored.
 *
 * Context: Page table lock. Does not sleep. Empty without CONFIG_DEBUG_VM.
 */
void cow_context_assert_pmd(struct vm_area_struct *vma, unsigned long addr,
			    pmd_t pmd)
{
	if (pmd_is_migration_entry(pmd)) {
		struct page *page = softleaf_to_page(softleaf_from_pmd(pmd));

		cow_context_assert_findable(page_folio(page), page, HPAGE_PMD_NR,
					    vma, addr);
	}
}

#endif /* CONFIG_DEBUG_VM */

/* The whole of it */

/**
 * cow_context_check_vma - can walks get to a VMA?
 * @vma: The VMA, in mm_mt.
 *
 * Context: mmap_lock held.
 * Return: NULL if its origin and its records are as they must be, else what is
 * wrong, for people.
 */
const char *cow_context_check_vma(const struct vm_area_struct *vma)
{
	struct cow_context *ctx = vma->vm_mm->cow_context;
	const struct cow_context *origin = READ_ONCE(vma->origin);
	const long delta = cow_context_vma_delta(vma);
	const pgoff_t first = vma_start_anon_pgoff(vma);

	if (!origin || vma_is_temporary_stack(vma))
		return NULL;
	if (vma->vm_flags & VM_SHARED)
		return "a shared VMA has an origin";
	if (origin->owner != origin)
		return "the origin is no owner";
	if (cow_context_check_chain(ctx, origin, NULL))
		return "the origin does not enclose the mm";
	if (delta && !cow_context_has_remaps(ctx, first,
					     first + vma_pages(vma) - 1, delta))
		return "the VMA was moved and has no record";
	return NULL;
}

#ifdef CONFIG_DEBUG_VM
/**
 * cow_context_validate_vma - complain if walks cannot get to a VMA
 * @vma: The VMA, in mm_mt.
 *
 * Context: mmap_lock held. Does not sleep. Empty without CONFIG_DEBUG_VM.
 */
void cow_context_validate_vma(const struct vm_area_struct *vma)
{
	const char *why = cow_context_check_vma(vma);

	if (why) {
		pr_emerg_ratelimited("cow_context: %s\n", why);
		VM_WARN_ON_ONCE_VMA(1, vma);
	}
}
#endif

/**
 * struct validate - one reading of cow_context/validate
 * @m: Where to write what is wrong.
 * @comm: The process.
 * @nr_vmas: VMAs looked at.
 * @nr_entries: Entries for anonymous folios looked at.
 * @nr_wrong: Lines written.
 */
struct validate {
	struct seq_file *m;
	char comm[TASK_COMM_LEN];
	unsigned long nr_vmas;
	unsigned long nr_entries;
	unsigned long nr_wrong;
};

static void complain(struct validate *v, const struct vm_area_struct *vma,
		     unsigned long addr, const char *why)
{
	seq_printf(v->m, "%s: %lx in %lx-%lx: %s\n", v->comm, addr,
		   vma->vm_start, vma->vm_end, why);
	v->nr_wrong++;
}

static void validate_entry(struct mm_walk *walk, unsigned long addr,
			   const struct page *page, unsigned long nr_pages)
{
	const struct folio *folio = page ? page_folio(page) : NULL;
	struct validate *v = walk->private;
	const char *why;

	if (!folio || !folio_test_anon(folio) || folio_test_ksm(folio))
		return;
	v->nr_entries++;
	why = check_findable(folio, page, nr_pages, walk->vma, addr);
	if (why)
		complain(v, walk->vma, addr, why);
}

static int validate_pte(pte_t *ptep, unsigned long addr, unsigned long next,
			struct mm_walk *walk)
{
	validate_entry(walk, addr,
		       mapped_page(walk->vma, addr, ptep_get(ptep)), 1);
	return 0;
}

static int validate_pmd(pmd_t *pmdp, unsigned long addr, unsigned long next,
			struct mm_walk *walk)
{
	spinlock_t *ptl = pmd_trans_huge_lock(pmdp, walk->vma);
	struct page *page = NULL;

	if (!ptl)
		return 0;
	if (pmd_present(*pmdp))
		page = vm_normal_page_pmd(walk->vma, addr & HPAGE_PMD_MASK,
					  *pmdp);
	else if (pmd_is_migration_entry(*pmdp))
		page = softleaf_to_page(softleaf_from_pmd(*pmdp));
	if (page)
		validate_entry(walk, addr & HPAGE_PMD_MASK,
			       folio_page(page_folio(page), 0), HPAGE_PMD_NR);
	spin_unlock(ptl);
	walk->action = ACTION_CONTINUE;
	return 0;
}

#ifdef CONFIG_HUGETLB_PAGE
static int validate_hugetlb(pte_t *ptep, unsigned long hmask,
			    unsigned long addr, unsigned long next,
			    struct mm_walk *walk)
{
	struct hstate *h = hstate_vma(walk->vma);
	spinlock_t *ptl = huge_pte_lock(h, walk->mm, ptep);
	const pte_t pte = huge_ptep_get(walk->mm, addr, ptep);
	struct page *page = NULL;

	if (pte_present(pte)) {
		page = pte_page(pte);
	} else if (!huge_pte_none(pte)) {
		const softleaf_t entry = softleaf_from_pte(pte);

		if (softleaf_is_migration(entry))
			page = softleaf_to_page(entry);
	}
	if (page)
		validate_entry(walk, addr & hmask,
			       folio_page(page_folio(page), 0),
			       pages_per_huge_page(h));
	spin_unlock(ptl);
	return 0;
}
#else
#define validate_hugetlb NULL
#endif

static const struct mm_walk_ops validate_ops = {
	.pmd_entry	= validate_pmd,
	.pte_entry	= validate_pte,
	.hugetlb_entry	= validate_hugetlb,
	.walk_lock	= PGWALK_RDLOCK,
};

static void validate_tables(struct validate *v, struct mm_struct *mm)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, mm, 0);

	mmap_read_lock(mm);
	for_each_vma(vmi, vma) {
		const char *why = cow_context_check_vma(vma);

		v->nr_vmas++;
		if (why)
			complain(v, vma, vma->vm_start, why);
		if (!(vma->vm_flags & (VM_PFNMAP | VM_IO)))
			walk_page_vma(vma, &validate_ops, v);
		cond_resched();
	}
	mmap_read_unlock(mm);
}

/**
 * cow_context_validate - look at all page tables of all processes
 * @m: Where a line for each entry that no walk would find goes, and the sum.
 *
 * Context: May sleep. Not a snapshot: processes go on.
 */
void cow_context_validate(struct seq_file *m)
{
	struct validate v = { .m = m };
	unsigned long nr_mms = 0;
	int nr = 0;

	for (;;) {
		struct task_struct *task;
		struct mm_struct *mm = NULL;
		struct pid *pid;

		rcu_read_lock();
		pid = find_ge_pid(nr + 1, &init_pid_ns);
		if (!pid) {
			rcu_read_unlock();
			break;
		}
		nr = pid_nr(pid);
		task = pid_task(pid, PIDTYPE_TGID);
		/* The leader may have exited before its threads. */
		task = task ? find_lock_task_mm(task) : NULL;
		if (task) {
			/* A kernel thread only borrows one. */
			if (!(task->flags & PF_KTHREAD)) {
				mm = task->mm;
				mmget(mm);
			}
			strscpy(v.comm, task->comm);
			task_unlock(task);
		}
		rcu_read_unlock();
		if (mm) {
			nr_mms++;
			validate_tables(&v, mm);
			mmput(mm);
		}
	}
	seq_printf(m, "mms: %lu\nvmas: %lu\nentries: %lu\nwrong: %lu\n",
		   nr_mms, v.nr_vmas, v.nr_entries, v.nr_wrong);
}
