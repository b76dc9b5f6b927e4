"""State that more than one worker sees. Pure: no socket, no clock; the supervisor drives it."""
