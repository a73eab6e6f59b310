"""Software engineering: a repository at a commit, a problem, and hidden tests that judge what the agent made of it."""
