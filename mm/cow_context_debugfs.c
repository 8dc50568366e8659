// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: what a person reads.
 *
 * /sys/kernel/debug/cow_context/stats	counters, one "name: value" a line
 * /sys/kernel/debug/cow_context/tree	the families of all processes, one context a
 *					line, indented by its depth; without those
 *					whose first mm is that of no process
 * /sys/kernel/debug/cow_context/validate	looks at all page tables: a line for
 *					each entry that no walk would find
 *
 * The dump of the trees waits for no context: it walks the lists under RCU and
 * only tries the lock of each. So it is not a snapshot.
 */

#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/oom.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>

#include "cow_context.h"

static const char * const stat_names[NR_COW_STATS] = {
	[COW_STAT_CONTEXTS]		= "contexts",
	[COW_STAT_DEAD]			= "dead",
	[COW_STAT_FORKS]		= "forks",
	[COW_STAT_REMAPS_ADDED]		= "remaps_added",
	[COW_STAT_REMAPS_REMOVED]	= "remaps_removed",
	[COW_STAT_REMAPS_KEPT]		= "remaps_kept",
	[COW_STAT_TREE_WALKS]		= "tree_walks",
	[COW_STAT_TREE_CONTEXTS]	= "tree_contexts",
	[COW_STAT_WALKS]		= "walks",
	[COW_STAT_WALKS_KSM]		= "walks_ksm",
	[COW_STAT_CONTENDED]		= "contended",
	[COW_STAT_UNJUDGED]		= "unjudged",
	[COW_STAT_DEVICE]		= "device",
	[COW_STAT_KSM_FOREIGN]		= "ksm_foreign",
	[COW_STAT_FOUND]		= "found",
	[COW_STAT_MISSED]		= "missed",
	[COW_STAT_BENIGN]		= "benign",
	[COW_STAT_EXTRA]		= "extra",
	[COW_STAT_EXTRA_OVERLAP]	= "extra_overlap",
	[COW_STAT_EXTRA_KSM]		= "extra_ksm",
	[COW_STAT_UNFINDABLE]		= "unfindable",
};

static int stats_show(struct seq_file *m, void *unused)
{
	const unsigned int nr = IS_ENABLED(CONFIG_COW_CONTEXT_ANON_RMAP) ?
		NR_COW_STATS_PURE : NR_COW_STATS;
	unsigned int i;

	for (i = 0; i < nr; i++)
		seq_printf(m, "%s: %ld\n", stat_names[i],
			   cow_context_stat_sum(i));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static struct cow_context *family_root(struct cow_context *ctx)
{
	while (ctx->parent)
		ctx = ctx->parent;
	return ctx;
}

static struct cow_marker *next_marker(struct cow_marker *pos)
{
	return list_entry_rcu(pos->list.next, struct cow_marker, list);
}

/* The first context of the family that has an mm, and so the right to print. */
static struct cow_context *family_first(struct cow_context *root)
{
	struct cow_marker *pos;

	for (pos = &root->enter; pos != &root->leave; pos = next_marker(pos))
		if (pos->ctx && READ_ONCE(pos->ctx->mm))
			return pos->ctx;
	return NULL;
}

static void show_context(struct seq_file *m, struct cow_context *ctx)
{
	seq_printf(m, "%*s%p depth %u%s refs %u", 2 * ctx->depth, "", ctx,
		   ctx->depth, ctx->owner == ctx ? "" : " shares",
		   refcount_read(&ctx->refs));

	if (!READ_ONCE(ctx->mm)) {
		seq_puts(m, " dead\n");
		return;
	}
	/* The mm_struct and the records are there while R is held and @mm is set. */
	if (down_read_trylock(&ctx->rwsem)) {
		if (ctx->mm)
			seq_printf(m, " mm %p vmas %d remaps %lu unmapping %lu",
				   ctx->mm, ctx->mm->map_count,
				   cow_context_nr_remaps(ctx),
				   ctx->unmapping.nr);
		up_read(&ctx->rwsem);
	} else {
		seq_puts(m, " busy");
	}
	seq_putc(m, '\n');
}

static void show_family(struct seq_file *m, struct task_struct *task,
			struct cow_context *root)
{
	struct cow_marker *pos;

	seq_printf(m, "family of %s (%d)\n", task->comm, task_tgid_nr(task));
	for (pos = &root->enter; pos != &root->leave; pos = next_marker(pos))
		if (pos->ctx)
			show_context(m, pos->ctx);
}

static int tree_show(struct seq_file *m, void *unused)
{
	struct task_struct *leader;

	rcu_read_lock();
	for_each_process(leader) {
		struct cow_context *ctx, *root = NULL;
		struct task_struct *task = find_lock_task_mm(leader);

		if (!task)
			continue;
		/* Its mm keeps the context and all above it, RCU after that. */
		ctx = task->mm->cow_context;
		if (!(task->flags & PF_KTHREAD))
			root = family_root(ctx);
		task_unlock(task);

		if (root && family_first(root) == ctx)
			show_family(m, leader, root);
	}
	rcu_read_unlock();
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tree);

static int validate_show(struct seq_file *m, void *unused)
{
	cow_context_validate(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(validate);

static int __init cow_context_debugfs_init(void)
{
	struct dentry *dir = debugfs_create_dir("cow_context", NULL);

	debugfs_create_file("stats", 0400, dir, NULL, &stats_fops);
	debugfs_create_file("tree", 0400, dir, NULL, &tree_fops);
	debugfs_create_file("validate", 0400, dir, NULL, &validate_fops);
	return 0;
}
late_initcall(cow_context_debugfs_init);
