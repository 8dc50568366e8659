/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_COW_CONTEXT_H
#define _LINUX_COW_CONTEXT_H

/*
 * CoW contexts: what the rest of the kernel calls.
 *
 * Each hook is empty without CONFIG_COW_CONTEXT. For the idea, the invariants
 * and the locking see mm/cow_context.h and Documentation/mm/cow_context.rst.
 */

#include <linux/mm_types.h>

struct anon_vma;
struct page_ext_operations;
struct rmap_walk_control;
struct unmap_desc;

#ifdef CONFIG_COW_CONTEXT

/* Life cycle: mm/cow_context.c */
void cow_context_cache_init(void);
int cow_context_mm_alloc(struct mm_struct *mm);
void cow_context_mm_free(struct mm_struct *mm);
int cow_context_fork(struct mm_struct *mm, struct mm_struct *oldmm);
void cow_context_detach(struct mm_struct *mm);

/* Writers' side of the lock: mm/cow_context.c */
void cow_context_lock(struct mm_struct *mm);
void cow_context_unlock(struct mm_struct *mm);
void cow_context_lock_all(struct mm_struct *mm);

/* VMAs: mm/cow_context.c */
void cow_context_prepare_vma(struct vm_area_struct *vma);
void cow_context_publish_vma(struct vm_area_struct *vma,
			     struct vm_area_struct *from);
void cow_context_wipe_vma(struct vm_area_struct *vma);
void cow_context_reset_vma(struct vm_area_struct *vma);
void cow_context_begin_unmap(struct mm_struct *mm, struct maple_tree *detached,
			     unsigned long nr);
void cow_context_hide(struct unmap_desc *unmap);

/* Remaps: mm/cow_context.c on top of mm/cow_context_remap.c */
int cow_context_move_vma(struct vm_area_struct *vma, pgoff_t first,
			 unsigned long nr_pages, unsigned long addr);
void cow_context_unmove_vma(struct vm_area_struct *vma, pgoff_t first,
			    unsigned long nr_pages, unsigned long addr);
int cow_context_grow_vma(struct vm_area_struct *vma, unsigned long start,
			 unsigned long end);
void cow_context_ungrow_vma(struct vm_area_struct *vma, unsigned long start,
			    unsigned long end);
void cow_context_forget_vma(struct mm_struct *mm,
			    const struct vm_area_struct *vma);

/* Ownership beside anon_vma, and the comparison: mm/cow_context_compare.c */
#ifndef CONFIG_COW_CONTEXT_ANON_RMAP
extern struct page_ext_operations cow_context_page_ext_ops;
void cow_context_set_owner(struct folio *folio, struct vm_area_struct *vma,
			   bool exclusive);
void cow_context_copy_owner(struct folio *dst, const struct folio *src);
void cow_context_compare(struct anon_vma *anon_vma, struct folio *folio,
			 struct rmap_walk_control *rwc);
void cow_context_compare_ksm(struct anon_vma *anon_vma, struct folio *folio,
			     struct mm_struct *mm, pgoff_t index,
			     unsigned long addr, struct rmap_walk_control *rwc);
#else
/* folio->mapping names the owner. */
static inline void cow_context_set_owner(struct folio *folio,
					 struct vm_area_struct *vma,
					 bool exclusive) {}
static inline void cow_context_copy_owner(struct folio *dst,
					  const struct folio *src) {}
#endif

#else /* !CONFIG_COW_CONTEXT */

static inline void cow_context_cache_init(void) {}
static inline int cow_context_mm_alloc(struct mm_struct *mm)
{
	return 0;
}

static inline void cow_context_mm_free(struct mm_struct *mm) {}
static inline int cow_context_fork(struct mm_struct *mm,
				   struct mm_struct *oldmm)
{
	return 0;
}

static inline void cow_context_detach(struct mm_struct *mm) {}
static inline void cow_context_lock(struct mm_struct *mm) {}
static inline void cow_context_unlock(struct mm_struct *mm) {}
static inline void cow_context_lock_all(struct mm_struct *mm) {}
static inline void cow_context_prepare_vma(struct vm_area_struct *vma) {}
static inline void cow_context_publish_vma(struct vm_area_struct *vma,
					   struct vm_area_struct *from) {}
static inline void cow_context_wipe_vma(struct vm_area_struct *vma) {}
static inline void cow_context_reset_vma(struct vm_area_struct *vma) {}
static inline void cow_context_begin_unmap(struct mm_struct *mm,
					   struct maple_tree *detached,
					   unsigned long nr) {}
static inline void cow_context_hide(struct unmap_desc *unmap) {}
static inline int cow_context_move_vma(struct vm_area_struct *vma,
				       pgoff_t first, unsigned long nr_pages,
				       unsigned long addr)
{
	return 0;
}

static inline void cow_context_unmove_vma(struct vm_area_struct *vma,
					  pgoff_t first,
					  unsigned long nr_pages,
					  unsigned long addr) {}
static inline int cow_context_grow_vma(struct vm_area_struct *vma,
				       unsigned long start, unsigned long end)
{
	return 0;
}

static inline void cow_context_ungrow_vma(struct vm_area_struct *vma,
					  unsigned long start,
					  unsigned long end) {}
static inline void cow_context_forget_vma(struct mm_struct *mm,
					  const struct vm_area_struct *vma) {}
static inline void cow_context_set_owner(struct folio *folio,
					 struct vm_area_struct *vma,
					 bool exclusive) {}
static inline void cow_context_copy_owner(struct folio *dst,
					  const struct folio *src) {}
static inline void cow_context_compare(struct anon_vma *anon_vma,
				       struct folio *folio,
				       struct rmap_walk_control *rwc) {}
static inline void cow_context_compare_ksm(struct anon_vma *anon_vma,
					   struct folio *folio,
					   struct mm_struct *mm, pgoff_t index,
					   unsigned long addr,
					   struct rmap_walk_control *rwc) {}

#endif /* CONFIG_COW_CONTEXT */

#if defined(CONFIG_COW_CONTEXT) && defined(CONFIG_DEBUG_VM)
/* mm/cow_context_validate.c */
void cow_context_validate_vma(const struct vm_area_struct *vma);
void cow_context_assert_findable(const struct folio *folio,
				 const struct page *page, unsigned long nr_pages,
				 const struct vm_area_struct *vma,
				 unsigned long addr);
void cow_context_assert_pte(struct vm_area_struct *vma, unsigned long addr,
			    pte_t pte);
void cow_context_assert_locked(const struct mm_struct *mm);
void cow_context_assert_moved(struct vm_area_struct *vma, unsigned long addr,
			      pte_t pte);
void cow_context_assert_pmd(struct vm_area_struct *vma, unsigned long addr,
			    pmd_t pmd);
#else
static inline void cow_context_validate_vma(const struct vm_area_struct *vma) {}
static inline void cow_context_assert_findable(const struct folio *folio,
					       const struct page *page,
					       unsigned long nr_pages,
					       const struct vm_area_struct *vma,
					       unsigned long addr) {}
static inline void cow_context_assert_pte(struct vm_area_struct *vma,
					  unsigned long addr, pte_t pte) {}
static inline void cow_context_assert_locked(const struct mm_struct *mm) {}
static inline void cow_context_assert_moved(struct vm_area_struct *vma,
					    unsigned long addr, pte_t pte) {}
static inline void cow_context_assert_pmd(struct vm_area_struct *vma,
					  unsigned long addr, pmd_t pmd) {}
#endif

#endif /* _LINUX_COW_CONTEXT_H */
