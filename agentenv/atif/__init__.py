"""The Agent Trajectory Interchange Format: what an agent did, in a file that other tools read.

`read_trajectory` takes versions 1.0 to 1.8 and the "1.0.0" dialect, `write_trajectory` writes 1.7 and exports older
forms, `validate` names everything that is wrong with one. `from_rollout` makes a trajectory of a rollout,
`to_sequences` and `to_messages` make of one what trainers and chat models take.
"""

from agentenv.atif.checks import Problem, errors, validate
from agentenv.atif.dialect import from_dialect
from agentenv.atif.exporting import EXPORTS, export
from agentenv.atif.models import (
    Agent,
    AudioSource,
    ContentPart,
    FinalMetrics,
    ImageSource,
    Metrics,
    Observation,
    ObservationResult,
    Step,
    SubagentTrajectoryRef,
    ToolCall,
    Trajectory,
)
from agentenv.atif.reading import (
    TrajectoryFormatError,
    parse_trajectory,
    read_continued,
    read_trajectory,
)
from agentenv.atif.rollouts import from_rollout, rollout_images
from agentenv.atif.sequences import to_messages, to_sequences
from agentenv.atif.versions import VERSIONS
from agentenv.atif.writing import write_trajectory

__all__ = [
    "EXPORTS",
    "VERSIONS",
    "Agent",
    "AudioSource",
    "ContentPart",
    "FinalMetrics",
    "ImageSource",
    "Metrics",
    "Observation",
    "ObservationResult",
    "Problem",
    "Step",
    "SubagentTrajectoryRef",
    "ToolCall",
    "Trajectory",
    "TrajectoryFormatError",
    "errors",
    "export",
    "from_dialect",
    "from_rollout",
    "parse_trajectory",
    "read_continued",
    "read_trajectory",
    "rollout_images",
    "to_messages",
    "to_sequences",
    "validate",
    "write_trajectory",
]
