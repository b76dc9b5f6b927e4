"""Processes, sockets, clocks, signals and files of ours: the supervisor and its workers."""
