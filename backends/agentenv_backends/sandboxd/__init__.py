"""The sandbox server: it runs in every host, opens slots, and carries the driver's requests to them.

    driver --frames--> server (one per host) --frames--> slot init (pid 1 of each slot) --spawns--> bash -c

Standard library only, Python 3.8 or newer, shipped as one zip file (`packing.sandboxd_zipapp`). Read `server.py` for
the host's side, `slot_init.py` for the slot's, `frames.py` for what they say to each other.
"""
