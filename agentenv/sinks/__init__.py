"""Ways out for trainers that do not speak the protocol of the trajectory server.

`trl` is a rollout function for TRL's `GRPOTrainer`. Each sink imports its trainer's library only when it is used.
"""
