"""Work at a terminal: each task a directory with an instruction, a set-up, and a test of the final state."""
