"""Hosts that are allocations of a job in a Nomad cluster.

job.py          the job: pure functions
allocations.py  allocations as listed, what states and events mean: frozen data
ledger.py       which are free, whose the others are, how many there ought to be: decisions without I/O
steward.py      follows the job by blocking queries, and carries out what the ledger plans
registry.py     whose a job is, taking one over, and the sweep
knock.py        the driver's side of a host's gate (`sandboxd/gate.py`)
api.py          our calls to the cluster, each with a deadline
errors.py       how those fail, told apart
provider.py     `NomadProvider`, which puts these together
"""
