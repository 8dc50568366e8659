// SPDX-License-Identifier: GPL-2.0

/*
 * What mm/vma.c does with the origins of VMAs when anon_vma is not compiled.
 *
 * OWN is the origin of what was first faulted in the mm itself; the others were
 * inherited from its parent and from the parent's parent.
 */
#ifdef CONFIG_COW_CONTEXT_ANON_RMAP

enum { NONE, OWN, PARENT, GRANDPARENT, NR_ORIGINS };

static struct cow_context family[NR_ORIGINS];

static struct cow_context *origin_of(int i)
{
	return i == NONE ? NULL : &family[i];
}

static void init_family(struct mm_struct *mm)
{
	int i;

	memset(family, 0, sizeof(family));
	for (i = 0; i < NR_ORIGINS; i++)
		family[i].owner = &family[i];
	mm->cow_context = &family[OWN];
	current->mm = mm;
}

static vma_flags_t origin_flags(void)
{
	return mk_vma_flags(VMA_READ_BIT, VMA_WRITE_BIT, VMA_MAYREAD_BIT,
			    VMA_MAYWRITE_BIT, VMA_ACCOUNT_BIT);
}

/* An anonymous VMA at its own address, as mmap() makes them. */
static struct vm_area_struct *map_origin(struct mm_struct *mm,
					 unsigned long start, unsigned long end,
					 int origin)
{
	struct vm_area_struct *vma;

	vma = alloc_and_link_vma(mm, start, end, start >> PAGE_SHIFT,
				 origin_flags());
	vma_set_anonymous(vma);
	vm_stat_account(mm, vma->vm_flags, vma_pages(vma));
	vma->origin = origin_of(origin);
	if (origin != NONE)
		cow_context_announce(vma, start, end);
	cow_context_reset_log(mm);
	return vma;
}

/* Was it said of all offsets of a VMA that entries can be there? */
static bool is_announced(struct vm_area_struct *vma)
{
	return !(cow_context_offsets(vma, vma->vm_start, vma->vm_end) &
		 ~vma->vm_mm->cow_context->announced);
}

/* Is there just this VMA at @start? */
static bool is_vma(struct mm_struct *mm, unsigned long start, unsigned long end,
		   int origin)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, mm, start);

	vma = vma_iter_load(&vmi);
	return vma && vma->vm_start == start && vma->vm_end == end &&
		vma->origin == origin_of(origin) &&
		(!vma_anon_is_fork_child(vma) || is_announced(vma));
}

/*
 * The rule: can the VMAs of two origins be one? Two that can both join a third
 * can join each other, so prev and next need not be compared.
 */
static bool may_join(int a, int b)
{
	if (a != NONE && b != NONE)
		return a == b;
	/* One is unfaulted: the other must not be inherited. */
	return a <= OWN && b <= OWN;
}

/* The origin of what became one VMA of two. */
static int joined(int a, int b)
{
	return a != NONE ? a : b;
}

/* Is this what was asked of the contexts? See include/cow_context.h. */
static bool check_log(struct mm_struct *mm, const char *log)
{
	const struct cow_context *ctx = mm->cow_context;

	__ASSERT_TRUE(!strcmp(ctx->log, log), " (%s != %s)", ctx->log, log);
	ASSERT_FALSE(ctx->locked);
	/* Without the lock nothing changes but that a copy is linked. */
	if (strcmp(log, "m") && strcmp(log, "mp"))
		ASSERT_EQ(ctx->geometry, cow_context_geometry(mm));
	return true;
}

#define ASSERT_LOG(_mm, _log)	ASSERT_TRUE(check_log(_mm, _log))

/* What a merge does to the contexts, by what its target was and is. */
static const char *merge_log(int was, int is)
{
	return was == is ? "LU" : "LPU";
}

/*
 * Change all, the head or the tail of the VMA in the middle:
 *
 * 0123456789
 * PPPMMMMNNN
 *    <-->
 *    <>
 *      <>
 */
static bool __test_origin_merge_existing(int p, int m, int n, int first, int last)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	const unsigned long start = first << PAGE_SHIFT;
	const unsigned long end = last << PAGE_SHIFT;
	struct vm_area_struct *prev, *middle, *next, *res;
	bool left, right;

	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, p);
	middle = map_origin(&mm, 0x3000, 0x7000, m);
	next = map_origin(&mm, 0x7000, 0xa000, n);

	vmg_set_range_anon_rmap(&vmg, start, end, first, origin_flags(),
				vma_anon_rmap(middle));
	vmg.prev = first == 3 ? prev : middle;
	vmg.middle = middle;

	left = first == 3 && may_join(p, m);
	right = last == 7 && may_join(m, n);

	res = merge_existing(&vmg);
	if (left && right) {
		ASSERT_EQ(res, prev);
		ASSERT_TRUE(is_vma(&mm, 0, 0xa000, joined(p, joined(m, n))));
		ASSERT_EQ(mm.map_count, 1);
		ASSERT_LOG(&mm, merge_log(p, joined(p, joined(m, n))));
	} else if (left) {
		ASSERT_EQ(res, prev);
		ASSERT_TRUE(is_vma(&mm, 0, end, joined(p, m)));
		if (last < 7)
			ASSERT_TRUE(is_vma(&mm, end, 0x7000, m));
		ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, n));
		ASSERT_EQ(mm.map_count, last < 7 ? 3 : 2);
		ASSERT_LOG(&mm, merge_log(p, joined(p, m)));
	} else if (right) {
		ASSERT_EQ(res, next);
		ASSERT_TRUE(is_vma(&mm, 0, 0x3000, p));
		if (first > 3)
			ASSERT_TRUE(is_vma(&mm, 0x3000, start, m));
		ASSERT_TRUE(is_vma(&mm, start, 0xa000, joined(n, m)));
		ASSERT_EQ(mm.map_count, first > 3 ? 3 : 2);
		ASSERT_LOG(&mm, merge_log(n, joined(n, m)));
	} else {
		ASSERT_EQ(res, NULL);
		ASSERT_EQ(vmg.state, VMA_MERGE_NOMERGE);
		ASSERT_TRUE(is_vma(&mm, 0, 0x3000, p));
		ASSERT_TRUE(is_vma(&mm, 0x3000, 0x7000, m));
		ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, n));
		ASSERT_LOG(&mm, "");
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_origin_merge_existing(void)
{
	int p, m, n;

	for (p = 0; p < NR_ORIGINS; p++)
		for (m = 0; m < NR_ORIGINS; m++)
			for (n = 0; n < NR_ORIGINS; n++) {
				ASSERT_TRUE(__test_origin_merge_existing(p, m, n, 3, 7));
				ASSERT_TRUE(__test_origin_merge_existing(p, m, n, 3, 5));
				ASSERT_TRUE(__test_origin_merge_existing(p, m, n, 5, 7));
			}
	return true;
}

/*
 * Map between two VMAs. What is mapped is unfaulted.
 *
 * 0123456789
 * PPP****NNN
 */
static bool __test_origin_merge_new(int p, int n)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	struct vm_area_struct *prev, *next, *res;

	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, p);
	next = map_origin(&mm, 0x7000, 0xa000, n);

	vmg_set_range(&vmg, 0x3000, 0x7000, 3, origin_flags());
	res = merge_new(&vmg);

	if (p <= OWN && n <= OWN) {
		ASSERT_EQ(res, prev);
		ASSERT_TRUE(is_vma(&mm, 0, 0xa000, joined(p, n)));
		ASSERT_EQ(mm.map_count, 1);
		ASSERT_LOG(&mm, merge_log(p, joined(p, n)));
	} else if (p <= OWN) {
		ASSERT_EQ(res, prev);
		ASSERT_TRUE(is_vma(&mm, 0, 0x7000, p));
		ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, n));
		ASSERT_LOG(&mm, "LU");
	} else if (n <= OWN) {
		ASSERT_EQ(res, next);
		ASSERT_TRUE(is_vma(&mm, 0, 0x3000, p));
		ASSERT_TRUE(is_vma(&mm, 0x3000, 0xa000, n));
		ASSERT_LOG(&mm, "LU");
	} else {
		ASSERT_EQ(res, NULL);
		ASSERT_EQ(mm.map_count, 2);
		ASSERT_LOG(&mm, "");
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_origin_merge_new(void)
{
	int p, n;

	for (p = 0; p < NR_ORIGINS; p++)
		for (n = 0; n < NR_ORIGINS; n++)
			ASSERT_TRUE(__test_origin_merge_new(p, n));
	return true;
}

/* A VMA at page 0x20 that was moved there from page 3, if it is faulted. */
static struct vm_area_struct *map_moved(struct mm_struct *mm, int origin)
{
	struct vm_area_struct *vma = map_origin(mm, 0x20000, 0x24000, origin);

	if (origin != NONE) {
		vma_set_pgoff(vma, 3);
		vma_set_anon_pgoff(vma, 3);
	}
	cow_context_reset_log(mm);
	return vma;
}

/*
 * Move a VMA between two others, to its own address.
 *
 * 0123456789    20
 * PPP****NNN    SSSS
 */
static bool __test_origin_copy(int p, int s, int n)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	bool left = may_join(p, s), right = may_join(s, n), need_locks;
	struct vm_area_struct *prev, *next, *src, *res;
	char log[8] = "m";

	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, p);
	next = map_origin(&mm, 0x7000, 0xa000, n);
	src = map_moved(&mm, s);

	res = copy_vma(&src, 0x3000, 0x4000, vma_start_pgoff(src),
		       vma_start_anon_pgoff(src), &need_locks, false);
	if (left && right) {
		ASSERT_EQ(res, prev);
		ASSERT_TRUE(is_vma(&mm, 0, 0xa000, joined(p, joined(s, n))));
		strcat(log, merge_log(p, joined(p, joined(s, n))));
	} else if (left) {
		ASSERT_EQ(res, prev);
		ASSERT_TRUE(is_vma(&mm, 0, 0x7000, joined(p, s)));
		ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, n));
		strcat(log, merge_log(p, joined(p, s)));
	} else if (right) {
		ASSERT_EQ(res, next);
		ASSERT_TRUE(is_vma(&mm, 0, 0x3000, p));
		ASSERT_TRUE(is_vma(&mm, 0x3000, 0xa000, joined(n, s)));
		strcat(log, merge_log(n, joined(n, s)));
	} else {
		ASSERT_TRUE(is_vma(&mm, 0, 0x3000, p));
		ASSERT_TRUE(is_vma(&mm, 0x3000, 0x7000, s));
		ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, n));
		/* No walk looked into the new VMA before. */
		strcat(log, s == NONE ? "" : "p");
	}
	ASSERT_LOG(&mm, log);
	ASSERT_TRUE(is_vma(&mm, 0x20000, 0x24000, s));

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_origin_copy(void)
{
	int p, s, n;

	for (p = 0; p < NR_ORIGINS; p++)
		for (s = 0; s < NR_ORIGINS; s++)
			for (n = 0; n < NR_ORIGINS; n++)
				ASSERT_TRUE(__test_origin_copy(p, s, n));
	return true;
}

/* Equal origins are not enough: the page offsets must fit. */
static bool test_origin_offsets(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	struct address_space mapping = {};
	struct file file = { .f_mapping = &mapping };
	struct vm_area_struct *prev, *middle;
	int fits;

	/* Anonymous: moved there from elsewhere. */
	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, OWN);
	middle = map_origin(&mm, 0x3000, 0x7000, OWN);
	vma_set_pgoff(middle, 0x20);
	vma_set_anon_pgoff(middle, 0x20);
	vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 0x20, origin_flags(),
				vma_anon_rmap(middle));
	vmg.anon_pgoff = 0x20;
	vmg.prev = prev;
	vmg.middle = middle;
	ASSERT_EQ(merge_existing(&vmg), NULL);
	cleanup_mm(&mm, &vmi);

	/* Of a private file mapping the offset in the file does not say it. */
	for (fits = 0; fits < 2; fits++) {
		const pgoff_t anon_pgoff = fits ? 3 : 0x20;

		init_family(&mm);
		prev = map_origin(&mm, 0, 0x3000, OWN);
		middle = map_origin(&mm, 0x3000, 0x7000, OWN);
		prev->vm_file = &file;
		middle->vm_file = &file;
		vma_set_anon_pgoff(middle, anon_pgoff);
		cow_context_reset_log(&mm);
		vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 3, origin_flags(),
					vma_anon_rmap(middle));
		vmg.anon_pgoff = anon_pgoff;
		vmg.file = &file;
		vmg.prev = prev;
		vmg.middle = middle;
		ASSERT_EQ(merge_existing(&vmg), fits ? prev : NULL);
		ASSERT_LOG(&mm, fits ? "LU" : "");
		cleanup_mm(&mm, &vmi);
	}
	return true;
}

/*
 * A context forked too deep shares the owner of its parent. What it inherited
 * from there is as good as its own.
 */
static bool test_origin_shared_owner(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	struct vm_area_struct *prev, *next;

	init_family(&mm);
	family[OWN].owner = &family[PARENT];
	prev = map_origin(&mm, 0, 0x3000, PARENT);
	vmg_set_range(&vmg, 0x3000, 0x7000, 3, origin_flags());
	ASSERT_EQ(merge_new(&vmg), prev);
	ASSERT_TRUE(is_vma(&mm, 0, 0x7000, PARENT));

	/* And beside what is faulted from now on. */
	next = map_origin(&mm, 0x7000, 0xa000, NONE);
	ASSERT_EQ(vma_anon_prepare(next), 0);
	ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, PARENT));

	cleanup_mm(&mm, &vmi);
	return true;
}

/* Who decides by it keeps an unfaulted VMA so: by its VMA lock. */
static bool test_origin_freeze(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	struct vm_area_struct *prev, *middle;

	/* Refused: @middle was inherited. */
	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, NONE);
	middle = map_origin(&mm, 0x3000, 0x7000, PARENT);
	vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 3, origin_flags(),
				vma_anon_rmap(middle));
	vmg.prev = prev;
	vmg.middle = middle;
	ASSERT_EQ(merge_existing(&vmg), NULL);
	ASSERT_TRUE(vma_write_started(prev));
	/* It cannot become unfaulted. */
	ASSERT_FALSE(vma_write_started(middle));
	cleanup_mm(&mm, &vmi);

	/* And with the one inherited that is not changed. */
	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, PARENT);
	middle = map_origin(&mm, 0x3000, 0x7000, NONE);
	vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 3, origin_flags(), NULL);
	vmg.prev = prev;
	vmg.middle = middle;
	ASSERT_EQ(merge_existing(&vmg), NULL);
	ASSERT_FALSE(vma_write_started(prev));
	ASSERT_TRUE(vma_write_started(middle));
	cleanup_mm(&mm, &vmi);
	return true;
}

/* First faults that end while mm/vma.c waits for the VMA lock. */
static bool test_origin_fault_race(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	struct vm_area_struct *prev, *middle, *next;
	int below;

	/* The VMA that is merged away. */
	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, NONE);
	middle = map_origin(&mm, 0x3000, 0x7000, NONE);
	vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 3, origin_flags(), NULL);
	vmg.prev = prev;
	vmg.middle = middle;
	family[OWN].faulting = middle;
	ASSERT_EQ(merge_existing(&vmg), prev);
	ASSERT_TRUE(is_vma(&mm, 0, 0x7000, OWN));
	ASSERT_LOG(&mm, "LPU");
	cleanup_mm(&mm, &vmi);

	/* The next VMA, when a gap before it is filled. */
	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, NONE);
	next = map_origin(&mm, 0x7000, 0xa000, NONE);
	vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 3, origin_flags(), NULL);
	family[OWN].faulting = next;
	ASSERT_EQ(merge_new(&vmg), prev);
	ASSERT_TRUE(is_vma(&mm, 0, 0xa000, OWN));
	ASSERT_LOG(&mm, "LPU");
	cleanup_mm(&mm, &vmi);

	/* The target: there is nothing to take over any more. */
	init_family(&mm);
	prev = map_origin(&mm, 0, 0x3000, NONE);
	middle = map_origin(&mm, 0x3000, 0x7000, OWN);
	vmg_set_range_anon_rmap(&vmg, 0x3000, 0x7000, 3, origin_flags(),
				vma_anon_rmap(middle));
	vmg.prev = prev;
	vmg.middle = middle;
	family[OWN].faulting = prev;
	ASSERT_EQ(merge_existing(&vmg), prev);
	ASSERT_TRUE(is_vma(&mm, 0, 0x7000, OWN));
	ASSERT_LOG(&mm, "LU");
	cleanup_mm(&mm, &vmi);

	/* A VMA that is split after it was copied. */
	for (below = 0; below < 2; below++) {
		init_family(&mm);
		middle = map_origin(&mm, 0x3000, 0x7000, NONE);
		family[OWN].faulting = middle;
		vma_iter_set(&vmi, 0x3000);
		ASSERT_EQ(vma_iter_load(&vmi), middle);
		ASSERT_EQ(split_vma(&vmi, middle, 0x5000, below), 0);
		ASSERT_TRUE(is_vma(&mm, 0x3000, 0x5000, OWN));
		ASSERT_TRUE(is_vma(&mm, 0x5000, 0x7000, OWN));
		ASSERT_LOG(&mm, "LPU");
		cleanup_mm(&mm, &vmi);
	}
	return true;
}

static bool test_origin_split(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vm_area_struct *vma;
	int origin, below;

	for (origin = 0; origin < NR_ORIGINS; origin++)
		for (below = 0; below < 2; below++) {
			init_family(&mm);
			vma = map_origin(&mm, 0x3000, 0x7000, origin);
			vma_iter_set(&vmi, 0x3000);
			ASSERT_EQ(vma_iter_load(&vmi), vma);
			ASSERT_EQ(split_vma(&vmi, vma, 0x5000, below), 0);
			ASSERT_TRUE(is_vma(&mm, 0x3000, 0x5000, origin));
			ASSERT_TRUE(is_vma(&mm, 0x5000, 0x7000, origin));
			ASSERT_LOG(&mm, merge_log(NONE, origin));
			cleanup_mm(&mm, &vmi);
		}
	return true;
}

static bool test_origin_unmap(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	int origin;

	for (origin = 0; origin < NR_ORIGINS; origin++) {
		const bool faulted = origin != NONE;

		/* munmap(): hidden after it left mm_mt, before it is freed. */
		init_family(&mm);
		map_origin(&mm, 0x300000, 0x303000, origin);
		vma_iter_set(&vmi, 0x301000);
		ASSERT_EQ(do_vmi_munmap(&vmi, &mm, 0x301000, 0x1000, NULL, false), 0);
		ASSERT_TRUE(is_vma(&mm, 0x300000, 0x301000, origin));
		ASSERT_TRUE(is_vma(&mm, 0x302000, 0x303000, origin));
		ASSERT_EQ(mm.map_count, 2);
		ASSERT_LOG(&mm, faulted ? "LPULPULbUhf" : "LULULbUhf");
		cleanup_mm(&mm, &vmi);

		/* MAP_FIXED: hidden while still in mm_mt. What is new is unfaulted. */
		init_family(&mm);
		map_origin(&mm, 0x300000, 0x303000, origin);
		ASSERT_EQ(__mmap_region(NULL, 0x301000, 0x1000, origin_flags(),
					0x301, NULL), 0x301000);
		if (origin <= OWN) {
			ASSERT_TRUE(is_vma(&mm, 0x300000, 0x303000, origin));
		} else {
			ASSERT_TRUE(is_vma(&mm, 0x300000, 0x301000, origin));
			ASSERT_TRUE(is_vma(&mm, 0x301000, 0x302000, NONE));
			ASSERT_TRUE(is_vma(&mm, 0x302000, 0x303000, origin));
		}
		ASSERT_LOG(&mm, faulted ? "LPULPUhLUf" : "LULUhLUf");
		cleanup_mm(&mm, &vmi);
	}
	return true;
}

static bool test_origin_stack(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vm_area_struct *vma;

	init_family(&mm);
	vma = map_origin(&mm, 0x300000, 0x303000, NONE);
	vma_set_flags(vma, VMA_GROWSDOWN_BIT);

	family[OWN].fail_alloc = true;
	ASSERT_EQ(expand_downwards(vma, 0x2ff000), -ENOMEM);
	ASSERT_TRUE(is_vma(&mm, 0x300000, 0x303000, NONE));
	ASSERT_LOG(&mm, "");

	/* Refused, for it has no offset for one page more. */
	family[OWN].fail_alloc = false;
	vma_set_pgoff(vma, 0);
	ASSERT_EQ(expand_downwards(vma, 0x2ff000), -ENOMEM);
	ASSERT_TRUE(is_vma(&mm, 0x300000, 0x303000, OWN));
	ASSERT_LOG(&mm, "gLUu");
	vma_set_pgoff(vma, 0x300);

	cow_context_reset_log(&mm);
	ASSERT_EQ(expand_downwards(vma, 0x2ff000), 0);
	ASSERT_TRUE(is_vma(&mm, 0x2ff000, 0x303000, OWN));
	ASSERT_LOG(&mm, "gLU");

	cleanup_mm(&mm, &vmi);
	return true;
}

/*
 * mremap() that extends a VMA up to the next one:
 *
 * 0123456789
 * VVV....NNN
 */
static bool __test_origin_extend(int v, int n)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vm_area_struct *vma;

	init_family(&mm);
	vma = map_origin(&mm, 0, 0x3000, v);
	map_origin(&mm, 0x7000, 0xa000, n);
	vma_iter_set(&vmi, 0);
	ASSERT_EQ(vma_iter_load(&vmi), vma);
	ASSERT_EQ(vma_merge_extend(&vmi, vma, 0x4000), vma);
	/* What is inherited may take in what is unfaulted here. */
	if (v == n || n == NONE || (v == NONE && n == OWN)) {
		ASSERT_TRUE(is_vma(&mm, 0, 0xa000, joined(v, n)));
	} else {
		ASSERT_TRUE(is_vma(&mm, 0, 0x7000, v));
		ASSERT_TRUE(is_vma(&mm, 0x7000, 0xa000, n));
	}
	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_origin_extend(void)
{
	int v, n;

	for (v = 0; v < NR_ORIGINS; v++)
		for (n = 0; n < NR_ORIGINS; n++)
			ASSERT_TRUE(__test_origin_extend(v, n));
	return true;
}

/* What fails for want of memory leaves all as it was. */
static bool test_origin_alloc_fail(void)
{
	struct mm_struct mm = {};
	VMA_ITERATOR(vmi, &mm, 0);
	struct vm_area_struct *vma;
	bool need_locks;
	int p;

	/* mremap(): a record, then a node of mm_mt. It could merge if p is OWN. */
	for (p = NONE; p <= PARENT; p++) {
		init_family(&mm);
		map_origin(&mm, 0, 0x3000, p);
		vma = map_moved(&mm, OWN);

		family[OWN].fail_alloc = true;
		ASSERT_EQ(copy_vma(&vma, 0x3000, 0x4000, 3, 3, &need_locks,
				   false), NULL);
		ASSERT_LOG(&mm, "");

		family[OWN].fail_alloc = false;
		fail_prealloc = true;
		ASSERT_EQ(copy_vma(&vma, 0x3000, 0x4000, 3, 3, &need_locks,
				   false), NULL);
		ASSERT_LOG(&mm, "mx");

		ASSERT_EQ(mm.map_count, 2);
		ASSERT_TRUE(is_vma(&mm, 0, 0x3000, p));
		ASSERT_TRUE(is_vma(&mm, 0x20000, 0x24000, OWN));
		cleanup_mm(&mm, &vmi);
	}

	/* mremap() that extends. */
	init_family(&mm);
	vma = map_origin(&mm, 0, 0x3000, OWN);
	family[OWN].fail_alloc = true;
	vma_iter_set(&vmi, 0);
	ASSERT_EQ(vma_merge_extend(&vmi, vma, 0x2000), NULL);
	ASSERT_LOG(&mm, "");
	ASSERT_TRUE(is_vma(&mm, 0, 0x3000, OWN));

	family[OWN].fail_alloc = false;
	fail_prealloc = true;
	vma_iter_set(&vmi, 0);
	ASSERT_EQ(vma_merge_extend(&vmi, vma, 0x2000), NULL);
	ASSERT_LOG(&mm, "gu");
	ASSERT_TRUE(is_vma(&mm, 0, 0x3000, OWN));

	fail_prealloc = false;
	cow_context_reset_log(&mm);
	vma_iter_set(&vmi, 0);
	ASSERT_EQ(vma_merge_extend(&vmi, vma, 0x2000), vma);
	ASSERT_LOG(&mm, "gLU");
	ASSERT_TRUE(is_vma(&mm, 0, 0x5000, OWN));
	cleanup_mm(&mm, &vmi);

	/* exec() that moves the stack. */
	init_family(&mm);
	vma = map_origin(&mm, 0x300000, 0x303000, OWN);
	family[OWN].fail_alloc = true;
	ASSERT_EQ(relocate_vma_down(vma, 0x1000), -ENOMEM);
	ASSERT_LOG(&mm, "");
	ASSERT_TRUE(is_vma(&mm, 0x300000, 0x303000, OWN));
	cleanup_mm(&mm, &vmi);

	/* Split, and munmap() of all that was mapped. */
	init_family(&mm);
	vma = map_origin(&mm, 0x3000, 0x7000, OWN);
	fail_prealloc = true;
	vma_iter_set(&vmi, 0x3000);
	ASSERT_EQ(vma_iter_load(&vmi), vma);
	ASSERT_EQ(split_vma(&vmi, vma, 0x5000, 0), -ENOMEM);
	ASSERT_LOG(&mm, "");
	ASSERT_TRUE(is_vma(&mm, 0x3000, 0x7000, OWN));

	vma_iter_set(&vmi, 0x3000);
	ASSERT_EQ(do_vmi_munmap(&vmi, &mm, 0x3000, 0x4000, NULL, false), -ENOMEM);
	ASSERT_LOG(&mm, "");
	ASSERT_TRUE(is_vma(&mm, 0x3000, 0x7000, OWN));
	ASSERT_EQ(mm.map_count, 1);
	cleanup_mm(&mm, &vmi);
	return true;
}

static void run_origin_tests(int *num_tests, int *num_fail)
{
	TEST(origin_merge_existing);
	TEST(origin_merge_new);
	TEST(origin_copy);
	TEST(origin_offsets);
	TEST(origin_shared_owner);
	TEST(origin_freeze);
	TEST(origin_fault_race);
	TEST(origin_split);
	TEST(origin_unmap);
	TEST(origin_stack);
	TEST(origin_extend);
	TEST(origin_alloc_fail);
}

#else

static void run_origin_tests(int *num_tests, int *num_fail)
{
}

#endif
