# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether every two accesses to one place are ordered, as far as they matter to one another.

The reduced search takes two executions for one if they differ in the order of steps that do not depend
on one another. That is sound only if what a task does from one step to the next touches nothing that
another task touches meanwhile, unless the steps depend.
"""

from __future__ import annotations

from collections import defaultdict

from mthp.explore.compiled.recording import Recorder
from mthp.explore.compiled.segment import Chain, Segment, Symbol
from mthp.explore.dependence import dependent
from mthp.explore.tasks import Execution
from mthp.machine.step import ALL_BITS


class Touch:
    __slots__ = ("added", "read", "written")

    def __init__(self):
        self.read = self.written = 0
        self.added = 0

    def key(self):
        return self.read, self.written, self.added


def conflict(a, b):
    ar, aw, aa = a
    br, bw, ba = b
    return ar & (bw | ba) or br & (aw | aa) or aw & (bw | ba) or bw & aa


def bits_read(chain: Chain) -> int:
    return chain[0][1] if chain and chain[0][0] == "and" else ALL_BITS


def bits_written(chain: Chain):
    """(written, added)"""
    if all(name == "add" for name, _ in chain):
        return 0, ALL_BITS
    if len(chain) == 1 and chain[0][0] == "or":
        return chain[0][1], 0
    if len(chain) == 1 and chain[0][0] == "and":
        return ~chain[0][1], 0
    return ALL_BITS, 0


class Touches(Segment):
    __slots__ = ("cells",)

    def __init__(self, number):
        super().__init__(number)
        self.cells = defaultdict(Touch)

    def note_read(self, cell, bits):
        t = self.cells[cell]
        t.read |= bits & ~t.written

    def ask(self, cell, question, answer):
        self.note_read(cell, bits_read(question[0]))

    def look_at(self, cell, chain=()):
        self.note_read(cell, bits_read(chain))


class Toucher(Recorder):
    def begin(self, who):
        self.segment = Touches(self.number)
        self._who = who

    def read(self, cell, value):
        if self.segment is not None:
            self.segment.note_read(cell, ALL_BITS)

    def wrote(self, cell, value, old):
        if self.segment is not None:
            self.segment.cells[cell].written = ALL_BITS

    def found_any(self, cell, value):
        if type(value) is int:
            return self.found(cell, value)
        self.read(cell, value)
        return value

    def found(self, cell, value):
        segment = self.segment
        if segment is None:
            return value
        if self.judging:
            self.read(cell, value)
            return value
        return segment.symbol(cell, value, ())

    def changes(self, cell, value):
        if type(value) is not Symbol or value.cell != cell or not value.is_open():
            return False
        w, a = bits_written(value.chain)
        t = value.segment.cells[cell]
        t.written |= w
        t.added |= a
        return True

    def keys_changed(self, cell, before, after):
        if self.segment is not None:
            self.segment.cells[cell].added = ALL_BITS


class Run(Execution):
    __slots__ = ("_op", "_r", "_who", "_word", "clocks", "numbers", "races", "steps_at", "touched")

    def __init__(self, recorder, setup, choose, most_steps=5000):
        self._r = recorder
        self._op = None
        self._word = None
        n = len(setup.tasks)
        self._who = -1
        self.clocks = [[0] * n for _ in range(n)]
        self.numbers = [0] * n
        self.steps_at = defaultdict(list)
        self.touched = defaultdict(lambda: defaultdict(dict))
        self.races = []
        super().__init__(setup, choose, most_steps)

    def _body(self, number, task, body):
        def recorded():
            self._begin(number)
            body()

        return super()._body(number, task, recorded)

    def _begin(self, who):
        self._end()
        self._who = who
        self._r.begin(who)

    def _end(self):
        if self._r.segment is None:
            return
        segment = self._r.end()
        who, op = self._who, self._op
        self._op = None
        if op is None:
            return
        clock = list(self.clocks[who])
        for t, o, c in self.steps_at[op.where]:
            if t != who and dependent(o, op):
                clock = [max(x, y) for x, y in zip(clock, c, strict=True)]
        self.numbers[who] += 1
        clock[who] = self.numbers[who]
        self.clocks[who] = clock
        self.steps_at[op.where].append((who, op, clock))
        mine = self.word_cell()
        for cell, touch in segment.cells.items():
            key = touch.key()
            if not any(key):
                continue
            for t, past in self.touched[cell].items():
                if t == who:
                    continue
                for k, (number, o, own) in past.items():
                    if number > clock[t] and conflict(k, key):
                        if cell == mine == own:
                            continue
                        self.races.append((cell, (t, o, k), (who, op, key)))
            self.touched[cell][who][key] = (self.numbers[who], op, mine)

    def word_cell(self):
        word, index = self._word
        raw = getattr(word, "raw", None)
        if raw is not None:
            return raw.first + index
        word = getattr(word, "word", word)
        name = self._r._names.get(id(word))
        return self._r._cells.get((name, "value"), -1)

    def _next(self):
        self._end()
        chosen = super()._next()
        if chosen >= 0:
            self._op = self.ops[chosen]
            self._word = self._words[chosen], self._op.where[1]
            self._begin(chosen)
        return chosen

    def _at_rest(self):
        self._end()
