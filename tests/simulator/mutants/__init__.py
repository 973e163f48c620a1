"""Faults in the core, planted one at a time: the simulator must catch each."""
