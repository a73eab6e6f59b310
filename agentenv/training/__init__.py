"""The demonstration trainer: GRPO over the wire protocol, on one machine, with a policy small enough for its CPU.

Needs the extra `torch`. It shows that the groups an environment sends can be learned from, and by their tokens, masks
and log-probs alone; it is no trainer for real models. `docs/train_demo.md` says how one takes its place.

    rows.py         groups as they come over the wire -> checked rows with advantages
    tensors.py      rows -> padded tensors, everything shifted onto the position that predicts it
    loss.py         GRPO's loss, a pure function of tensors
    learner.py      model and optimizer: one step per batch, log-probs recomputed
    generation.py   the generation server, on the protocols of vLLM, SGLang and Atropos
    checkpoints.py  folders that a kill cannot leave half-written
    trainer.py      the loop: batch, step, fresh weights, checkpoint, acknowledgement
    wire_source.py  the loop's view of the trajectory server
    service.py      all of it as a process: python -m agentenv.training CONFIG.yaml; its settings are in settings.py
    demo/           agentenv train-demo: three processes, held-out tasks before and after, a curve
"""
