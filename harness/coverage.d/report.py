# SPDX-License-Identifier: GPL-2.0
# The report of harness/coverage, whose head says what is a place and what an
# assertion.
# In:  the directory with KERNEL/GUEST/*.json and src/; the reasons.
# Out: the report.  Exit status 1 when a place has no reason.
import collections
import glob
import json
import os
import re
import sys

ASSERTION = re.compile(r'\s*(VM_WARN_ON\w*|WARN_ON\w*|WARN_ONCE|VM_BUG_ON\w*|BUG_ON|'
                       r'lockdep_assert\w*|rwsem_assert\w*|mmap_assert\w*|vma_assert\w*)\(')


class Line:
    """What all guests together say of one line."""

    def __init__(self):
        self.count = 0
        # (kernel, object) -> how often each branch was taken
        self.branches = {}

    def add(self, who, line):
        self.count += line['count']
        taken = [b['count'] for b in line['branches']]
        if taken:
            old = self.branches.setdefault(who, [0] * len(taken))
            assert len(old) == len(taken), 'one object, two kinds of branches'
            self.branches[who] = [a + b for a, b in zip(old, taken)]

    def taken(self):
        """How often each branch was taken."""
        same = collections.defaultdict(list)
        for taken in self.branches.values():
            same[len(taken)].append(taken)
        if not same:
            return []
        sums = [[sum(t) for t in zip(*group)] for group in same.values()]
        return min(sums, key=lambda s: (s.count(0) / len(s), -len(s)))


def read(directory):
    """-> file -> function -> number -> Line"""
    files = collections.defaultdict(lambda: collections.defaultdict(lambda: collections.defaultdict(Line)))
    for name in sorted(glob.glob(os.path.join(directory, '*', '*', '*.json'))):
        kernel, _, obj = name.split(os.sep)[-3:]
        with open(name) as f:
            for source in json.load(f)['files']:
                # mm/tests/../cow_context.h
                m = re.search(r'(?:^|/)(mm/cow_context[^/]*\.[ch])$', os.path.normpath(source['file']))
                if not m:
                    continue
                functions = [(f['end_line'] - f['start_line'], f['start_line'], f['end_line'], f['name'])
                             for f in source['functions']]
                for line in source['lines']:
                    nr = line['line_number']
                    inside = [f for f in functions if f[1] <= nr <= f[2]]
                    function = min(inside)[3] if inside else '-'
                    files[m[1]][function][nr].add((kernel, obj), line)
    return files


def assertions(text):
    """The numbers of the lines of assertions."""
    numbers, inside = set(), False
    for nr, line in enumerate(text, 1):
        inside = inside or bool(ASSERTION.match(line))
        if inside:
            numbers.add(nr)
            inside = not line.rstrip().endswith(';')
    return numbers


class Place:
    def __init__(self, file, function, nr, text, what):
        self.file, self.function, self.nr, self.last = file, function, nr, nr
        self.text, self.what, self.lines = ' '.join(text.split()), what, 0

    def key(self):
        return (self.file, self.function, self.text)

    def __str__(self):
        more = ', %d lines up to %d' % (self.lines, self.last) if self.lines > 1 or self.last != self.nr else ''
        return '%s:%d: %s: %s%s: %s' % (self.file, self.nr, self.function, self.what, more, self.text)


def find_places(file, function, lines, text, excused):
    """The places of a function; -> places, [lines, run, branches, taken]"""
    places, sums, open_place = [], [0, 0, 0, 0], None
    for nr in sorted(lines):
        line = lines[nr]
        if nr in excused and not line.count:
            continue
        sums[0] += 1
        if not line.count:
            if not open_place:
                open_place = Place(file, function, nr, text[nr - 1], 'not run')
                places.append(open_place)
            open_place.last = nr
            open_place.lines += 1
            continue
        sums[1] += 1
        open_place = None
        taken = line.taken() if nr not in excused else []
        sums[2] += len(taken)
        sums[3] += len(taken) - taken.count(0)
        if 0 in taken:
            never = ', '.join(str(i) for i, n in enumerate(taken, 1) if not n)
            open_place = Place(file, function, nr, text[nr - 1], 'branch %s of %d' % (never, len(taken)))
            places.append(open_place)
    # branches of lines that are not run
    for nr, line in lines.items():
        if not line.count and nr not in excused:
            sums[2] += len(line.taken())
    return places, sums


def read_reasons(name):
    reasons = {}
    if not os.path.exists(name):
        return reasons
    with open(name) as f:
        for nr, line in enumerate(f, 1):
            if not line.strip() or line.startswith('#'):
                continue
            parts = line.rstrip('\n').split('\t')
            if len(parts) != 4 or not all(p.strip() for p in parts):
                sys.exit('%s:%d: not FILE TAB FUNCTION TAB SOURCE LINE TAB REASON' % (name, nr))
            reasons[tuple(parts[:3])] = parts[3]
    return reasons


def row(name, sums):
    def share(n, of):
        return '%5d of %5d %6s' % (n, of, '%.1f%%' % (100 * n / of) if of else '')
    return '%-30s %s %s' % (name, share(sums[1], sums[0]), share(sums[3], sums[2]))


def main():
    directory, name = sys.argv[1:]
    reasons = read_reasons(name)
    places, total, texts = [], [0, 0, 0, 0], {}
    print('%-30s %-21s %-21s' % ('file', '        lines', '     branches'))
    for file, functions in sorted(read(directory).items()):
        with open(os.path.join(directory, 'src', file)) as f:
            text = texts[file] = f.read().split('\n')
        excused, of_file = assertions(text), [0, 0, 0, 0]
        for function, lines in functions.items():
            found, sums = find_places(file, function, lines, text, excused)
            places += found
            of_file = [a + b for a, b in zip(of_file, sums)]
        total = [a + b for a, b in zip(total, of_file)]
        print(row(file, of_file))
    if not total[0]:
        sys.exit('no counters')
    print(row('total', total))

    places.sort(key=lambda p: (p.file, p.nr))
    for title, some in (('not run, and why not:', [p for p in places if p.key() in reasons]),
                        ('not run, without a reason:', [p for p in places if p.key() not in reasons])):
        if some:
            print('\n' + title)
        for p in some:
            print('  %s' % p)
            if p.key() in reasons:
                print('\t%s' % reasons[p.key()])

    stale = [key for key in reasons if key not in {p.key() for p in places}]
    if stale:
        print('\nreasons that are not needed:')
    for file, function, line in stale:
        there = line in (' '.join(t.split()) for t in texts.get(file, []))
        print('  %s: %s: %s: %s' % (file, function, 'run now, or a part of another place' if there else 'no such line', line))

    missing = sum(p.key() not in reasons for p in places)
    print('\n%d uncovered with a reason, %d uncovered without a reason, %d reasons not needed' %
          (len(places) - missing, missing, len(stale)))
    return 1 if missing else 0


sys.exit(main())
