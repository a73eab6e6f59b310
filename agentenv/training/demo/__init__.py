"""`agentenv train-demo`: trajectory server, environment and trainer as three processes, and what came of it."""
