"""`quire simulate`: lives of the core in a made-up world, with planted faults, each step checked."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from quire.clients.terminal import USAGE, CommandFailed, Parser, StatusLine, bold, nearest
from quire.simulator.lives import STEPS, Life, hunt, live, sweep
from quire.simulator.mutants import MUTANTS
from quire.simulator.plan import draw
from quire.simulator.recorded import (
    MAX_STEPS,
    Kill,
    Progress,
    read_progress,
    write_kills,
    write_progress,
)
from quire.simulator.report import event_line, kills_table, life_story, summary
from quire.simulator.shrink import shrink

_SAVE_EVERY = 20


def main(command: str, words: list[str]) -> int:
    """Run the lives; the exit code is 1 when an invariant was violated, or a mutant survived."""
    options = _parser(command).parse(words)
    if options.mutant is not None and options.mutant not in MUTANTS:
        hint = nearest(options.mutant, [*MUTANTS]) or f"; there are {', '.join(MUTANTS)}"
        raise CommandFailed(f"unknown mutant {options.mutant}{hint}", USAGE)
    if options.mutants:
        return _hunt_all(options)
    if options.sweep:
        return _sweep(options)
    if options.mutant is not None:
        with MUTANTS[options.mutant].planted():
            return _run(options)
    return _run(options)


def _parser(command: str) -> Parser:
    parser = Parser(
        command,
        __doc__,
        epilog="A seed always lives the same life. Exit codes: 0, 1 an invariant was violated, 2 usage.",
    )
    parser.add_argument("--seeds", type=_count, default=20, metavar="N", help="lives [20]")
    parser.add_argument("--steps", type=_count, default=STEPS, metavar="N", help=f"engine steps in a life [{STEPS}]")
    parser.add_argument("--total", type=_count, metavar="N", help="lives until so many steps are made in all")
    parser.add_argument("--seed", type=int, metavar="S", help="this life only, told from its end")
    parser.add_argument("--until", type=_count, metavar="N", help="steps of that life before it heals [--steps]")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first seed [0]")
    parser.add_argument("--depth", type=int, choices=(1, 2, 4), help="steps in flight, instead of the seed's own")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep the progress here, and go on from it")
    parser.add_argument("--mutant", metavar="NAME", help="with this fault in the core: it should be caught")
    parser.add_argument("--mutants", action="store_true", help="hunt each mutant, and say what caught it")
    parser.add_argument("--sweep", action="store_true", help="in each life let the n-th allocation fail, for every n")
    parser.add_argument("--record", type=Path, metavar="FILE", help="with --mutants: write the seeds that kill here")
    return parser


def _count(text: str) -> int:
    """A number of steps: 500, 100k, 20M."""
    scale = {"k": 1_000, "K": 1_000, "m": 1_000_000, "M": 1_000_000}.get(text[-1:], 1)
    number = int(text[:-1] if scale > 1 else text) * scale
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {text}")
    return number


def _run(options: argparse.Namespace) -> int:
    if options.seed is not None:
        life = live(draw(options.seed, options.depth), options.until or options.steps)
        print(life_story(life, options.until or options.steps))
        return _tell_shrunk(life, options.until or options.steps)
    progress = Progress(next_seed=options.first)
    if options.resume and options.resume.exists():
        progress = read_progress(options.resume)
    line, begin = StatusLine(sys.stderr), time.process_time()
    left = options.seeds
    while progress.num_steps < options.total if options.total else left > 0:
        life = live(draw(progress.next_seed, options.depth), options.steps)
        now = time.process_time()
        _count_in(progress, life, now - begin)
        begin, left = now, left - 1
        line.show(summary(progress).splitlines()[0])
        if life.violation is not None:
            line.clear()
            print(life_story(life, options.steps))
            _tell_shrunk(life, options.steps)
        if options.resume and (progress.num_lives % _SAVE_EVERY == 0 or life.violation is not None):
            write_progress(progress, options.resume)
    line.clear()
    if options.resume:
        write_progress(progress, options.resume)
    print(summary(progress))
    return 1 if progress.violations else 0


def _count_in(progress: Progress, life: Life, seconds: float) -> None:
    progress.next_seed = life.plan.seed + 1
    progress.num_lives += 1
    progress.num_steps += life.num_steps
    progress.cpu_seconds += seconds
    progress.coverage = dict(Counter(progress.coverage) + life.coverage)
    if life.violation is not None:
        progress.violations[life.plan.seed] = str(life.violation)


def _tell_shrunk(life: Life, num_steps: int) -> int:
    if life.violation is None:
        return 0
    small = shrink(life, num_steps)
    print(bold(f"\nThe same violation needs {len(small.events)} of {len(life.events)} events:"))
    for event in small.events:
        print(f"  {event_line(event)}")
    print(f"and of the faults: {', '.join(small.plan.rates) or 'none'}")
    return 1


def _sweep(options: argparse.Namespace) -> int:
    """G18."""
    lives = steps = broken = 0
    for seed in range(options.first, options.first + options.seeds):
        swept = sweep(seed, options.steps)
        lives, steps, broken = lives + swept.num_lives, steps + swept.num_steps, broken + len(swept.violations)
        for text in swept.violations:
            print(f"seed {seed}, {text}")
    print(f"{options.seeds} traces, {lives} lives, {steps:,} steps, {broken} violations")
    return 1 if broken else 0


def _hunt_all(options: argparse.Namespace) -> int:
    kills: dict[str, Kill] = {}
    line = StatusLine(sys.stderr)
    for number, mutant in enumerate(MUTANTS.values(), 1):
        line.show(f"{number} of {len(MUTANTS)}: {mutant.name}")
        life = hunt(mutant, range(options.first, options.first + options.seeds), min(options.steps, MAX_STEPS))
        if life is not None and life.violation is not None:
            kills[mutant.name] = Kill(life.plan.seed, life.num_steps, life.violation.invariant)
    line.clear()
    print(kills_table(kills))
    survivors = [name for name in MUTANTS if name not in kills]
    print(f"\n{len(kills)} of {len(MUTANTS)} mutants caught" + (f"; not: {', '.join(survivors)}" if survivors else ""))
    if options.record:
        write_kills(kills, options.record)
    return 1 if survivors else 0
