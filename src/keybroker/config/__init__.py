"""Typed configuration: Trustee's keys and defaults, and beside them what is keybroker's own.

Every table of a file is one frozen struct (a :class:`~keybroker.config.section.Section`);
:mod:`keybroker.config.loader` reads a file into them and says everything that is wrong with it at
once. Nothing here opens a file that a configuration names, makes a key or listens.
"""
