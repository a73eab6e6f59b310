"""Task directories as an environment: what `agentenv.tasks` can run, collected in groups and trained on."""
