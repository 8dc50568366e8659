# SPDX-License-Identifier: GPL-2.0
# A menu; each verb is one tool of harness/.  CONFIG: base, compare, debug, pure,
# pure-debug and what else harness/build names.  Not part of the series.
CONFIG ?= compare
export CMD

help:
	@echo 'make run        compose, build, boot, run the mm selftests, compare the walks'
	@echo 'make test       every check, then the selftests; ends with "N passed, N failed"'
	@echo 'make kernel     the kernel of CONFIG=$(CONFIG) in out/$(CONFIG)'
	@echo 'make boot       CMD="command" inside that kernel'
	@echo 'make shell      a shell inside that kernel'
	@echo 'make compose    overlay + patches/series -> out/linux, out/series'
	@echo 'make export     the way back: TREE=out/linux -> overlay + patches/'
	@echo 'make check      what make test checks before it boots anything'
	@echo 'make kunit      the KUnit suite under UML'
	@echo 'make coverage   what of cow_context make test does not run, and why (gcov)'
	@echo 'make model      the protocol in Promela: all interleavings, and what breaks it'
	@echo 'make fuzz       SECONDS=60 SEED=n in CONFIG: random operations, and a model'
	@echo 'make soak       SECONDS=1800: the racing half of it, short of memory, and that goes offline'
	@echo 'make kcsan      data races of our files, in pure mode'
	@echo 'make mutations  broken on purpose: is each reported? (ONLY=slug)'
	@echo 'make bench      anon_vma against contexts: instructions, memory, plots'
	@echo 'make objdiff    what the series does to mm/ objects while its options are off'
	@echo 'make archs      does it compile for i386, arm64, without SMP, without MMU?'
	@echo 'make prefixes   does it build and boot after each mail, options off and on?'
	@echo 'make count      lines of anon_vma, and of what replaces it'
	@echo 'make fetch      the base source (LINUX=tarball or tree to give one)'
	@echo 'make clean      remove out/ except the fetched source; all of it: rm -rf out'

run:
	@harness/run $(CONFIG)
test:
	@harness/check all
kernel: compose
	@harness/build $(CONFIG)
boot:
	@harness/boot $(CONFIG) "$$CMD"
shell:
	@harness/boot $(CONFIG)
compose:
	@harness/compose
export:
	@harness/export
check:
	@harness/check static
kunit: compose
	@harness/kunit
coverage: compose
	@harness/coverage
bench:
	@harness/bench
fuzz:
	@harness/fuzz $(CONFIG) $(or $(SECONDS),60) $(SEED)
soak:
	@SOAK=1 harness/fuzz $(CONFIG) $(or $(SECONDS),1800) $(SEED)
model:
	@harness/model/check
mutations: compose
	@harness/mutate $(ONLY)
kcsan: compose
	@harness/build kcsan
	@harness/kcsan $(SECONDS)
objdiff: compose
	@harness/build base
	@harness/objdiff
archs: compose
	@harness/archs
prefixes: compose
	@harness/prefixes
count: compose
	@harness/count
fetch:
	@harness/fetch
clean:
	@[ ! -d out/linux ] || harness/compose
	[ ! -d out ] || find out -mindepth 1 -maxdepth 1 ! -name src ! -name apt -exec rm -rf {} +

.PHONY: help run test kernel boot shell compose export check kunit coverage bench fuzz soak model kcsan mutations objdiff archs prefixes count fetch clean
