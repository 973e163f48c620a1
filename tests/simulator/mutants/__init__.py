"""Faults in the core, planted one at a time: the simulator must catch each."""

from quire.simulator.mutants.blocks import BLOCKS
from quire.simulator.mutants.cache import CACHE
from quire.simulator.mutants.mutant import Mutant
from quire.simulator.mutants.scheduling import SCHEDULING
from quire.simulator.mutants.serving import SERVING

MUTANTS = {mutant.name: mutant for mutant in (*BLOCKS, *CACHE, *SCHEDULING, *SERVING)}
"""By name."""

__all__ = ["MUTANTS", "Mutant"]
