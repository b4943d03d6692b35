"""The commands of ``jaxpref``, one module each.

A module's docstring is its help. ``SUMMARY`` is its line in the list of commands, ``CONFIG`` says where its config
comes from (``file``: from ``--config``; ``run``: from the run folder; empty: it reads none), and ``add_options`` and
``run`` do the rest. Libraries are imported inside ``run``, so that help and typing errors are answered at once.
"""
