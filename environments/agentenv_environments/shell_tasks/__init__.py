"""Small tasks for an agent with a shell, a policy of a million weights that half knows how, and how it was made."""
