"""The deterministic simulator: the real pure core in a made-up world, with a virtual clock and planted faults.

plan.py          what a seed decides: sizes, loads, which faults happen and how often
events.py        what comes from outside: arrivals, crashes, hangs, stalls, jumps of the clock, drains
world.py         the event heap: HTTP side, links, engine, clients
fake_runner.py   the model whose next token is a hash of all that it reads through the block table; its oracle
checks.py        the invariants, after every step
coverage.py      what must have happened often enough
shrink.py        from a life that fails to a short one that fails alike
mutants/         faults in the core, each of which must be caught
"""
