"""Timing of fastconv against PyTorch, used by ``fastconv bench`` and by the programs in benchmarks/.

``alternating`` times variants in turn in this process, and ``processes`` times each variant in a process of its own.
``ratios`` summarises the times, ``training_step`` is the step that is timed, and ``machine`` describes the machine.
"""
